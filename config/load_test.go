package config

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/runtime"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "shepherd.yml")
	if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestExamplesLoad(t *testing.T) {
	t.Chdir("..") // where the examples' relative paths start
	for _, file := range corpus(t, "examples/configs/*.yml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := Loader{Types: corpusTypes(), Env: lookupIn(corpusEnv)}.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Sheep) == 0 || c.DataRoot != "/tmp/shepherd-data" {
				t.Errorf("got %s", c)
			}
		})
	}
}

func TestLoadOriginalsValues(t *testing.T) {
	c, err := Loader{Types: corpusTypes(), Env: lookupIn(corpusEnv)}.Load("../examples/configs/shepherd-bare-env.yml")
	if err != nil {
		t.Fatal(err)
	}
	if address, tls := c.Storage.Endpoint(); address != "0.0.0.0:7000" || tls || c.Storage.Embedded() {
		t.Errorf("storage at %q, TLS %t", address, tls)
	}
	if address, tls := c.Registry.Endpoint(); address != "0.0.0.0:6000" || tls {
		t.Errorf("registry at %q, TLS %t", address, tls)
	}
	if c.Storage.AccessKey != "AKIAIOSFODNN7EXAMPLE" || c.Storage.SecretKey.Reveal() != secretText {
		t.Error("the storage's keys are not those of the environment")
	}
	var s bareSheep
	if err := c.Sheep[0].Decode(&s); err != nil {
		t.Fatal(err)
	}
	want := bareSheep{
		Type: "bare", Port: 9001, WorkingDirectory: "filip/examples/docker/emloop_example",
		StdoutFile: "/tmp/bare-shepherd-runner-stdout.txt", StderrFile: "/tmp/bare-shepherd-runner-stderr.txt",
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, want %+v", s, want)
	}
	if c.Sheep[0].Port != 9001 || c.Sheep[0].Type != "bare" || c.Sheep[0].Dir(c.DataRoot) != "/tmp/shepherd-data/bare_sheep" {
		t.Errorf("got sheep %+v", c.Sheep[0])
	}
}

func TestEndpoint(t *testing.T) {
	for url, want := range map[string]struct {
		address string
		tls     bool
	}{
		"https://google.com":      {"google.com", true},
		"HTTPS://google.com:443/": {"google.com:443", true},
		"http://google.com/":      {"google.com", false},
		"google.com:80":           {"google.com:80", false},
		"http://[::1]:7000":       {"[::1]:7000", false},
	} {
		if address, tls := endpoint(url); address != want.address || tls != want.tls {
			t.Errorf("%s: got %s, %t", url, address, tls)
		}
		if problem := urlProblem(url, "", false); problem != "" {
			t.Errorf("%s: %s", url, problem)
		}
	}
	for _, url := range []string{"", "http://", "a b", "http://host:99999", "host:", "http://host?x", "http://host#x", "http://host/x", "unix:///x", "u:p@host"} {
		if urlProblem(url, "", false) == "" {
			t.Errorf("%q was accepted", url)
		}
	}
}

