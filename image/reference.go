package image

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/iterait/shepherd/image/endpoint"
	"github.com/iterait/shepherd/job"
)

// parseEndpoint parses registry.url.
func parseEndpoint(s string) (endpoint.Endpoint, error) {
	e, err := endpoint.Parse(s)
	if err != nil {
		return endpoint.Endpoint{}, fmt.Errorf("registry.url %w", err)
	}
	return e, nil
}

var (
	component = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tag       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// maxName is the longest name of an image in characters, including the registry.
const maxName = 255

// ref is an image's reference.
type ref struct {
	name   string // REGISTRY/NAME
	tag    string // empty if there is only a digest
	digest digest.Digest
	pin    string // the digest that is trusted; empty trusts any
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

// referenceOf returns the reference of a model's image. A version is a tag, a digest
// (sha256:…) or TAG@DIGEST; an empty one is the tag latest, as with docker.
func referenceOf(e endpoint.Endpoint, m job.Model) (ref, error) {
	r := ref{name: e.Name(m.Name)}
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
		return ref{}, fmt.Errorf("model version %q is not a digest: expected sha256: and 64 hexadecimal digits in lower case", m.Version)
	}
	if _, err := reference.Parse(r.String()); err != nil {
		return ref{}, fmt.Errorf("model %q cannot name an image: %w", m, err)
	}
	return r, nil
}

// Check returns a *job.Invalid if m cannot name an image in this registry. It sends no
// request.
func (r Registry) Check(m job.Model) error {
	e, err := parseEndpoint(r.URL)
	if err != nil {
		return err
	}
	if _, err := referenceOf(e, job.Model{Name: m.Name}); err != nil {
		return &job.Invalid{Field: "model.name", Problem: err.Error()}
	}
	if _, err := referenceOf(e, m); err != nil {
		return &job.Invalid{Field: "model.version", Problem: err.Error()}
	}
	return nil
}

// Reference returns the full name of m's image in this registry. Its error is Check's.
func (r Registry) Reference(m job.Model) (string, error) {
	if err := r.Check(m); err != nil {
		return "", err
	}
	e, err := parseEndpoint(r.URL)
	if err != nil {
		return "", err
	}
	ref, err := referenceOf(e, m)
	return ref.String(), err
}

// componentProblem explains why one component of a name is not valid.
func componentProblem(c string) string {
	switch {
	case c == "":
		return "it has an empty part; single slashes separate its parts"
	case strings.ToLower(c) != c && component.MatchString(strings.ToLower(c)):
		return fmt.Sprintf("%q has capital letters; names of images are in lower case", c)
	case strings.ContainsAny(c, ":@"):
		return fmt.Sprintf("%q contains a version or digest; put it into the model's version", c)
	}
	return fmt.Sprintf("%q is not made of lower-case letters and digits, with '.', '_', '__' or dashes between them", c)
}
