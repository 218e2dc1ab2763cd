package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// plain is a sheep that says nothing but its type.
func plain() Config {
	return Config{
		Image: ocispec.ImageConfig{
			Env: []string{"PATH=/opt/bin:/usr/bin:/bin", "LANG=C.UTF-8"}, Entrypoint: []string{"shepherd-runner"}, Cmd: []string{"-p", "9999"}, WorkingDir: "/app",
		},
		DataDir:    "/var/lib/shepherd/data/sheep",
		Hostname:   "sheep",
		CgroupPath: "/shepherd/sheep",
		Hosts:      "/var/lib/shepherd/state/hosts",
		ResolvConf: "/etc/resolv.conf",
		Host:       Host{Unified: true, CPUs: 8, RecursiveReadOnly: true},
	}
}

// TestGolden compares whole specs. They hold containerd's default seccomp
// profile, which is outside of what containerd promises to keep: a new release
// that changes it shows here.
func TestGolden(t *testing.T) {
	claims.Hold(t, "M1")
	if runtime.GOARCH != "amd64" {
		testenv.Missing(t, "an amd64 machine", "the golden files hold its system calls; run the test on one")
	}
	for name, change := range map[string]func(*Config){
		"plain": func(*Config) {},
		"limits": func(c *Config) {
			c.Options = Options{
				Memory: 8 << 30, CPUs: 1.5, Pids: 100, ShmSize: 1 << 30, ReadOnly: true,
				Tmpfs:   []Tmpfs{{Target: "/tmp", Size: 1 << 20}, {Target: "/run"}},
				Ulimits: map[string]Ulimit{"memlock": {-1, -1}, "nofile": {1024, 4096}},
			}
		},
		"cgroup-v1": func(c *Config) {
			c.Host = Host{}
			c.Options = Options{Memory: 8 << 30, Mounts: []Mount{{Source: "/srv/models", Target: "/models", ReadOnly: true}}}
			c.AllowedMounts = []string{"/srv/models"}
		},
		"systemd": func(c *Config) {
			c.CgroupPath = "shepherd.slice:shepherd:0123"
			c.Host.AppArmor = "shepherd-default"
			c.Host.CPUs = 128
			c.Options = Options{OOMGroup: true}
		},
		"host-network": func(c *Config) { c.Options.Network = NetworkHost },
		"cni": func(c *Config) {
			c.Options.Network = NetworkCNI
			c.NetworkNamespace = "/run/netns/sheep"
		},
		"user": func(c *Config) {
			c.Account = Account{UID: 1000, GID: 1001, Groups: []uint32{44, 109}, Home: "/home/ada"}
			c.Options = Options{User: "ada", Env: map[string]string{"LANG": "cs_CZ.UTF-8", "B": "2", "A": "1"}, Command: []string{"/bin/serve", "--now"}}
		},
		"mounts": func(c *Config) {
			c.AllowedMounts = []string{"/srv/models"}
			c.Options.Mounts = []Mount{
				{Source: "/srv/models/big/weights", Target: "/models/weights", ReadOnly: true},
				{Source: "/srv/models", Target: "/models"},
			}
		},
		"devices": func(c *Config) {
			c.Edits = []func(*specs.Spec) error{func(s *specs.Spec) error {
				major, minor := int64(195), int64(0)
				s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/nvidia0", Type: "c", Major: major, Minor: minor})
				s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"})
				s.Process.Env = append(s.Process.Env, "NVIDIA_VISIBLE_DEVICES=void")
				return nil
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := plain()
			change(&cfg)
			spec, err := Spec(cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(spec, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			path := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				line := 1
				for i := 0; i < min(len(got), len(want)) && got[i] == want[i]; i++ {
					if got[i] == '\n' {
						line++
					}
				}
				t.Errorf("the spec differs from %s from line %d on; if that is meant, run go test ./oci -update and look at the difference", path, line)
			}
		})
	}
}

// An image's environment is taken as Docker takes it.
func TestEnvironment(t *testing.T) {
	cfg := plain()
	cfg.Image.Env = []string{"A=1", "B=2", "A=3", "B", "C", "=x", "D=", "E==", RunnerHost + "=0.0.0.0", "PATH"}
	spec, err := Spec(cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"HOSTNAME=sheep", "A=3", "D=", "E==", "SHEPHERD_RUNNER_HOST=127.0.0.1", "HOME=/"}
	if !slices.Equal(spec.Process.Env, want) {
		t.Errorf("got  %q\nwant %q", spec.Process.Env, want)
	}
	cfg.Options.Env = map[string]string{RunnerHost: "::1"} // the operator's word is the last
	if spec, err = Spec(cfg); err != nil || !slices.Contains(spec.Process.Env, "SHEPHERD_RUNNER_HOST=::1") {
		t.Errorf("got %q, %v", spec.Process.Env, err)
	}
}

func TestShmSizeAndPids(t *testing.T) {
	for _, c := range []struct {
		options Options
		cpus    int
		shm     string
		pids    int64
	}{
		{Options{}, 2, "size=50%", 4096},
		{Options{Memory: 8 << 30}, 64, "size=4294967296", 16384},
		{Options{Memory: 64 << 20}, 0, "size=67108864", 4096},
		{Options{Memory: 8 << 30, ShmSize: 1 << 20, Pids: -1}, 64, "size=1048576", -1},
		{Options{ShmSize: 1 << 30, Pids: 7}, 64, "size=1073741824", 7},
	} {
		cfg := plain()
		cfg.Options, cfg.Host.CPUs = c.options, c.cpus
		spec, err := Spec(cfg)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
		if got := spec.Mounts[i].Options; !slices.Contains(got, c.shm) || *spec.Linux.Resources.Pids.Limit != c.pids {
			t.Errorf("%+v: /dev/shm has %q, %d pids; want %s and %d", c.options, got, *spec.Linux.Resources.Pids.Limit, c.shm, c.pids)
		}
	}
}

func TestCommand(t *testing.T) {
	for _, c := range []struct{ entrypoint, cmd, command, args, want string }{
		{"e", "c", "", "", "e c"},
		{"", "c d", "", "", "c d"},
		{"e", "c", "x y", "", "x y"},
		{"e", "c", "", "a b", "e a b"},
		{"e", "c", "x", "a", "x a"},
	} {
		cfg := plain()
		cfg.Image.Entrypoint, cfg.Image.Cmd = strings.Fields(c.entrypoint), strings.Fields(c.cmd)
		if c.command != "" {
			cfg.Options.Command = strings.Fields(c.command)
		}
		if c.args != "" {
			cfg.Options.Args = strings.Fields(c.args)
		}
		spec, err := Spec(cfg)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
		} else if got := strings.Join(spec.Process.Args, " "); got != c.want {
			t.Errorf("%+v gives %q", c, got)
		}
	}
	cfg := plain()
	cfg.Options.Args = []string{}
	if spec, err := Spec(cfg); err != nil || !slices.Equal(spec.Process.Args, []string{"shepherd-runner"}) {
		t.Errorf("no arguments at all: %v", err)
	}
}

// TestEverythingWrongIsNamed: each option that cannot be had, by its name, and
// all at once.
func TestEverythingWrongIsNamed(t *testing.T) {
	claims.Hold(t, "M2")
	o := Options{
		Memory: 1 << 20, CPUs: math.NaN(), Pids: -2, ShmSize: -1, User: "a:b:c", Network: "bridge",
		Env:     map[string]string{"": "x", "A=B": "x", "N": "\x00", "L": strings.Repeat("x", maxString)},
		Command: []string{""}, Args: []string{"\x00"},
		Ulimits: map[string]Ulimit{"files": {1, 1}, "nofile": {2, 1}, "core": {-2, 0}, "memlock": {-1, 5}},
		Mounts: []Mount{
			{Source: "/srv/../etc", Target: "/a"}, {Source: "/etc", Target: "/b"}, {Source: "/srvx", Target: "/c"},
			{Source: "/srv/x", Target: "relative"}, {Source: "/srv/x", Target: "/proc/x"}, {Source: "/srv/x", Target: "/"},
			{Source: "/srv/x", Target: "/twice"}, {Source: "/srv/x", Target: "/n\x00"},
		},
		Tmpfs: []Tmpfs{{Target: "/twice"}, {Target: "/dev/shm"}, {Target: "/t", Size: -1}, {Target: "/t/"}},
	}
	err := o.Check([]string{"/srv"})
	if err == nil {
		t.Fatal("all of that is accepted")
	}
	got := strings.Split(err.Error(), "\n")
	for _, want := range []string{
		"memory: ", "cpus: ", "pids: ", "shm_size: ", "user: ", "network: ", `env: "" `, `env: "A=B"`, "env.N: ", "env.L: ",
		"command: ", "args: ", "ulimits.files: there is no such limit", "ulimits.nofile: 2:1", "ulimits.core: ", "ulimits.memlock: ",
		`mounts: source "/srv/../etc"`, `mounts: source "/etc" is not among the paths that may be mounted (/srv)`, `mounts: source "/srvx"`,
		`mounts: target "relative"`, `mounts: target "/proc/x" is reserved for the system`, `mounts: target "/" is`, `mounts: target "/n\x00"`,
		`tmpfs: target "/twice" is used twice`, `tmpfs: target "/dev/shm"`, "tmpfs: -1", `tmpfs: target "/t/"`,
	} {
		if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, want) }) {
			t.Errorf("nothing says %q in\n%s", want, err)
		}
	}
	if len(got) != 27 {
		t.Errorf("%d problems:\n%s", len(got), err)
	}
	var option *OptionError
	if !errors.As(err, &option) || option.Option == "" {
		t.Errorf("%T", err)
	}
	cfg := plain()
	cfg.Options = o
	if _, err := Spec(cfg); err == nil {
		t.Error("a spec was made of it")
	}
	if err := (&Options{Mounts: []Mount{{Source: "/srv", Target: "/srv"}}}).Check(nil); err == nil {
		t.Error("a mount is allowed where none is")
	}
}

