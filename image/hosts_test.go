package image

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// hostsToml writes what containerd's certs.d has for a registry.
func hostsToml(t *testing.T, host, text string) (root string) {
	t.Helper()
	root = t.TempDir()
	dir := filepath.Join(root, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestHostsToml goes through what certs.d is used for: mirrors, authorities,
// clients' certificates.
func TestHostsToml(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	m := job.Model{Name: "model", Version: "v1"}
	t.Run("mirror", func(t *testing.T) {
		h := newHomeOn(t, daemon, testenv.RegistryConfig{})
		mirror := testenv.StartRegistry(t, testenv.RegistryConfig{})
		img := testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...)
		mirror.Push(t, "model:v1", img)
		root := hostsToml(t, h.registry.Host, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", h.registry.URL, mirror.URL))
		s := h.store(func(c *Config) { c.Registry.HostsDir = root })
		got := h.ensure(s, m)
		if got.Target.Digest.String() != digestOf(t, img) || got.Reference != h.registry.Host+"/model:v1" {
			t.Errorf("got %s, %s", got.Reference, got.Target.Digest)
		}
		if asked := h.registry.Requests(); len(asked) > 0 {
			t.Errorf("the registry was asked: %v", asked)
		}
	})
	t.Run("mirror away", func(t *testing.T) {
		h := newHomeOn(t, daemon, testenv.RegistryConfig{})
		h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 2)...))
		root := hostsToml(t, h.registry.Host, fmt.Sprintf("server = %q\n[host.\"http://127.0.0.1:%d\"]\ncapabilities = [\"pull\", \"resolve\"]\n", h.registry.URL, testenv.FreePort(t)))
		h.ensure(h.store(func(c *Config) { c.Registry.HostsDir = root }), m)
	})
	t.Run("authority", func(t *testing.T) {
		h := newHomeOn(t, daemon, testenv.RegistryConfig{TLS: true})
		h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 3)...))
		root := hostsToml(t, h.registry.Host, fmt.Sprintf("server = %q\nca = %q\n", h.registry.URL, h.registry.CAFile))
		s := h.store(func(c *Config) { c.Registry.CAFile, c.Registry.HostsDir = "", root })
		h.ensure(s, m)
		if err := (Registry{URL: h.registry.URL, HostsDir: root}).Ping(t.Context()); err != nil {
			t.Errorf("ping: %v", err)
		}
	})
	t.Run("client's certificate", func(t *testing.T) {
		h := newHomeOn(t, daemon, testenv.RegistryConfig{TLS: true, ClientCertificate: true})
		h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 5)...))
		root := hostsToml(t, h.registry.Host, fmt.Sprintf("server = %q\nca = %q\nclient = [[%q, %q]]\n",
			h.registry.URL, h.registry.CAFile, h.registry.ClientCertFile, h.registry.ClientKeyFile))
		h.ensure(h.store(func(c *Config) { c.Registry.CAFile, c.Registry.HostsDir = "", root }), m)
		if err := (Registry{URL: h.registry.URL, HostsDir: root}).Ping(t.Context()); err != nil {
			t.Errorf("ping: %v", err)
		}
		if err := (Registry{URL: h.registry.URL, CAFile: h.registry.CAFile, HostsDir: t.TempDir()}).Ping(t.Context()); err == nil {
			t.Error("the registry lets in whoever shows no certificate")
		}
	})
	t.Run("credentials", func(t *testing.T) {
		h := newHomeOn(t, daemon, testenv.RegistryConfig{Username: "ada", Password: "secret"})
		h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 4)...))
		mirror := testenv.StartRegistry(t, testenv.RegistryConfig{Username: "ada", Password: "secret"})
		var shown []string
		mirror.SetFault(func(r *http.Request) *testenv.RegistryFault {
			if a := r.Header.Get("Authorization"); a != "" {
				shown = append(shown, a)
			}
			return nil
		})
		root := hostsToml(t, h.registry.Host, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", h.registry.URL, mirror.URL))
		s := h.store(func(c *Config) {
			c.Registry.HostsDir, c.Registry.Username, c.Registry.Password = root, "ada", "secret"
		})
		h.ensure(s, m)
		if len(shown) > 0 {
			t.Errorf("the mirror was shown the registry's credentials: %q", shown)
		}
	})
	t.Run("broken", func(t *testing.T) {
		h := newHomeOn(t, daemon, testenv.RegistryConfig{})
		root := hostsToml(t, h.registry.Host, "server = \n")
		_, err := h.store(func(c *Config) { c.Registry.HostsDir = root }).Ensure(t.Context(), m, nil)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), filepath.Join(root, h.registry.Host, "hosts.toml")+" cannot be read") {
			t.Errorf("got %v", err)
		}
	})
}
