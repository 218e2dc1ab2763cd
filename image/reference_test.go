package image

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/reference"

	"github.com/iterait/shepherd/image/endpoint"
	"github.com/iterait/shepherd/job"
)

const sha = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestReference(t *testing.T) {
	for _, c := range []struct{ url, name, version, want, problem string }{
		{"http://localhost:6000", "digits", "v1", "localhost:6000/digits:v1", ""},
		{"0.0.0.0:6000", "digits", "v1", "0.0.0.0:6000/digits:v1", ""},
		{"https://registry.example.com/team/", "a/b__c-d.e", "1.0_x-Y", "registry.example.com/team/a/b__c-d.e:1.0_x-Y", ""},
		{"localhost:6000", "digits", "", "localhost:6000/digits:latest", ""},
		{"localhost:6000", "digits", sha, "localhost:6000/digits@" + sha, ""},
		{"localhost:6000", "digits", "v1@" + sha, "localhost:6000/digits:v1@" + sha, ""},
		{"[::1]:6000", "digits", "v1", "[::1]:6000/digits:v1", ""},

		{"localhost:6000", "Digits", "v1", "", "names of images are in lower case"},
		{"localhost:6000", "", "v1", "", "model name is empty"},
		{"localhost:6000", "a//b", "v1", "", "empty part"},
		{"localhost:6000", "../b", "v1", "", `".." is not made of`},
		{"localhost:6000", "/etc", "v1", "", "empty part"},
		{"localhost:6000", "a:b", "v1", "", "put it into the model's version"},
		{"localhost:6000", "a b", "v1", "", "is not made of"},
		{"localhost:6000", "ä", "v1", "", "is not made of"},
		{"localhost:6000", "a\x00", "v1", "", "is not made of"},
		{"localhost:6000", strings.Repeat("a", 256), "v1", "", "at most 255"},
		{"localhost:6000", "a", "-v", "", "cannot be an image's tag"},
		{"localhost:6000", "a", "v/1", "", "cannot be an image's tag"},
		{"localhost:6000", "a", strings.Repeat("v", 129), "", "1 to 128"},
		{"localhost:6000", "a", "sha256:xyz", "", "is not a digest"},
		{"localhost:6000", "a", "@" + sha, "localhost:6000/a@" + sha, ""},
		{"localhost:6000", "a", "v1@", "", "is not a digest"},
	} {
		e, err := parseEndpoint(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		r, err := referenceOf(e, job.Model{Name: c.name, Version: c.version})
		switch {
		case c.problem == "" && (err != nil || r.String() != c.want):
			t.Errorf("%q:%q gives %q, %v; want %q", c.name, c.version, r, err, c.want)
		case c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)):
			t.Errorf("%q:%q gives %q, %v; want %q", c.name, c.version, r, err, c.problem)
		}
	}
}

// registry.url is named in what is wrong with it.
func TestEndpoint(t *testing.T) {
	if _, err := parseEndpoint("http://host"); err == nil || !strings.HasPrefix(err.Error(), `registry.url is "http://host", and no image's name can begin with "host/"`) {
		t.Errorf("got %v", err)
	}
}

// FuzzReference: what is accepted, containerd understands, and it stays within
// the registry.
func FuzzReference(f *testing.F) {
	for _, s := range [][2]string{{"a", "v1"}, {"a/b", sha}, {"..", "v"}, {"A", ""}, {"a", "v1@" + sha}, {"a@" + sha, ""}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, name, version string) {
		e := endpoint.Endpoint{Scheme: "http", Host: "localhost:6000", Path: "team"}
		r, err := referenceOf(e, job.Model{Name: name, Version: version})
		if err != nil {
			return
		}
		spec, err := reference.Parse(r.String())
		if err != nil || spec.Hostname() != e.Host || spec.Locator != "localhost:6000/team/"+name {
			t.Errorf("%q:%q became %q: %+v, %v", name, version, r, spec, err)
		}
	})
}
