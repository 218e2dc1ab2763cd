package cli

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/gpu"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// What is written for machines of several kinds is valid, and says what was found.
func TestInitConfigurations(t *testing.T) {
	const gib = 1 << 30
	gpus := []gpu.GPU{
		{Index: 0, Minor: 0, Name: "NVIDIA H100 80GB HBM3", Memory: 80 * gib},
		{Index: 1, Minor: 3, Name: "NVIDIA A100", Memory: 40 * gib, MIGMode: true, MIG: []gpu.Instance{{Index: 0}, {Index: 1}}},
	}
	for name, c := range map[string]struct {
		machine  machine
		registry string
	}{
		"laptop":     {machine{dir: "/home/ada/state", noGPUs: errors.New("no driver\nhere"), noContainerd: errors.New("nobody listens at its socket"), api: 5001, storage: 7000, free: 12 * gib, disks: []disk{{"/data: big", 900 * gib}}}, ""},
		"bare-gpus":  {machine{dir: "/var/lib/shepherd", gpus: gpus, driver: "550.54.15", containerd: "v2.0.1", api: 5000, storage: 7000}, ""},
		"containers": {machine{dir: "/var/lib/shepherd", gpus: gpus, driver: "550.54.15", containerd: "v2.0.1", api: 5000, storage: 7001, free: 100 * gib}, "https://registry.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			text := newConfig(c.machine, c.registry)
			golden := filepath.Join("testdata", "init-"+name+".yml")
			if *update {
				if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(golden); err != nil || text != string(want) {
				t.Errorf("%v: it writes\n%s", err, text)
			}
			file := filepath.Join(t.TempDir(), "shepherd.yml")
			if err := writeConfig(file, text, false); err != nil {
				t.Fatal(err)
			}
			if said, err := call("config", "check", file); err != nil || !strings.Contains(said, c.machine.dir) {
				t.Errorf("the check says %v, %s", err, said)
			}
		})
	}
}

// init asks this machine, and overwrites nothing unless it is told to.
func TestInit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shepherd.yml")
	dir := filepath.Join(t.TempDir(), "not there yet")
	said, err := call("init", file, "--dir", dir)
	if err != nil || !strings.Contains(said, "doctor -c "+file) {
		t.Fatalf("%q, %v", said, err)
	}
	written, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(written), dir) {
		t.Errorf("it wrote %s, %v", written, err)
	}
	if _, err := call("config", "check", file); err != nil {
		t.Errorf("the check: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it made the directory")
	}
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := call("init", file, "--dir", dir); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("a file that is there: %v", err)
	}
	if kept, err := os.ReadFile(file); err != nil || string(kept) != "mine" {
		t.Errorf("the file is now %q, %v", kept, err)
	}
	if _, err := call("init", file, "--dir", dir, "--force"); err != nil {
		t.Error(err)
	}
	if text, err := call("init", "-", "--dir", dir); err != nil || !strings.HasPrefix(text, "# The configuration") || !strings.Contains(text, dir) {
		t.Errorf("to standard output: %v, %s", err, text)
	}
	var usage *usageError
	if _, err := call("init", "a", "b"); !errors.As(err, &usage) {
		t.Errorf("two files: %v", err)
	}
}
