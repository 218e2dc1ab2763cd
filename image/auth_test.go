package image

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAuthentication goes through every way to have credentials, with every
// way to ask for them.
func TestAuthentication(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	for _, cfg := range []testenv.RegistryConfig{
		{Username: "ada", Password: "pass:word"},
		{Username: "ada", Password: "pass:word", Token: true},
		{Username: "ada", Password: "pass:word", Token: true, TLS: true},
	} {
		t.Run(fmt.Sprintf("token=%t,tls=%t", cfg.Token, cfg.TLS), func(t *testing.T) {
			h := newHomeOn(t, daemon, cfg)
			h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...))
			m := job.Model{Name: "model", Version: "v1"}
			auth := base64.StdEncoding.EncodeToString([]byte("ada:pass:word"))
			helpers := t.TempDir()
			helper := filepath.Join(helpers, "docker-credential-test")
			if err := os.WriteFile(helper, []byte("#!/bin/sh\nread server\n"+
				"[ \"$1 $server\" = \"get "+h.registry.Host+"\" ] || { echo credentials not found in native keychain; exit 1; }\n"+
				`echo '{"ServerURL":"x","Username":"ada","Secret":"pass:word"}'`), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", helpers+":"+os.Getenv("PATH"))
			config := func(format string, args ...any) Registry {
				return Registry{DockerConfig: write(t, "config.json", fmt.Sprintf(format, args...))}
			}
			host := h.registry.Host
			for name, reg := range map[string]Registry{
				"password":      {Username: "ada", Password: "pass:word"},
				"password file": {Username: "ada", PasswordFile: write(t, "password", "pass:word\n")},
				"auths":         config(`{"auths":{%q:{"auth":%q}}}`, host, auth),
				"auths, URL":    config(`{"auths":{"https://%s/v1/":{"username":"ada","password":"pass:word"}}}`, host),
				"helper":        config(`{"credHelpers":{%q:"test"}}`, host),
				"store":         config(`{"credsStore":"test","auths":{%q:{}}}`, host),
				"store knows nothing of it": config(`{"credHelpers":{"elsewhere":"none"},"credsStore":"test","auths":{%q:{"auth":%q}}}`,
					host, auth),
			} {
				s := h.store(func(c *Config) {
					reg.URL, reg.CAFile = c.Registry.URL, c.Registry.CAFile
					c.Registry = reg
				})
				if _, err := s.Ensure(t.Context(), m, nil); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			for _, c := range []struct {
				name string
				reg  Registry
				want string
			}{
				{"none", Registry{}, "asks for credentials and none are configured"},
				{"wrong", Registry{Username: "ada", Password: "secret"}, `refused user "ada"`},
				{"other registry's", config(`{"auths":{"elsewhere:5000":{"auth":%q}}}`, auth), "refused the credentials of"},
				{"no file", Registry{Username: "ada", PasswordFile: "/no/such/file"}, "registry.password_file cannot be read: open /no/such/file"},
				{"no config", Registry{DockerConfig: "/no/such/file"}, "registry.docker_config /no/such/file: no such file"},
				{"broken config", config(`{"auths":[]`), "it is not a docker configuration"},
				{"no such helper", config(`{"credsStore":"no-such-helper"}`), "docker-credential-no-such-helper"},
				{"helper outside of PATH", config(`{"credsStore":"../../x"}`), "is not the name of a credential helper"},
			} {
				h.registry.Requests()
				s := h.store(func(cfg *Config) {
					c.reg.URL, c.reg.CAFile = cfg.Registry.URL, cfg.Registry.CAFile
					cfg.Registry = c.reg
				})
				_, err := s.Ensure(t.Context(), m, nil)
				if err == nil || !strings.Contains(err.Error(), c.want) || !errdefs.IsPermissionDenied(err) && !errdefs.IsFailedPrecondition(err) {
					t.Errorf("%s: %v; want %q", c.name, err, c.want)
				} else if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v", c.name, err)
				}
				if n := len(h.registry.Requests()); n > 2 && !cfg.Token || n > 4 {
					t.Errorf("%s: %d requests to be refused", c.name, n)
				}
			}
		})
	}
}

