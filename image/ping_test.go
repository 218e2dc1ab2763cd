package image

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/testenv"
)

// TestPing asks registries that let us in, and each kind that does not.
func TestPing(t *testing.T) {
	for _, cfg := range []testenv.RegistryConfig{
		{},
		{Username: "ada", Password: "pass:word"},
		{Username: "ada", Password: "pass:word", Token: true},
		{Username: "ada", Password: "pass:word", Token: true, TLS: true},
	} {
		t.Run(fmt.Sprintf("user=%s,token=%t,tls=%t", cfg.Username, cfg.Token, cfg.TLS), func(t *testing.T) {
			registry := testenv.StartRegistry(t, cfg)
			right := Registry{URL: registry.URL, Username: cfg.Username, Password: cfg.Password, CAFile: registry.CAFile}
			if err := right.Ping(t.Context()); err != nil {
				t.Errorf("with what it asks for: %v", err)
			}
			if cfg.TLS {
				unknown := right
				unknown.CAFile = ""
				if err := unknown.Ping(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "registry.ca_file") {
					t.Errorf("without its authority: %v", err)
				}
			}
			if cfg.Username == "" {
				return
			}
			wrong := right
			wrong.Password = "wrong"
			if err := wrong.Ping(t.Context()); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "registry.password") {
				t.Errorf("with a wrong password: %v", err)
			}
			nobody := right
			nobody.Username, nobody.Password = "", ""
			if err := nobody.Ping(t.Context()); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "registry.username") {
				t.Errorf("as nobody: %v", err)
			}
		})
	}
	away := Registry{URL: fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t))}
	if err := away.Ping(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("where nothing listens: %v", err)
	}
}
