// Package endpoint reads a registry's URL as the beginning of images' names. It
// is a package of its own so that a configuration can be checked without
// containerd's client.
package endpoint

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/distribution/reference"
)

// Endpoint is a registry, or a part of one, as it begins the names of images.
type Endpoint struct {
	Scheme string // http or https
	Host   string // HOST[:PORT]
	Path   string // below the host, as in HOST/TEAM, without slashes around it
}

// Parse reads http://HOST[:PORT][/PATH] or https://…; without a scheme it is plain
// HTTP, as it was with the original. The error is a predicate without its subject
// ("is empty"), and repeats no credentials.
func Parse(s string) (Endpoint, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Endpoint{}, errors.New("is empty: say where images are pulled from, as in http://localhost:5000")
	}
	text := s
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		// The URL may hold a password, and url.Error repeats it.
		return Endpoint{}, errors.New("is not a URL; expected http://HOST:PORT or https://HOST")
	case u.User != nil:
		return Endpoint{}, errors.New("holds credentials: put them into registry.username and registry.password")
	case u.Scheme != "http" && u.Scheme != "https":
		return Endpoint{}, fmt.Errorf("is %q; expected http:// or https://", s)
	case u.RawQuery != "" || u.Fragment != "":
		return Endpoint{}, fmt.Errorf("is %q; expected nothing after the path", s)
	}
	e := Endpoint{Scheme: u.Scheme, Host: u.Host, Path: strings.Trim(u.Path, "/")}
	// The whole must be able to begin a reference.
	named, err := reference.ParseNamed(e.Name("x"))
	if err != nil || e.Host == "" || reference.Domain(named) != e.Host {
		return Endpoint{}, fmt.Errorf("is %q, and no image's name can begin with %q: %s", s, e.Prefix(), e.problem())
	}
	return e, nil
}

// problem says what is wrong with an endpoint that cannot begin a name.
func (e Endpoint) problem() string {
	host, _, _ := strings.Cut(e.Host, ":")
	switch {
	case e.Host == "":
		return "it has no host; expected http://HOST:PORT or https://HOST"
	case host == "docker.io" || host == "index.docker.io":
		return "name the namespace, as in https://docker.io/library"
	case strings.Contains(host, "_"):
		return "its host has an underscore; use another name of it, or its address"
	case strings.ToLower(e.Path) != e.Path:
		return "its path has capital letters; images' names are in lower case"
	case !strings.ContainsAny(e.Host, ".:") && host != "localhost":
		return fmt.Sprintf("a host without a dot needs a port, as in %s://%s:%d", e.Scheme, e.Host, map[string]int{"http": 80, "https": 443}[e.Scheme])
	}
	return "expected http://HOST:PORT or https://HOST"
}

// Prefix is what images' names begin with: HOST/ or HOST/PATH/.
func (e Endpoint) Prefix() string {
	if e.Path == "" {
		return e.Host + "/"
	}
	return e.Host + "/" + e.Path + "/"
}

// Name is the name of a model's image, without a tag.
func (e Endpoint) Name(model string) string { return e.Prefix() + model }
