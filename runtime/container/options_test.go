package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/runtime"
)

func read(t *testing.T, allowed []string, text string) (o *Options, err error) {
	t.Helper()
	d := New(Config{Registry: image.Registry{URL: "http://localhost:6000"}, DataRoot: "/data", StateDir: "/state", AllowedMounts: allowed})
	_, err = d.NewSheep("dolly", func(into any) error {
		o = into.(*Options)
		return yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(into)
	})
	return o, err
}

func TestOptions(t *testing.T) {
	files := t.TempDir()
	if err := os.Symlink(files, filepath.Join(files, "link")); err != nil {
		t.Fatal(err)
	}
	o, err := read(t, []string{filepath.Join(files, "link")}, fmt.Sprintf(`
type: docker
port: 9001
devices: [/dev/nvidia1, /dev/nvidia0, /dev/nvidiactl]
autoremove_containers: false
pull_policy: if-missing
memory: 8388608
cpus: 1.5
tmpfs: {/tmp: 1024, /run: 0}
env: {A: b}
mounts: ["%[1]s/link:/weights:ro", "%[1]s:/more"]
ulimits: {nofile: 1024, memlock: -1, nproc: "64:128"}
command: [run]
args: [-v]
network: host
runtime: crun
grace: 3s
`, files))
	if err != nil {
		t.Fatal(err)
	}
	spec, allowed, err := o.oci([]string{filepath.Join(files, "link"), filepath.Join(files, "none")})
	if err != nil {
		t.Fatal(err)
	}
	want := oci.Options{
		Memory: 8 << 20, CPUs: 1.5, Network: oci.NetworkHost, Command: []string{"run"}, Args: []string{"-v"},
		Tmpfs:   []oci.Tmpfs{{Target: "/run"}, {Target: "/tmp", Size: 1024}},
		Env:     map[string]string{"A": "b"},
		Mounts:  []oci.Mount{{Source: files, Target: "/weights", ReadOnly: true}, {Source: files, Target: "/more"}},
		Ulimits: map[string]oci.Ulimit{"nofile": {Soft: 1024, Hard: 1024}, "memlock": {Soft: -1, Hard: -1}, "nproc": {Soft: 64, Hard: 128}},
	}
	if !reflect.DeepEqual(spec, want) || !slices.Equal(allowed, []string{files}) {
		t.Errorf("got %+v\nwith %v allowed\nwant %+v", spec, allowed, want)
	}
	for _, c := range []struct{ text, field string }{
		{"port: 70000", "port"},
		{"pull_policy: sometimes", "pull_policy"},
		{"memory: 1", "memory"},
		{"cpus: -1", "cpus"},
		{"pids: -2", "pids"},
		{"network: bridge", "network"},
		{"user: 'a b'", "user"},
		{"env: {'A=B': c}", "env"},
		{"mounts: ['/etc:/x']", "mounts"},
		{"mounts: ['/no/such/place:/x']", "mounts[0]"},
		{"ulimits: {nofiles: 3}", "ulimits.nofiles"},
		{"command: []", "command"},
		{"snapshotter: a/b", "snapshotter"},
		{"runtime: 'a b'", "runtime"},
		{"grace: -1s", "grace"},
		{"orphan_timeout: -1s", "orphan_timeout"},
	} {
		_, err := read(t, nil, "type: docker\n"+c.text+"\n")
		var field *runtime.FieldError
		if !errors.As(err, &field) || field.Field != c.field {
			t.Errorf("%s: got %v, want that %s is wrong", c.text, err, c.field)
		}
	}
	for _, bad := range []string{"no_such_key: 1", "mounts: [/a]", "mounts: ['/a:/b:rx']", "ulimits: {nofile: many}", "ulimits: {nofile: [1]}"} {
		if _, err := read(t, nil, "type: docker\n"+bad+"\n"); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
	for _, name := range []string{"", "..", "a/b"} {
		if _, err := New(Config{}).NewSheep(name, func(any) error { return nil }); err == nil {
			t.Errorf("sheep name %q was accepted", name)
		}
	}
	if _, err := New(Config{}).NewSheep("dolly", func(any) error { return nil }); err == nil || !strings.Contains(err.Error(), "registry") {
		t.Errorf("without a registry: %v", err)
	}
}

func TestContainerID(t *testing.T) {
	life := strings.Repeat("0123456789abcdef", 2)
	valid := regexp.MustCompile(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`) // containerd's rule
	for sheep, want := range map[string]string{
		"dolly":                 "dolly-0123456789ab",
		"a__b..c-":              "a-b-c-0123456789ab",
		strings.Repeat("x", 63): strings.Repeat("x", 63) + "-0123456789ab",
	} {
		if got := containerID(sheep, life); got != want || len(got) > 76 || !valid.MatchString(got) {
			t.Errorf("%s: got %s, want %s", sheep, got, want)
		}
	}
}

func TestShorten(t *testing.T) {
	fits := []string{"index=off", "lowerdir=/r/snapshots/9/fs:/r/snapshots/8/fs"}
	if at, short := shorten(fits); at != "" || !slices.Equal(short, fits) {
		t.Errorf("got %s, %q", at, short)
	}
	const n = 500
	var long, want []string
	for i := range n {
		long = append(long, fmt.Sprintf("/r/snapshots/%d/fs", i))
		want = append(want, fmt.Sprintf("%d/fs", i))
	}
	at, short := shorten([]string{"index=off", "lowerdir=" + strings.Join(long, ":"), "upperdir=/r/snapshots/10/fs"})
	if want := []string{"index=off", "lowerdir=" + strings.Join(want, ":"), "upperdir=10/fs"}; at != "/r/snapshots" || !slices.Equal(short, want) {
		t.Errorf("got %s, %q", at, short)
	}
}

// The reference names every key, and its example is a configuration.
func TestReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "#### `type: docker`")
	if !ok {
		t.Fatal("docs/configuration.md has no section on container sheep")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var documented, keys []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(section, -1) {
		documented = append(documented, m[1])
	}
	everySheep := []string{"type", "devices"} // which is in a table of its own
	for field := range reflect.TypeFor[Options]().Fields() {
		if key := field.Tag.Get("yaml"); !slices.Contains(everySheep, key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(documented)
	slices.Sort(keys)
	if !slices.Equal(documented, keys) {
		t.Errorf("docs/configuration.md describes\n%q\nthere are\n%q", documented, keys)
	}
	example := regexp.MustCompile("(?s)```yml\n(.*?)```").FindStringSubmatch(section)
	if example == nil {
		t.Fatal("there is no example")
	}
	file := filepath.Join(t.TempDir(), "shepherd.yml")
	if err := os.WriteFile(file, []byte("data_root: /data\nregistry: {url: localhost}\n"+example[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(c *config.Config, s config.Sheep) error {
		_, err := New(Config{Registry: image.Registry{URL: c.Registry.URL}}).NewSheep(s.Name, s.Decode)
		return err
	}
	if _, err := (config.Loader{Types: map[string]config.CheckSheep{"docker": check}}).Load(file); err != nil {
		t.Error(err)
	}
}