func TestTokensAreKeptAndRenewed(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{Username: "ada", Password: "old", Token: true})
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(2, 1000, 1)...))
	m := job.Model{Name: "model", Version: "v1"}
	file := write(t, "password", "old")
	s := h.store(func(c *Config) { c.Registry.Username, c.Registry.PasswordFile = "ada", file })
	h.ensure(s, m)
	h.registry.Requests()
	h.ensure(s, m)
	if requests := h.registry.Requests(); len(requests) != 1 {
		t.Errorf("with a valid token: %v", requests)
	}
	h.registry.RevokeTokens()
	h.ensure(s, m)
	h.registry.SetPassword("new")
	if _, err := s.Ensure(t.Context(), m, nil); !errdefs.IsPermissionDenied(err) {
		t.Errorf("the password changed: %v", err)
	}
	if err := os.WriteFile(file, []byte("new\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.ensure(s, m)
	h.registry.SetPassword("newer") // while a token of the old one is held
	if err := os.WriteFile(file, []byte("newer\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.ensure(s, m)
}

// TestAuthorizersAreBounded has clients name more repositories than authorizers are kept of:
// those of the ones in use stay.
func TestAuthorizersAreBounded(t *testing.T) {
	r, err := newRemote(Registry{URL: "https://registry.example"}, 1, ignoreObservation, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	host := &docker.RegistryHost{Host: "registry.example", Scheme: "https"}
	used := r.authorizer(r.transport, host, "used")
	for i := range 3 * maxAuthorizers {
		r.authorizer(r.transport, host, fmt.Sprint("no-such-model-", i))
		if r.authorizer(r.transport, host, "used") != used {
			t.Fatalf("the authorizer in use was dropped for the %dth", i)
		}
	}
	if n := len(r.auth.byKey); n != maxAuthorizers {
		t.Errorf("%d authorizers are kept, want %d", n, maxAuthorizers)
	}
	if !r.hasAuthorizer(fmt.Sprint("no-such-model-", 3*maxAuthorizers-1)) || r.hasAuthorizer("no-such-model-0") {
		t.Error("the newest authorizer was dropped, or the oldest was not")
	}
}

// TestCredentialsStayHome has the registry send us elsewhere.
func TestCredentialsStayHome(t *testing.T) {
	claims.Hold(t, "R1")
	h := newHome(t, testenv.RegistryConfig{})
	elsewhere := testenv.StartRegistry(t, testenv.RegistryConfig{Username: "ada", Password: "secret"})
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		return &testenv.RegistryFault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {elsewhere.URL + r.URL.Path}}}
	})
	var shown []string
	elsewhere.SetFault(func(r *http.Request) *testenv.RegistryFault {
		if a := r.Header.Get("Authorization"); a != "" {
			shown = append(shown, a)
		}
		return nil
	})
	s := h.store(func(c *Config) { c.Registry.Username, c.Registry.Password = "ada", "secret" })
	if _, err := s.Ensure(t.Context(), job.Model{Name: "model", Version: "v1"}, nil); err == nil {
		t.Error("an image came from nowhere")
	}
	if len(shown) > 0 {
		t.Errorf("credentials were shown to another host: %q", shown)
	}
}

func TestTLSProblems(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{TLS: true})
	plain := testenv.StartRegistry(t, testenv.RegistryConfig{})
	for name, c := range map[string]struct {
		reg  Registry
		want string
	}{
		"unknown authority":   {Registry{URL: h.registry.URL}, "registry.ca_file"},
		"plain to TLS":        {Registry{URL: "http://" + h.registry.Host}, "write https:// in registry.url"},
		"TLS to plain":        {Registry{URL: "https://" + plain.Host}, "write http:// in registry.url"},
		"another name for it": {Registry{URL: strings.Replace(h.registry.URL, "127.0.0.1", "localhost", 1), CAFile: h.registry.CAFile}, "is not valid"},
	} {
		s := h.store(func(cfg *Config) { cfg.Registry = c.reg })
		_, err := s.Ensure(t.Context(), job.Model{Name: "model", Version: "v1"}, nil)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for file, want := range map[string]string{
		"/no/such/file":                    "registry.ca_file: open /no/such/file",
		write(t, "empty.pem", "not a PEM"): "holds no certificate",
	} {
		if _, err := New(Config{Client: h.client, Registry: Registry{URL: h.registry.URL, CAFile: file}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestConfigProblems(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	for want, cfg := range map[string]Config{
		"no containerd client":         {},
		`pull_policy "sometimes"`:      {Client: h.client, Policy: "sometimes"},
		"registry.url is empty":        {Client: h.client},
		"are both set":                 {Client: h.client, Registry: Registry{URL: "x:1", Username: "a", Password: "b", PasswordFile: "c"}},
		"registry.username is missing": {Client: h.client, Registry: Registry{URL: "x:1", Password: "b"}},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	s := h.store(func(c *Config) { c.Snapshotter = "nonesuch" })
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 10, 1)...))
	if _, err := s.Ensure(t.Context(), job.Model{Name: "model", Version: "v1"}, nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "set containerd.snapshotter") {
		t.Errorf("unknown snapshotter: %v", err)
	}
	if _, err := s.Ensure(t.Context(), job.Model{Name: "No", Version: "v1"}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no reference: %v", err)
	}
}

func FuzzDockerConfig(f *testing.F) {
	f.Add(`{"auths":{"h":{"auth":"YTpi"}}}`)
	f.Add(`{"credHelpers":{"h":"../x"}}`)
	f.Add(`{"auths":{"https://h/v1/":{"identitytoken":"t"}}}`)
	f.Add(`{"auths":{"h/a":{"username":"u","password":"p"},"h":{"auth":"=="},"":{}}}`)
	f.Add(`{"auths":{"h":{"auth":"YTo="},"h/a/b/c":{"auth":"Og=="}},"HttpHeaders":{"a":"b"}}`)
	f.Add(`{"auths":[]}`)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(strings.ToLower(text), "cred") || strings.Contains(text, `\u`) {
			t.Skip("runs a program")
		}
		path := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := dockerCredentials(path, "h/a/b"); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q", err)
		}
	})
}
