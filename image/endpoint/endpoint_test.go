package endpoint

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for url, want := range map[string]Endpoint{
		"http://localhost:5000":           {"http", "localhost:5000", ""},
		"localhost":                       {"http", "localhost", ""},
		"127.0.0.1:6000/":                 {"http", "127.0.0.1:6000", ""},
		"https://[::1]:5000":              {"https", "[::1]:5000", ""},
		"https://registry.example.com":    {"https", "registry.example.com", ""},
		"https://quay.example.com/a/b/":   {"https", "quay.example.com", "a/b"},
		"https://docker.io/library":       {"https", "docker.io", "library"},
		"http://myregistry:80":            {"http", "myregistry:80", ""},
		" https://registry.example.com\n": {"https", "registry.example.com", ""},
	} {
		if got, err := Parse(url); err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", url, got, err, want)
		}
	}
	for url, problem := range map[string]string{
		"":                              "is empty",
		"ftp://host":                    "expected http:// or https://",
		"http://user:secret@host":       "holds credentials",
		"http://host:1?x=1":             "nothing after the path",
		"http://user:se cret@ho%zst":    "is not a URL",
		"http://":                       "it has no host",
		"http://myregistry":             "needs a port, as in http://myregistry:80",
		"https://myregistry/team":       "needs a port, as in https://myregistry:443",
		"https://docker.io":             "https://docker.io/library",
		"https://index.docker.io/v1/":   "https://docker.io/library",
		"http://my_registry:5000":       "underscore",
		"http://registry.example/UPPER": "capital letters",
		"http://registry.example/a//b":  "expected http://HOST:PORT",
		"http://registry.example/_a":    "expected http://HOST:PORT",
	} {
		if e, err := Parse(url); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%q is %+v, %v; want %q", url, e, err, problem)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("a password is shown: %v", err)
		}
	}
}

// What is accepted begins names, and shows no credentials when it is not.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"http://localhost:5000", "https://docker.io", "http://a:b@c", "x_y", "http://[::1", "https://h/A"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := Parse(s)
		if err == nil && (e.Host == "" || strings.HasPrefix(e.Path, "/") || strings.ContainsAny(e.Name("x"), " @?#\n")) {
			t.Errorf("%q is %+v", s, e)
		}
	})
}
