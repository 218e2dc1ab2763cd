package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/iterait/shepherd/daemon"
)

// TestDevConfigurations reads the configurations of trials as the daemon does.
func TestDevConfigurations(t *testing.T) {
	model := filepath.Join(t.TempDir(), "a $HOME model")
	if err := os.Mkdir(model, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(model, "config.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		trial           trial
		model, registry string
	}{
		{trial{model: model}, "model:dev", ""},
		{trial{model: model, devices: []string{"/dev/nvidia0", "nvidia.com/gpu=1"}}, "model:dev", ""},
		{trial{model: "registry.example.com/team/m:v1", devices: []string{"all"}}, "team/m:v1", "https://registry.example.com"},
		{trial{model: "registry.example.com:5000/m", plainHTTP: true}, "m", "http://registry.example.com:5000"},
		{trial{model: "localhost/m:v1"}, "m:v1", "http://localhost"},
		{trial{model: "127.0.0.1:6000/m:v1"}, "m:v1", "http://127.0.0.1:6000"},
	} {
		dir := filepath.Join(t.TempDir(), "$x")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m, file, err := c.trial.prepare(dir)
		if err != nil || m.String() != c.model {
			t.Errorf("%s: %s, %v", c.trial.model, m, err)
			continue
		}
		cfg, err := daemon.LoadConfig(file)
		if err != nil {
			t.Errorf("%s: %v", c.trial.model, err)
			continue
		}
		if c.registry != "" && (cfg.Registry == nil || cfg.Registry.URL != c.registry) {
			t.Errorf("%s: the registry is %+v", c.trial.model, cfg.Registry)
		}
	}
	for _, name := range []string{"m:v1", "team/m:v1", ""} {
		var usage *usageError
		if _, _, err := (&trial{model: name}).prepare(t.TempDir()); !errors.As(err, &usage) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