func TestProblemsAreErrors(t *testing.T) {
	file := write(t, "data_root: /data\nnonsense: {}\n")
	_, err := Loader{}.Load(file)
	var ps Problems
	if !errors.As(err, &ps) || len(ps) != 2 {
		t.Fatalf("got %v", err)
	}
	var p *Problem
	if !errors.As(err, &p) || !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v is not of class invalid argument", err)
	}
	want := Problem{File: file, Line: 2, Column: 1, Path: "nonsense"}
	got := *ps[1]
	got.Text = ""
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestLoadWhatCannotBeRead(t *testing.T) {
	_, err := Loader{}.Load(filepath.Join(t.TempDir(), "none.yml"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := (Loader{}).Load(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
	_, err = Loader{}.Load(write(t, strings.Repeat("#", maxFile+1)))
	if err == nil || !strings.Contains(err.Error(), "larger than 256KiB") {
		t.Errorf("got %v", err)
	}
}

func TestHostileNesting(t *testing.T) {
	for _, unit := range []string{"[", "{", "{a: ", "- ", "? ", "&a ", "!a ", "- ["} {
		_, err := Loader{}.Load(write(t, strings.Repeat(unit, maxFile/len(unit))))
		var ps Problems
		if !errors.As(err, &ps) || len(ps) != 1 || !strings.Contains(ps[0].Text, "nested deeper") {
			t.Errorf("%q: got %.200v", unit, err)
		}
	}
	deep := "data_root: /data\n"
	for i := range maxDepth + 2 {
		deep += strings.Repeat(" ", i) + "a:\n"
	}
	if _, err := (Loader{}).Load(write(t, deep)); err == nil || !strings.Contains(err.Error(), "nested deeper than 64 levels") {
		t.Errorf("got %v", err)
	}
}

func TestLoadChangesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	env := map[string]string{"STATE_DIRECTORY": filepath.Join(dir, "state") + ":/elsewhere"}
	file := write(t, "data_root: data/deep\nsheep: {a: {type: bare, working_directory: x}}\n")
	c, err := Loader{Types: corpusTypes(), Env: lookupIn(env)}.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.StateDir != filepath.Join(dir, "state") || c.Ledger.Path != filepath.Join(dir, "state/ledger.db") {
		t.Errorf("got %s", c)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

func TestOverride(t *testing.T) {
	file := write(t, "data_root: /data\nsheep: {a: {type: bare, port: 5000, working_directory: x}}\n")
	if _, err := (Loader{Types: corpusTypes()}).Load(file); err == nil {
		t.Fatal("the API's default port was given to a sheep")
	}
	c, err := Loader{Types: corpusTypes(), Override: func(c *Config) { c.API.Port, c.API.Host = 5001, "::1" }}.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.API.Port != 5001 || c.API.Host != "::1" {
		t.Errorf("got %+v", c.API)
	}

	file = write(t, "data_root: /data\napi: {port: 1}\nsheep: {a: {type: bare, port: 9001, working_directory: x}}\n")
	for _, test := range []struct {
		override func(*Config)
		want     string
	}{
		{func(c *Config) { c.API.Port = 9001 }, ":3:31: sheep.a.port: duplicate port: 9001 is taken by api.port, by the command line; choose another"},
		{func(c *Config) { c.API.Port = 70000 }, ":2:7: api.port: the value from the command line does not fit; expected a port from 1 to 65535, or 0 for a free one"},
		{func(c *Config) { c.DataRoot = "/dev/null" }, `:1:1: data_root: "/dev/null" given on the command line: impossible path: "/dev/null" is not a directory`},
	} {
		_, err := Loader{Types: corpusTypes(), Override: test.override}.Load(file)
		if err == nil || err.Error() != file+test.want {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}

func TestStateDirIsPossible(t *testing.T) {
	file := write(t, "data_root: /data\nsheep: {}\n")
	for _, test := range []struct{ state, want string }{
		{"/dev/null/x", `:1:1: state_dir: its default "/dev/null/x": impossible path: "/dev/null" is not a directory; set state_dir`},
		{"/dev/shm/\x00", `:1:1: state_dir: its default "/dev/shm/\x00": holds a NUL; expected a path; set state_dir`},
	} {
		_, err := Loader{Env: lookupIn(map[string]string{"STATE_DIRECTORY": test.state})}.Load(file)
		if err == nil || err.Error() != file+test.want {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}

func TestImpossible(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(".", filepath.Join(dir, "here")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		file bool
		ok   bool
	}{
		{"", false, true}, {"here/a/b", false, true}, {"file", true, true}, {"new/file", true, true},
		{"link", false, false}, {"link/x", false, false}, {"file", false, false}, {"file/x/y", true, false},
		{"here", true, false}, {"loop/x", false, false}, {strings.Repeat("x", 300), false, false},
	} {
		problem := pathProblem(filepath.Join(dir, test.path), test.file)
		if ok := problem == ""; ok != test.ok {
			t.Errorf("%+v: %q", test, problem)
		}
	}
	if pathProblem("/dev/null", true) == "" {
		t.Error("a device is no place for a file")
	}
}

func TestStateInCleanedDirectoryThroughLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "data/one"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("data/one", filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	file := write(t, "data_root: "+dir+"/data\nstate_dir: "+dir+"/state/deep\nsheep: {one: {type: bare, working_directory: x}}\n")
	_, err := Loader{Types: corpusTypes()}.Load(file)
	if err == nil || !strings.Contains(err.Error(), "state_dir: lies in data_root/one, the directory of sheep.one in line 3, which is cleaned at start-up") {
		t.Errorf("got %v", err)
	}
}

func TestDefaultStateDir(t *testing.T) {
	long := "/" + strings.Repeat("long/", 50)
	for _, test := range []struct {
		root     bool
		env      map[string]string
		dataRoot string
		want     string
	}{
		{true, nil, "/srv/jobs", "/var/lib/shepherd/srv-jobs"},
		{true, nil, "jobs", "/var/lib/shepherd/home-dolly-jobs"},
		{true, nil, "/srv/a-b", "/var/lib/shepherd/srv-a-b-" + slug("/srv/a-b")[len("srv-a-b-"):]},
		{true, map[string]string{"STATE_DIRECTORY": "/run/x"}, "/srv/jobs", "/run/x"},
		{false, map[string]string{"HOME": "/home/dolly"}, "/srv/jobs", "/home/dolly/.local/state/shepherd/srv-jobs"},
		{false, map[string]string{"HOME": "/home/dolly", "XDG_STATE_HOME": "/state"}, "/srv/jobs", "/state/shepherd/srv-jobs"},
		{false, map[string]string{"HOME": "/home/dolly", "XDG_STATE_HOME": "relative"}, "/srv/jobs", "/home/dolly/.local/state/shepherd/srv-jobs"},
		{false, nil, "/srv/jobs", ""},
	} {
		m := machine{env: lookupIn(test.env), root: test.root, directory: "/home/dolly"}
		if got := stateDir(m, test.dataRoot); got != test.want {
			t.Errorf("%+v: got %s", test, got)
		}
	}
	if len(slug(long)) > 110 || slug(long) == slug(long+"x") || slug("/a-b") == slug("/a/b") || slug("/") == "" {
		t.Errorf("got slugs %q, %q, %q", slug(long), slug("/a-b"), slug("/"))
	}
	_, ps := Loader{}.parse([]source{{"f", []byte("data_root: /srv/jobs\nsheep: {}\n")}}, machine{env: lookupIn(nil), hostname: "h", directory: "/"})
	if len(ps) != 1 || ps[0].Path != "state_dir" || !strings.Contains(ps[0].Text, "HOME is not set") {
		t.Errorf("got %v", ps)
	}
}

func TestDebugFromEnvironment(t *testing.T) {
	for value, want := range map[string]bool{"": false, "0": false, "1": true, "True": true} {
		c := defaults(machine{env: lookupIn(map[string]string{"DEBUG": value})})
		if c.API.Debug != want {
			t.Errorf("DEBUG=%s: got %t", value, c.API.Debug)
		}
	}
}

// choice is a type with several forms, as sheep types may have.
type choice struct {
	All   bool
	Names []string
	Count int
}

func (c *choice) UnmarshalYAML(decode func(any) error) error {
	var word string
	if decode(&word) == nil && word == "all" {
		c.All = true
		return nil
	}
	if decode(&c.Names) == nil {
		return nil
	}
	var by struct {
		Count int `yaml:"count"`
	}
	err := decode(&by)
	c.Count = by.Count
	if err == nil && by.Count < 1 {
		return errors.New("count must be 1 or more")
	}
	return err
}

type shout string

func (s *shout) UnmarshalText(text []byte) error {
	if string(text) != strings.ToUpper(string(text)) {
		return errors.New("not loud: " + string(text))
	}
	*s = shout(text)
	return nil
}

// Booleans may be written as for the Python original, also in the environment.
func TestBooleans(t *testing.T) {
	for text, want := range map[string]string{
		"true": "true", "True": "true", "'true'": "true", "1": "true", "'1'": "true", "$ONE": "true",
		"false": "false", "False": "false", "0": "false", "$NONE": "false",
		"2": "found 2", "yes": `found "yes"`, "1.0": "found 1.0", "01": "found 01", "[1]": "found a list",
	} {
		var s struct {
			Type string `yaml:"type"`
			Auto bool   `yaml:"autoremove_containers"`
		}
		s.Auto = want != "true"
		types := map[string]CheckSheep{"x": func(_ *Config, sheep Sheep) error { return sheep.Decode(&s) }}
		_, err := Loader{Types: types, Env: lookupIn(map[string]string{"ONE": "1", "NONE": "0"})}.Load(write(t, "data_root: /data\nsheep:\n  a:\n    type: x\n    autoremove_containers: "+text+"\n"))
		switch {
		case want == "true" || want == "false":
			if err != nil || s.Auto != (want == "true") {
				t.Errorf("%s: %t, %v", text, s.Auto, err)
			}
		case err == nil || !strings.HasSuffix(err.Error(), "autoremove_containers: expected true or false, "+want):
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestDecodeForms(t *testing.T) {
	type common struct {
		Type string
		Port uint16
	}
	type form struct {
		common                        // unexported: not decoded
		Settings struct{ Depth int8 } `yaml:",inline"`
		Type     string
		Devices  choice           `yaml:"pick"`
		Word     shout            `yaml:"word"`
		Wait     time.Duration    `yaml:"wait"`
		Size     *size.Bytes      `yaml:"size"`
		Token    Secret           `yaml:"token"`
		Rate     float64          `yaml:"rate"`
		Any      any              `yaml:"any"`
		Bounds   map[string]*int  `yaml:"bounds"`
		Skipped  string           `yaml:"-"`
		Nested   []map[string]int `yaml:"nested"`
	}
	load := func(section string) (form, error) {
		var f form
		types := map[string]CheckSheep{"x": func(_ *Config, s Sheep) error { return s.Decode(&f) }}
		_, err := Loader{Types: types, Env: lookupIn(corpusEnv)}.Load(write(t, "data_root: /data\nsheep:\n  a:\n    type: x\n"+section))
		return f, err
	}

	f, err := load(`    pick: all
    word: LOUD
    wait: 1d30m
    size: 2kB
    token: $_STORAGE_SECRET_KEY
    rate: 1.5
    any: [1, 0x10, 1.5, .inf, true, text, {a: ~}]
    bounds: {few: 1, none: }
    depth: -3
    nested: [{a: 1}, {}]
`)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Devices.All || f.Word != "LOUD" || f.Wait != 24*time.Hour+30*time.Minute || *f.Size != 2000 || f.Settings.Depth != -3 ||
		f.Token.Reveal() != secretText || f.Rate != 1.5 || *f.Bounds["few"] != 1 || f.Bounds["none"] != nil || len(f.Nested) != 2 {
		t.Errorf("got %+v", f)
	}
	if list, ok := f.Any.([]any); !ok || len(list) != 7 || list[1] != int64(16) || list[4] != true || list[6].(map[string]any)["a"] != nil {
		t.Errorf("got %#v", f.Any)
	}
	if f, err = load("    pick: [a, b]\n"); err != nil || !slices.Equal(f.Devices.Names, []string{"a", "b"}) {
		t.Errorf("got %+v, %v", f, err)
	}
	if f, err = load("    pick: {count: 2}\n"); err != nil || f.Devices.Count != 2 {
		t.Errorf("got %+v, %v", f, err)
	}

	for section, want := range map[string]string{
		"    pick: {cuont: 2}\n":                        `5:12: sheep.a.pick.cuont: unknown key; did you mean "count"? Expected count`,
		"    pick: {count: 0}\n":                        `5:11: sheep.a.pick: count must be 1 or more`,
		"    word: quiet\n":                             `5:11: sheep.a.word: not loud: quiet`,
		"    word: $_STORAGE_SECRET_KEY\n":              `5:11: sheep.a.word: not loud: $_STORAGE_SECRET_KEY`,
		"    word: [A]\n":                               `5:11: sheep.a.word: expected a string, found a list`,
		"    depth: 300\n":                              `5:12: sheep.a.depth: expected a whole number, found 300`,
		"    rate: fast\n":                              `5:11: sheep.a.rate: expected a number, found "fast"`,
		"    nested: [{a: b}]\n":                        `5:18: sheep.a.nested[0].a: expected a whole number, found "b"`,
		"    bounds: 3\n":                               `5:13: sheep.a.bounds: expected a mapping, found a number`,
		"    skipped: 3\n":                              `5:5: sheep.a.skipped: unknown key; expected one of any, bounds, depth, gpu_memory, idle_timeout, limits, nested, pick, preload, rate, shared, size, token, type, wait, word`,
		"    wait: 9" + strings.Repeat("9", 80) + "d\n": `5:11: sheep.a.wait: expected a duration such as 30s, 5m, 12h or 7d, found "` + strings.Repeat("9", 59) + `…"`,
	} {
		_, err := load(section)
		if err == nil || !strings.HasSuffix(err.Error(), ":"+want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestLiterals(t *testing.T) {
	var s bareSheep
	types := map[string]CheckSheep{"bare": func(_ *Config, sheep Sheep) error { return sheep.Decode(&s) }}
	_, err := Loader{Types: types, Env: lookupIn(corpusEnv)}.Load(write(t, `data_root: /data
sheep:
  a:
    type: bare
    command:
      - '$HOME ${x}'
      - "$TRUE"
      - $TRUE
      - |
        echo $HOME
      - >-
        echo
        $HOME
      - $lower 5$
      - !!str 007
      - 007
`))
	want := []string{"$HOME ${x}", "$TRUE", "true", "echo $HOME\n", "echo $HOME", "$lower 5$", "007", "007"}
	if err != nil || !slices.Equal(s.Command, want) {
		t.Errorf("got %q, %v", s.Command, err)
	}
}

func TestDecodeAfterLoad(t *testing.T) {
	file := write(t, "data_root: /data\nsheep: {a: {type: bare, port: 9001, working_directory: x}}\n")
	c, err := Loader{Types: corpusTypes()}.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	var narrow struct{ Type string }
	err = c.Sheep[0].Decode(&narrow)
	if err == nil || !strings.HasPrefix(err.Error(), file+":2:25: sheep.a.port: unknown key; expected one of gpu_memory, idle_timeout, limits, preload, shared, type\n") {
		t.Errorf("got %v", err)
	}
}

func TestSheepOfNoFile(t *testing.T) {
	c := Config{Sheep: []Sheep{{Name: "a", Type: "bare", Port: 9001}}}
	var s bareSheep
	if err := c.Sheep[0].Decode(&s); err != nil || s.Type != "bare" || s.Port != 9001 {
		t.Errorf("got %+v, %v", s, err)
	}
	if !strings.HasSuffix(c.String(), "sheep:\n  a:\n    type: bare\n    port: 9001\n") {
		t.Errorf("got %s", c)
	}
}

func TestDriversErrors(t *testing.T) {
	section := "data_root: /data\nsheep:\n  a:\n    type: x\n    env:\n      a.b: {c: [1, [2]]}\n"
	for _, test := range []struct {
		err  error
		want string
	}{
		{&runtime.FieldError{Field: "type", Problem: "bad"}, "4:11: sheep.a.type: bad"},
		{&runtime.FieldError{Field: "env.a.b.c[1][0]", Problem: "bad"}, "6:21: sheep.a.env.a.b.c[1][0]: bad"},
		{&runtime.FieldError{Field: "env.a.b.c.1.0", Problem: "bad"}, "6:21: sheep.a.env.a.b.c[1][0]: bad"},
		{&runtime.FieldError{Field: "env.a.b.c[7].x", Problem: "bad"}, "6:16: sheep.a.env.a.b.c[7].x: bad"},
		{&runtime.FieldError{Field: "env.other", Problem: "two\n lines"}, "6:7: sheep.a.env.other: two lines"},
		{&runtime.FieldError{Field: "absent", Problem: "bad"}, "3:3: sheep.a.absent: bad"},
		{&runtime.FieldError{Problem: "bad"}, "3:3: sheep.a: bad"},
		{errors.New("odd"), "3:3: sheep.a: odd"},
		{errors.Join(&runtime.FieldError{Field: "type", Problem: "bad"}, errors.New("odd")), "3:3: sheep.a: odd|4:11: sheep.a.type: bad"},
		{wrapped{&runtime.FieldError{Field: "type", Problem: "bad"}}, "4:11: sheep.a.type: bad"},
		{wrapped{Problems{{Line: 9, Column: 9, Path: "sheep.a.x", Text: "bad"}}}, "9:9: sheep.a.x: bad"},
		{wrapped{&Problem{Line: 9, Column: 9, Path: "sheep.a.x", Text: "bad"}}, "9:9: sheep.a.x: bad"},
	} {
		file := write(t, section)
		types := map[string]CheckSheep{"x": func(*Config, Sheep) error { return test.err }}
		_, err := Loader{Types: types}.Load(file)
		if err == nil {
			t.Errorf("%v was dropped", test.err)
			continue
		}
		got := strings.ReplaceAll(strings.ReplaceAll(err.Error(), file+":", ""), "\n", "|")
		if got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

type wrapped struct{ error }

func (w wrapped) Unwrap() error { return w.error }

func TestLevels(t *testing.T) {
	for word, want := range map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn, "error": slog.LevelError,
		"INFO": slog.LevelInfo, "Warn": slog.LevelWarn, "CRITICAL": slog.LevelError, "fatal": slog.LevelError,
	} {
		c, err := Loader{}.Load(write(t, "data_root: /data\nsheep: {}\nlogging: {level: "+word+"}\n"))
		if err != nil {
			t.Errorf("%s: %v", word, err)
		} else if got := c.Logging.SlogLevel(); got != want {
			t.Errorf("%s: got %s", word, got)
		}
	}
}

// A registry address that cannot begin an image name is refused.
func TestRegistryURL(t *testing.T) {
	for url, want := range map[string]string{
		"https://registry.example.com/team": "",
		"localhost:5000":                    "",
		"https://docker.io/library":         "",
		"https://docker.io":                 "name the namespace, as in https://docker.io/library",
		"http://myregistry":                 "a host without a dot needs a port, as in http://myregistry:80",
		"http://my_registry:5000":           "its host has an underscore",
		"https://registry.example.com/Team": "its path has capital letters",
	} {
		_, err := Loader{}.Load(write(t, "data_root: /data\nregistry:\n  url: "+url+"\nsheep: {}\n"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), ":3:8: registry.url: ") || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", url, err, want)
		}
	}
}

// TestDropIns merges the files of FILE.d over the file. Problems name the file that has
// them.
func TestDropIns(t *testing.T) {
	file := write(t, "data_root: /data\nlogging: {level: info, format: json}\nsheep:\n  a: {type: bare, working_directory: /m, env: {A: one, B: two}}\n")
	put := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(file+".d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(file+".d", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("20-more.yml", "logging: {level: debug}\nsheep:\n  a: {env: {B: three}}\n  b: {type: bare, working_directory: /n}\n")
	put("10-first.yaml", "logging: {level: error}\nnode: first\ndata_root:\n")
	put("not-read.txt", "nonsense: [")
	put(".hidden.yml", "nonsense: [")
	c, err := Loader{Types: corpusTypes(), Env: lookupIn(nil)}.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	var a bareSheep
	if err := c.Sheep[0].Decode(&a); err != nil {
		t.Fatal(err)
	}
	if c.Logging.Level != "debug" || c.Logging.Format != "json" || c.Node != "first" || c.DataRoot != "/data" || len(c.Sheep) != 2 || a.Env["A"] != "one" || a.Env["B"] != "three" {
		t.Errorf("%v, %v", c, a.Env)
	}
	put("30-wrong.yml", "api: {port: 70000}\nsheep:\n  b:\n    portt: 1\n")
	put("40-syntax.yml", "sheep: {\n")
	_, err = Loader{Types: corpusTypes(), Env: lookupIn(nil)}.Load(file)
	for _, want := range []string{
		file + ".d/30-wrong.yml:1:13: api.port: ", file + ".d/30-wrong.yml:4:5: sheep.b.portt: unknown key", file + ".d/40-syntax.yml:",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
}

// TestConfigDir: $CONFIG_DIR is the file's directory, unless it is set.
func TestConfigDir(t *testing.T) {
	file := write(t, "data_root: $CONFIG_DIR/data\nsheep:\n  a: {type: bare, working_directory: x}\n")
	for set, want := range map[string]string{"": filepath.Join(filepath.Dir(file), "data"), "/elsewhere": "/elsewhere/data"} {
		env := map[string]string{}
		if set != "" {
			env["CONFIG_DIR"] = set
		}
		c, err := Loader{Types: corpusTypes(), Env: lookupIn(env)}.Load(file)
		if err != nil || c.DataRoot != want {
			t.Errorf("%q: %v, %v", set, c, err)
		}
	}
}

// TestPorts: the same port on two addresses is no conflict.
func TestPortsOfAddresses(t *testing.T) {
	for text, wrong := range map[string]bool{
		"api: {host: 127.0.0.1, port: 7000}\nstorage: {listen: 10.0.0.1:7000}":   false,
		"api: {host: 127.0.0.1, port: 7000}\nstorage: {listen: 127.0.0.1:7000}":  true,
		"api: {host: 0.0.0.0, port: 7000}\nstorage: {listen: 127.0.0.1:7000}":    true,
		"api: {host: '::', port: 7000}\nstorage: {listen: 127.0.0.1:7000}":       true,
		"api: {host: localhost, port: 7000}\nstorage: {listen: 127.0.0.1:7000}":  true,
		"api: {host: '::1', port: 7000}\nstorage: {listen: 127.0.0.1:7000}":      false,
		"api: {host: 10.0.0.1, port: 7001}\nstorage: {listen: 'localhost:7000'}": false,
	} {
		_, err := Loader{Types: corpusTypes(), Env: lookupIn(nil)}.Load(write(t, "data_root: /data\nsheep: {}\n"+text+"\n"))
		if (err != nil) != wrong || err != nil && !strings.Contains(err.Error(), "duplicate port") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
