package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/internal/testenv"
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

// TestDevWording rewrites what package image really says, for people without a configuration.
func TestDevWording(t *testing.T) {
	dir := t.TempDir()
	words := (&trial{model: "models/shout/v1/"}).wording(dir)
	socket := filepath.Join(dir, "containerd.sock")
	connect := func() string {
		_, err := image.Connect(t.Context(), socket, "shepherd", nil)
		if err == nil {
			t.Fatal("connected to nothing")
		}
		return err.Error()
	}
	missing := connect()
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		missing:   "containerd's socket " + socket + " does not exist; install and start containerd (apt-get install containerd runc), or name its socket with --containerd",
		connect(): socket + " is not a socket; name containerd's with --containerd",
		"reads `" + dir + "/models/model/dev/config.yaml`":                                                                      "reads `models/shout/v1/config.yaml`",
		"none are configured; set registry.username and registry.password, or registry.docker_config":                           "none are configured; give them to `docker login`, which keeps them in ~/.docker/config.json",
		"registry r:1 does not speak TLS; write http:// in registry.url if that is intended":                                    "registry r:1 does not speak TLS; give --plain-http if that is intended",
		"registry r:1 answers 400 to plain HTTP; if it speaks TLS, write https:// in registry.url":                              "registry r:1 answers 400 to plain HTTP; leave --plain-http out if it speaks TLS",
		"registry r:1 cannot be reached: no route to host (8 attempts); check registry.url and whether it is up":                "registry r:1 cannot be reached: no route to host (8 attempts); check its name, and whether it is up",
		"registry r:1 refused user \"a\"; check registry.username and registry.password, and that the user may pull this image": "registry r:1 refused user \"a\"; check what `docker login` keeps for it, and that the user may pull this image",
	} {
		if got := words.Replace(text); got != want {
			t.Errorf("%s\nbecomes\n%s\nwant\n%s", text, got, want)
		}
	}
}

// TestDevCannotStart runs trials that no sheep can begin: each ends by itself, says why in
// the user's words, and leaves nothing.
func TestDevCannotStart(t *testing.T) {
	temp, docker := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Setenv("DOCKER_CONFIG", docker)
	model := filepath.Join(t.TempDir(), "v1")
	if err := os.Mkdir(model, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(model, "config.yaml"), []byte("command: [cat]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(docker, "containerd.sock")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"registry.example.com/m:v1", "--containerd", missing}, remote.ExitFailure, "containerd's socket " + missing + " does not exist; "},
		{[]string{model, "--devices", "foo"}, remote.ExitUsage, `"foo" is not a device`},
		{[]string{"./nothing"}, remote.ExitUsage, "neither a directory nor an image"},
		{[]string{"localhost/"}, remote.ExitUsage, "neither a directory nor an image"},
	} {
		root := newRoot("shepherd", Build{})
		var said strings.Builder
		root.SetOut(&said)
		root.SetErr(&said)
		root.SetArgs(append([]string{"dev"}, c.args...))
		err := root.ExecuteContext(t.Context())
		var usage *usageError
		code := remote.ExitCode(err)
		if errors.As(err, &usage) {
			code = remote.ExitUsage
		}
		if err == nil || code != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, with code %d", c.args, err, code)
		}
		if err != nil && strings.Contains(err.Error(), temp) {
			t.Errorf("%q: %v names the trial's own directory", c.args, err)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// TestDevRegistryAway names a registry that does not answer: who waits is told what for, and
// why there is nothing.
func TestDevRegistryAway(t *testing.T) {
	containerd := testenv.StartContainerd(t)
	reference := fmt.Sprintf("127.0.0.1:%d/m:v1", testenv.FreePort(t))
	root := newRoot("shepherd", Build{})
	var said strings.Builder
	root.SetOut(&said)
	root.SetErr(&said)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetArgs([]string{"dev", reference, "--containerd", containerd.Address})
	err := root.ExecuteContext(t.Context())
	if remote.ExitCode(err) != remote.ExitFailure || !strings.Contains(err.Error(), "cannot be reached") || !strings.Contains(err.Error(), "check its name, and whether it is up") {
		t.Errorf("it ends with %v", err)
	}
	if said.String() != "Asking the registry for "+reference+"\n" {
		t.Errorf("it says %q", said.String())
	}
}
