package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/keeper"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
)

// TestGPUsAtStart resolves a configuration's devices at start, for each kind of answer
// that shepherd-gpu gives.
func TestGPUsAtStart(t *testing.T) {
	const one = `echo '{"driver":"1","gpus":[{"index":0,"minor":0,"uuid":"GPU-aaaa","name":"A100"}]}'`
	for name, c := range map[string]struct {
		helper  string // a shell's; empty for none
		sheep   string
		problem string // of starting
		later   string // of the sheep a's start
		want    string // what the sheep a has
		logs    string
	}{
		"there":            {one, "a: {DEVICES: [/dev/nvidia0]}", "", "", "/dev/nvidia0@GPU-aaaa", ""},
		"by count":         {one, "a: {DEVICES: {count: 1}}", "", "", "nvidia.com/gpu=GPU-aaaa@GPU-aaaa", ""},
		"absent":           {one, "a: {DEVICES: [/dev/nvidia1]}", "", "sheep a: devices: there is no /dev/nvidia1; the machine has 0 (A100, GPU-aaaa)", "", "there is no /dev/nvidia1"},
		"another's absent": {one, "b: {DEVICES: [/dev/nvidia1]}\n  a: {DEVICES: [/dev/nvidia0]}", "", "", "/dev/nvidia0@GPU-aaaa", "there is no /dev/nvidia1"},
		"too few":          {one, "a: {DEVICES: {count: 2}}", "", "only 1 of 1 whole GPUs", "", "only 1 of 1 whole GPUs"},
		"twice":            {one, "a: {DEVICES: [/dev/nvidia0]}\n  b: {DEVICES: [nvidia.com/gpu=GPU-aaaa]}", "sheep b: devices: nvidia.com/gpu=GPU-aaaa is given to sheep a as well (as /dev/nvidia0)", "", "", ""},
		"twice and shared": {one, "a: {DEVICES: [/dev/nvidia0], shared: true}\n  b: {DEVICES: [nvidia.com/gpu=GPU-aaaa], shared: true}", "", "", "/dev/nvidia0@GPU-aaaa", ""},
		"one is silent":    {`echo '{"driver":"1","gpus":[{"index":0,"uuid":"GPU-aaaa","name":"A100"},{"index":1,"lost":true}]}'`, "b: {DEVICES: {count: 1}}\n  a: {DEVICES: [/dev/nvidia0]}", "", "", "/dev/nvidia0@GPU-aaaa", ""},
		"no driver":        {"echo no driver here >&2; exit 3", "a: {DEVICES: [/dev/nvidia7]}", "", "", "/dev/nvidia7", "no driver here"},
		"driver refuses":   {"echo it refuses >&2; exit 4", "a: {DEVICES: {count: 1}}", "", "any GPU cannot be chosen", "", "it refuses"},
		"helper crashes":   {"kill -SEGV $$", "a: {DEVICES: [/dev/nvidia0]}", "", "", "/dev/nvidia0", "crashed"},
		"nothing to ask":   {"", "a: {DEVICES: [/dev/nvidia0]}", "", "", "/dev/nvidia0", "shepherd-gpu is not installed"},
		"nothing asked":    {"echo asked >&2; exit 1", "a: {DEVICES: []}", "", "", "", ""},
		"another vendor":   {"echo asked >&2; exit 1", "a: {DEVICES: [amd.com/gpu=0]}", "", "", "amd.com/gpu=0", ""},
		"not in the spec":  {one, "a: {type: docker, DEVICES: [vendor.example/card=2]}", "", "there is no vendor.example/card=2; the machine's CDI specs have vendor.example/card=1", "", "there is no vendor.example/card=2"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.helper != "" {
				if err := os.WriteFile(filepath.Join(dir, "shepherd-gpu"), []byte("#!/bin/sh\n"+c.helper+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir+":/usr/bin:/bin")
			const spec = `{"cdiVersion":"0.5.0","kind":"vendor.example/card","devices":[{"name":"1","containerEdits":{"env":["A=b"]}}]}`
			if err := os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(spec), 0o644); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("data_root: %[1]s/data\nstate_dir: %[1]s/state\nregistry: {url: registry.example.com}\ngpu: {cdi_dirs: [%[1]s]}\nsheep:\n  %[2]s\n", dir,
				strings.NewReplacer("type: docker, DEVICES", "type: docker, devices", "DEVICES", "type: bare, working_directory: x, devices").Replace(c.sheep))
			if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "shepherd.yml")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			cfg, err := LoadConfig(file)
			if err != nil {
				t.Fatal(err)
			}
			var logs bytes.Buffer
			var stop closers
			g, err := openGPUs(t.Context(), cfg, slog.New(slog.NewTextHandler(&logs, nil)), &stop)
			stop.close() // the watch has no part in this
			if c.problem != "" {
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(logs.String(), c.logs) || c.logs == "" && strings.Contains(logs.String(), "WARN") {
				t.Errorf("logged %s", &logs)
			}
			grants, err := g.grantsOf(t.Context(), "a")
			if c.later != "" {
				if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), c.later) {
					t.Errorf("got %v", err)
				}
				return
			}
			var got []string
			for _, grant := range grants {
				text := grant.Device.String()
				if grant.GPU != nil {
					text += "@" + grant.GPU.UUID
				}
				got = append(got, text)
			}
			if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// TestGPUsByCount assigns GPUs by count again: sheep keep theirs, whether the daemon was
// restarted, the driver does not answer at the moment, or there are other sheep before them.
func TestGPUsByCount(t *testing.T) {
	dir := t.TempDir()
	driver := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "shepherd-gpu"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	answers := func(uuids ...string) {
		var gpus []string
		for i, uuid := range uuids {
			gpus = append(gpus, fmt.Sprintf(`{"index":%d,"minor":%[1]d,"uuid":%q,"name":"A100"}`, i, uuid))
		}
		driver(`echo '{"driver":"1","gpus":[` + strings.Join(gpus, ",") + `]}'`)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	counting := func(names ...string) *config.Config {
		cfg := &config.Config{StateDir: dir}
		cfg.GPU.CDIDirs = []string{filepath.Join(dir, "cdi")}
		for _, name := range names {
			cfg.Sheep = append(cfg.Sheep, config.Sheep{Name: name, Devices: gpu.Devices{Count: 1}})
		}
		return cfg
	}
	open := func(cfg *config.Config) *gpus {
		t.Helper()
		var stop closers
		g, err := openGPUs(t.Context(), cfg, slog.New(slog.DiscardHandler), &stop)
		stop.close() // the watch has no part in this
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	has := func(g *gpus, want map[string]string) {
		t.Helper()
		got := make(map[string]string)
		for sheep, grants := range g.allGrants() {
			for _, grant := range grants {
				got[sheep] += grant.Device.Name
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	allot := func(g *gpus, names ...string) {
		t.Helper()
		if err := g.allot(t.Context(), counting(names...).Requests()); err != nil {
			t.Fatal(err)
		}
	}

	// The driver answers only after the daemon's start: all sheep's leases have devices then.
	driver("exit 4")
	g := open(counting("b", "c"))
	for _, sheep := range counting("b", "c").Sheep {
		g.lease(sheep)
	}
	answers("GPU-a", "GPU-b", "GPU-c")
	if _, err := g.grantsOf(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	has(g, map[string]string{"b": "GPU-a", "c": "GPU-b"})
	users := make(map[string]string)
	for _, one := range g.keeper.Known().GPUs {
		for _, user := range one.Sheep {
			users[user.Sheep] += one.UUID
		}
	}
	if want := map[string]string{"b": "GPU-a", "c": "GPU-b"}; !maps.Equal(users, want) {
		t.Errorf("the keeper knows %v, want %v", users, want)
	}

	// One that waits for its GPU moves no other sheep, whose lease has its GPUs, lost or not.
	driver(`echo '{"driver":"1","gpus":[{"index":0,"uuid":"GPU-a"},{"index":1,"uuid":"GPU-b"},{"index":2,"lost":true}]}'`)
	g = open(counting("a", "b", "c"))
	has(g, map[string]string{"b": "GPU-a", "c": "GPU-b"})
	driver(`echo '{"driver":"1","gpus":[{"index":0,"uuid":"GPU-a","lost":true},{"index":1,"uuid":"GPU-b"},{"index":2,"uuid":"GPU-c"}]}'`)
	if _, err := g.grantsOf(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	has(g, map[string]string{"a": "GPU-c", "b": "GPU-a", "c": "GPU-b"})
	answers("GPU-a", "GPU-b", "GPU-c")

	g = open(counting("a", "b", "c"))
	has(g, map[string]string{"a": "GPU-c", "b": "GPU-a", "c": "GPU-b"})
	driver("exit 4")
	restore := g.undo()
	allot(g, "a", "b", "c")
	has(g, map[string]string{"a": "GPU-c", "b": "GPU-a", "c": "GPU-b"})
	allot(g, "c")
	restore()
	has(g, map[string]string{"a": "GPU-c", "b": "GPU-a", "c": "GPU-b"})
}

// A GPU that has failed and is not listed any more looks like a mistyped name. It must not
// keep other sheep from working; what a reload adds is refused.
func TestAbsentGPUs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	lists := func(gpus string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "shepherd-gpu"), []byte("#!/bin/sh\necho '{\"driver\":\"1\",\"gpus\":["+gpus+"]}'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const first, second = `{"index":0,"minor":0,"uuid":"GPU-a"}`, `{"index":1,"minor":1,"uuid":"GPU-b"}`
	configured := func(devices ...string) *config.Config {
		t.Helper()
		cfg := &config.Config{StateDir: dir}
		for i, name := range devices {
			d, err := gpu.ParseDevice(name)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Sheep = append(cfg.Sheep, config.Sheep{Name: fmt.Sprint("sheep-", i), Devices: gpu.Devices{List: []gpu.Device{d}}})
		}
		return cfg
	}
	present := configured("/dev/nvidia0", "/dev/nvidia1")

	lists(first)
	var stop closers
	defer stop.close()
	g, err := openGPUs(t.Context(), present, slog.New(slog.DiscardHandler), &stop)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // after the start, and after a reload that does not change the devices
		if grants, err := g.grantsOf(t.Context(), "sheep-0"); err != nil || len(grants) != 1 {
			t.Errorf("sheep-0 has %v, %v", grants, err)
		}
		if _, err := g.grantsOf(t.Context(), "sheep-1"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "there is no /dev/nvidia1") {
			t.Errorf("sheep-1 has the error %v", err)
		}
		if err := g.allot(t.Context(), present.Requests()); err != nil {
			t.Fatal(err)
		}
	}
	for what, next := range map[string]*config.Config{
		"another name": configured("/dev/nvidia0", "/dev/nvidia2"),
		"a new sheep":  configured("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia3"),
	} {
		if err := g.allot(t.Context(), next.Requests()); err == nil || !strings.Contains(err.Error(), "there is no /dev/nvidia") {
			t.Errorf("a reload with %s: %v", what, err)
		}
	}
	lists(first + "," + second)
	if grants, err := g.grantsOf(t.Context(), "sheep-1"); err != nil || len(grants) != 1 || grants[0].GPU.UUID != "GPU-b" {
		t.Errorf("sheep-1 has %v, %v after its GPU is back", grants, err)
	}
}

func TestXidRules(t *testing.T) {
	rules := xidRules(map[string]config.Xid{
		"31": {Action: "ignore"}, "13": {Action: "retire", Text: "broken for certain"}, "998": {Action: "fail_job"},
	})
	for code, want := range map[uint64]keeper.XidRule{
		31:  {Action: keeper.Ignore, Text: keeper.DefaultXids()[31].Text},
		13:  {Action: keeper.Retire, Text: "broken for certain"},
		998: {Action: keeper.FailJob, Text: "as configured in gpu.xids"},
		79:  keeper.DefaultXids()[79],
	} {
		if rules[code] != want {
			t.Errorf("Xid %d: %+v, want %+v", code, rules[code], want)
		}
	}
}

// TestNeededAfterReload has a reload change which models are preloaded: their images are
// the ones to keep.
func TestNeededAfterReload(t *testing.T) {
	preloading := func(name string) *config.Config {
		return &config.Config{Sheep: []config.Sheep{{Name: "a", Preload: job.Model{Name: name, Version: "1"}}, {Name: "b"}}}
	}
	l, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "ledger.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	env := newEnvironment(preloading("old"), "node", l, nil, nil, slog.New(slog.DiscardHandler))
	for _, name := range []string{"old", "new"} {
		env.setPreloads(preloading(name))
		models, err := env.needed(t.Context())
		if want := (job.Model{Name: name, Version: "1"}); err != nil || len(models) != 1 || models[0] != want {
			t.Errorf("got %v, %v, want %v", models, err, want)
		}
	}
}
