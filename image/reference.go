package image

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/iterait/shepherd/job"
)

// endpoint is what registry.url says.
type endpoint struct {
	scheme string // http or https
	host   string // HOST[:PORT]
	path   string // below the host, as in HOST/TEAM, without slashes around it
}

// parseEndpoint reads a registry's URL. Without a scheme it is plain HTTP, as
// it always was with shepherd.
func parseEndpoint(s string) (endpoint, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return endpoint{}, errors.New("registry.url is empty: say where images are pulled from, as in http://localhost:5000")
	}
	text := s
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		// The URL may hold a password, and url.Error repeats it.
		return endpoint{}, errors.New("registry.url is no URL; expected http://HOST:PORT or https://HOST")
	case u.User != nil:
		return endpoint{}, errors.New("registry.url holds credentials: put them into registry.username and registry.password")
	case u.Scheme != "http" && u.Scheme != "https":
		return endpoint{}, fmt.Errorf("registry.url %q: expected http:// or https://", s)
	case u.RawQuery != "" || u.Fragment != "":
		return endpoint{}, fmt.Errorf("registry.url %q: expected nothing after the path", s)
	}
	e := endpoint{scheme: u.Scheme, host: u.Host, path: strings.Trim(u.Path, "/")}
	// The whole must be able to begin a reference.
	named, err := reference.ParseNamed(e.name("x"))
	if err != nil || e.host == "" || reference.Domain(named) != e.host {
		return endpoint{}, fmt.Errorf("registry.url %q: %q cannot begin the name of an image; expected http://HOST:PORT or https://HOST", s, e.prefix())
	}
	return e, nil
}

func (e endpoint) prefix() string {
	if e.path == "" {
		return e.host + "/"
	}
	return e.host + "/" + e.path + "/"
}

func (e endpoint) name(model string) string { return e.prefix() + model }

var (
	component = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tag       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// maxName is the longest name of an image, the registry included.
const maxName = 255

// ref is an image's reference.
type ref struct {
	name   string // REGISTRY/NAME
	tag    string // empty with a digest alone
	digest digest.Digest
	pin    string // the digest that is trusted, empty for any
}

// String is REGISTRY/NAME:TAG, REGISTRY/NAME@DIGEST or REGISTRY/NAME:TAG@DIGEST.
func (r ref) String() string {
	s := r.name
	if r.tag != "" {
		s += ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + r.digest.String()
	}
	return s
}

// reference makes the reference of a model's image. A version is a tag, a
// digest (sha256:…) or TAG@DIGEST; an empty one means the tag latest, as it
// does to docker.
func (e endpoint) reference(m job.Model) (ref, error) {
	r := ref{name: e.name(m.Name)}
	if m.Name == "" {
		return ref{}, errors.New("model name is empty")
	}
	for _, c := range strings.Split(m.Name, "/") {
		if !component.MatchString(c) {
			return ref{}, fmt.Errorf("model name %q cannot name an image: %s", m.Name, componentProblem(c))
		}
	}
	if len(r.name) > maxName {
		return ref{}, fmt.Errorf("model name %q cannot name an image: with the registry it has %d characters, at most %d are allowed", m.Name, len(r.name), maxName)
	}
	version := m.Version
	if version == "" {
		version = "latest"
	}
	before, after, pinned := strings.Cut(version, "@")
	if !pinned && strings.Contains(version, ":") {
		before, after, pinned = "", version, true
	}
	r.tag, r.digest = before, digest.Digest(after)
	if (r.tag != "" || !pinned) && !tag.MatchString(r.tag) {
		return ref{}, fmt.Errorf("model version %q cannot be an image's tag: expected 1 to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'; or a digest, sha256:…", m.Version)
	}
	if pinned && r.digest.Validate() != nil {
		return ref{}, fmt.Errorf("model version %q is no digest: expected sha256: and 64 hexadecimal digits in lower case", m.Version)
	}
	if _, err := reference.Parse(r.String()); err != nil {
		return ref{}, fmt.Errorf("model %q cannot name an image: %w", m, err)
	}
	return r, nil
}

// Check returns a *job.Invalid when m cannot name an image in this registry,
// without asking it.
func (r Registry) Check(m job.Model) error {
	e, err := parseEndpoint(r.URL)
	if err != nil {
		return err
	}
	if _, err := e.reference(job.Model{Name: m.Name}); err != nil {
		return &job.Invalid{Field: "model.name", Problem: err.Error()}
	}
	if _, err := e.reference(m); err != nil {
		return &job.Invalid{Field: "model.version", Problem: err.Error()}
	}
	return nil
}

// componentProblem says what is wrong with one part of a name.
func componentProblem(c string) string {
	switch {
	case c == "":
		return "it has an empty part; parts stand between single slashes"
	case strings.ToLower(c) != c && component.MatchString(strings.ToLower(c)):
		return fmt.Sprintf("%q has capital letters; names of images are in lower case", c)
	case strings.ContainsAny(c, ":@"):
		return fmt.Sprintf("%q holds a version or digest; that belongs into the model's version", c)
	}
	return fmt.Sprintf("%q is not made of lower-case letters and digits, with '.', '_', '__' or dashes between them", c)
}
