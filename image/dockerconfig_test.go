package image

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// helperDir puts a helper docker-credential-NAME on PATH that knows one server,
// and returns the file in which it notes what it was asked for.
func helperDir(t *testing.T, name, server string) (asked string) {
	t.Helper()
	dir := t.TempDir()
	asked = filepath.Join(dir, "asked")
	script := fmt.Sprintf("#!/bin/sh\nread server\necho \"$server\" >>%q\n[ \"$1 $server\" = 'get %s' ] || { echo credentials not found in native keychain; exit 1; }\n"+
		`echo '{"ServerURL":"x","Username":"helped","Secret":"secret"}'`+"\n", asked, server)
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return asked
}

// Configurations as they are found, and what docker makes of them.
func TestDockerConfigs(t *testing.T) {
	for _, c := range []struct {
		file, repository string
		want             credential
	}{
		{"hub", "docker.io/library/m", credential{user: "user", secret: "pass"}},
		{"hub", "registry-1.docker.io/library/m", credential{user: "user", secret: "pass"}},
		{"hub", "index.docker.io/library/m", credential{user: "user", secret: "pass"}},
		{"hub", "registry.example.com/m", credential{}},
		{"namespaces", "quay.example.com/org1/team/m", credential{user: "c", secret: "c"}},
		{"namespaces", "quay.example.com/org1/m", credential{user: "b", secret: "b1"}},
		{"namespaces", "quay.example.com/org2/m", credential{user: "a", secret: "a"}},
		{"namespaces", "quay.example.com/org11/m", credential{user: "a", secret: "a"}},
		{"namespaces", "quay.example.com/m", credential{user: "a", secret: "a"}},
		{"namespaces", "other.example.com/org1/m", credential{}},
		{"helpers", "registry.example.com/m", credential{missing: "docker-credential-absent-helper"}},
		{"legacy", "registry.example.com/m", credential{user: "user", secret: "pass"}},
		{"legacy", "registry.example.com:443/m", credential{user: "user", secret: "pass"}},
		{"legacy", "registry.example.com:5000/m", credential{}},
		{"token", "registry.example.com/m", credential{secret: "eyJhbGciOiJub25lIn0.e30."}},
	} {
		for range 20 { // maps are walked in a random order
			got, err := dockerCredentials(filepath.Join("testdata/docker", c.file+".json"), c.repository)
			if err != nil || got != c.want {
				t.Fatalf("%s for %s: got %+v, %v; want %+v", c.file, c.repository, got, err, c.want)
			}
		}
	}
	for text, want := range map[string]credential{
		"":                           {},
		"\xef\xbb\xbf":               {},
		"{}":                         {},
		`{"HttpHeaders": {"a":"b"}}`: {},
		"\xef\xbb\xbf" + `{"auths":{"h:5000":{"auth":"dXNlcjpwYXNz"}}}`:                                  {user: "user", secret: "pass"},
		`{"auths":{"h:5000":{"auth":"dXNlcjpwYXNzCg"}}}`:                                                 {user: "user", secret: "pass"},
		`{"auths":{"h:5000":{"auth":" dXNlcjpwYXNz=="}}}`:                                                {user: "user", secret: "pass"},
		`{"auths":{"http://h:5000/v2/":{"username":"user","password":"pass"}}}`:                          {user: "user", secret: "pass"},
		`{"auths":{"https://h:5000/team":{"username":"user","password":"pass"}}}`:                        {user: "user", secret: "pass"},
		`{"auths":{"H:5000/":{"username":"user","password":"pass"},"h:5000/other":{"username":"no"}}}`:   {user: "user", secret: "pass"},
		`{"auths":{"h:5000/team/m":{"username":"user","password":"pass"},"h:5000":{"username":"no"}}}`:   {user: "user", secret: "pass"},
		`{"auths":{"h:5000":{"username":"user","password":"pass"}},"credHelpers":{"h:5000/x":"absent"}}`: {user: "user", secret: "pass"},
	} {
		if got, err := dockerCredentials(write(t, "config.json", text), "h:5000/team/m"); err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		`[]`:                                 "not a docker configuration",
		`{"auths":{"h:5000":{"auth":"*"}}}`:  "not base64",
		`{"auths":{"h:5000":{"auth":"YQ"}}}`: "not USERNAME:PASSWORD",
	} {
		if got, err := dockerCredentials(write(t, "config.json", text), "h:5000/team/m"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %+v, %v; want %q", text, got, err, want)
		}
	}
}

// Helpers are asked for what docker login told them.
func TestHelperServers(t *testing.T) {
	for _, c := range []struct{ config, repository, server string }{
		{`{"credsStore":"h"}`, "docker.io/library/m", "https://index.docker.io/v1/"},
		{`{"credHelpers":{"docker.io":"h"}}`, "docker.io/library/m", "https://index.docker.io/v1/"},
		{`{"credHelpers":{"https://index.docker.io/v1/":"h"}}`, "registry-1.docker.io/library/m", "https://index.docker.io/v1/"},
		{`{"credsStore":"h"}`, "registry.example.com:5000/m", "registry.example.com:5000"},
		{`{"credsStore":"other","credHelpers":{"quay.example.com":"other","quay.example.com/org":"h"}}`, "quay.example.com/org/m", "quay.example.com/org"},
	} {
		asked := helperDir(t, "h", c.server)
		got, err := dockerCredentials(write(t, "config.json", c.config), c.repository)
		if err != nil || got != (credential{user: "helped", secret: "secret"}) {
			t.Errorf("%s for %s: got %+v, %v", c.config, c.repository, got, err)
		}
		if text, _ := os.ReadFile(asked); string(text) != c.server+"\n" {
			t.Errorf("%s for %s: the helper was asked for %q, want %q", c.config, c.repository, text, c.server)
		}
	}
}

// A helper that is not installed is named in the log, and the pull goes on without
// credentials.
func TestMissingHelper(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...))
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		switch {
		case r.URL.Path == "/token" && r.Header.Get("Authorization") == "" && r.Method == http.MethodGet:
			return &testenv.RegistryFault{Status: http.StatusOK, Text: `{"token":"anonymous"}`}
		case r.URL.Path == "/token":
			return &testenv.RegistryFault{Status: http.StatusUnauthorized}
		case r.Header.Get("Authorization") != "Bearer anonymous":
			return &testenv.RegistryFault{Status: http.StatusUnauthorized, Header: http.Header{
				"Www-Authenticate": {fmt.Sprintf(`Bearer realm="%s/token",service="test"`, h.registry.URL)},
			}}
		}
		return nil
	})
	s := h.store(func(c *Config) { c.Registry.DockerConfig = "testdata/docker/helpers.json" })
	h.ensure(s, job.Model{Name: "model", Version: "v1"})
	if said := h.log.find("docker-credential-absent-helper"); len(said) != 1 || !strings.HasPrefix(said[0], "WARN") {
		t.Errorf("the log says %q", said)
	}
}

// A token of the configuration is shown as it is.
func TestRegistryToken(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{Username: "ada", Password: "p", Token: true})
	s := h.store(func(c *Config) {
		c.Registry.DockerConfig = write(t, "config.json", fmt.Sprintf(`{"auths":{%q:{"registrytoken":%q}}}`, h.registry.Host, h.registry.GiveToken()))
	})
	if err := s.ping(t.Context()); err != nil {
		t.Error(err)
	}
}
