// Package endpoint parses a registry's URL and derives the prefix of its images'
// names. It is separate from package image so that checking a configuration does not
// import containerd's client.
package endpoint

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/distribution/reference"
)

// Endpoint is a registry, or a path in one, that prefixes the names of images.
type Endpoint struct {
	Scheme string // http or https
	Host   string // HOST[:PORT]
	Path   string // below the host, as in HOST/TEAM, without slashes around it
}

// Parse parses http://HOST[:PORT][/PATH] or https://…; without a scheme it is plain
// HTTP, as with the original. The error's text is a predicate to be put after the
// name of the key ("is empty"), and contains no credentials.
func Parse(s string) (Endpoint, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Endpoint{}, errors.New("is empty: set the registry to pull images from, as in http://localhost:5000")
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
	// The result must be a valid prefix of a reference.
	named, err := reference.ParseNamed(e.Name("x"))
	if err != nil || e.Host == "" || reference.Domain(named) != e.Host {
		return Endpoint{}, fmt.Errorf("is %q, and no image's name can begin with %q: %s", s, e.Prefix(), e.problem())
	}
	return e, nil
}

// problem explains why an endpoint is not a valid prefix of a reference.
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

// Prefix is the prefix of images' names: HOST/ or HOST/PATH/.
func (e Endpoint) Prefix() string {
	if e.Path == "" {
		return e.Host + "/"
	}
	return e.Host + "/" + e.Path + "/"
}

// Name is the name of a model's image, without a tag.
func (e Endpoint) Name(model string) string { return e.Prefix() + model }