func TestWhatCannotBe(t *testing.T) {
	many := make([]string, 1000)
	for i := range many {
		many[i] = "V" + strings.Repeat("x", i) + "=" + strings.Repeat("y", 2000)
	}
	for want, change := range map[string]func(*Config){
		"has neither an entrypoint":              func(c *Config) { c.Image.Entrypoint, c.Image.Cmd = nil, nil },
		"the image's command contains a NUL":     func(c *Config) { c.Image.Cmd = []string{"\x00"} },
		"the image's environment contains a NUL": func(c *Config) { c.Image.Env = []string{"A=\x00"} },
		"a string of 200002 bytes":               func(c *Config) { c.Image.Env = []string{"A=" + strings.Repeat("a", 200000)} },
		"at most 1048576 are possible":           func(c *Config) { c.Image.Env = many },
		`working directory "app"`:                func(c *Config) { c.Image.WorkingDir = "app" },
		"working directory":                      func(c *Config) { c.Image.WorkingDir = "/\x00" },
		"is the sheep's own directory": func(c *Config) {
			c.Options.Tmpfs = []Tmpfs{{Target: c.DataDir}}
		},
		"the data directory":   func(c *Config) { c.DataDir = "data" },
		"the cgroup":           func(c *Config) { c.CgroupPath = "/" },
		"the cgroup \"/a/../b": func(c *Config) { c.CgroupPath = "/a/../b" },
		"devices: no GPU": func(c *Config) {
			c.Edits = []func(*specs.Spec) error{func(*specs.Spec) error { return errors.New("no GPU") }}
		},
	} {
		cfg := plain()
		change(&cfg)
		if _, err := Spec(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

// FuzzSpec: whatever an image's configuration holds, there is a spec that a
// kernel takes, or an error.
func FuzzSpec(f *testing.F) {
	f.Add("A=1\nB", "/run\n-x", "c", "/app", "user")
	f.Add("PATH=\nPATH=x\n=", "", "\x00", "..", "0:0")
	f.Fuzz(func(t *testing.T, env, entrypoint, cmd, dir, user string) {
		cfg := plain()
		cfg.Image = ocispec.ImageConfig{
			Env: strings.Split(env, "\n"), Entrypoint: strings.Split(entrypoint, "\n"), Cmd: strings.Split(cmd, "\n"), WorkingDir: dir, User: user,
		}
		spec, err := Spec(cfg)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for _, v := range spec.Process.Env {
			name, _, ok := strings.Cut(v, "=")
			if !ok || name == "" || names[name] || strings.Contains(v, "\x00") {
				t.Errorf("variable %q", v)
			}
			names[name] = true
		}
		if !absolute(spec.Process.Cwd) && !strings.Contains(spec.Process.Cwd, "\n") || spec.Process.Args[0] == "" || !names["PATH"] && !slices.Contains(cfg.Image.Env, "PATH") || !names["HOME"] {
			t.Errorf("%+v", spec.Process)
		}
		if !spec.Process.NoNewPrivileges || spec.Linux.Seccomp == nil || len(spec.Linux.Namespaces) < 6 {
			t.Error("an image's configuration weakened the spec")
		}
	})
}
