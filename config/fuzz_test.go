package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// FuzzLoad: no input makes the loader panic, all problems have positions in the file, and no
// message shows a value of the environment.
func FuzzLoad(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yml", "../examples/configs/*.yml"} {
		files, err := globbed(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("no seeds in %s: %v", pattern, err)
		}
		for _, source := range files {
			f.Add(source)
		}
	}
	// Every variable holds a secret. Paths may be shown, so impossible paths must be refused
	// before they are used.
	const held = "zq7hunter2\x00"
	env := func(name string) (string, bool) {
		switch name {
		case "STATE_DIRECTORY", "DEBUG":
			return "", false
		}
		return held, !strings.HasPrefix(name, "UN")
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m := corpusMachine()
		m.env = env
		c, ps := Loader{Types: corpusTypes()}.parse([]source{{"f", text}}, m)
		lines := strings.Count(string(text), "\n") + strings.Count(string(text), "\r") + 1 // YAML breaks at both
		for _, p := range ps.inOrder("f") {
			if p.Line < 1 || p.Line > lines || p.Column < 1 || p.Text == "" {
				t.Errorf("a problem nowhere: %+v", p)
			}
			if strings.Contains(p.Error(), "zq7hunter2") || strings.ContainsAny(p.Error(), "\n\r") {
				t.Errorf("shows too much: %q", p.Error())
			}
		}
		if len(ps) > 0 {
			return
		}
		for _, s := range []string{c.String(), fmt.Sprintf("%#v %+v", c, c.Sheep)} {
			for _, secret := range []string{c.Storage.SecretKey.Reveal(), password(c)} {
				if len(secret) > 8 && !strings.Contains(string(text), secret) && strings.Contains(s, secret) {
					t.Errorf("shows a secret:\n%s", s)
				}
			}
		}
	})
}

func password(c *Config) string {
	if c.Registry == nil {
		return ""
	}
	return c.Registry.Password.Reveal()
}

func globbed(pattern string) (sources [][]byte, err error) {
	files, err := os.ReadDir(pattern[:strings.LastIndexByte(pattern, '/')])
	for _, file := range files {
		if strings.HasSuffix(file.Name(), ".yml") {
			source, err := os.ReadFile(pattern[:strings.LastIndexByte(pattern, '/')+1] + file.Name())
			if err != nil {
				return nil, err
			}
			sources = append(sources, source)
		}
	}
	return sources, err
}

// FuzzSecret puts a secret into a file with any text around it: no message shows it.
func FuzzSecret(f *testing.F) {
	for _, lead := range []string{"", "\"", "'", "|", "!!", "!", "&", "*", "[", "{a: ", "- ", "@"} {
		for _, after := range []string{"", "\n", "\"\n", "]}\n", ": $UNSET\n", ", a: b}\n"} {
			f.Add(lead, after)
		}
	}
	f.Fuzz(func(t *testing.T, lead, after string) {
		if strings.ContainsAny(lead, "\n\r") || strings.ContainsAny(lead, ",}") {
			return // the secret would be in another key
		}
		if strings.Contains(lead, "${") || strings.HasSuffix(lead, "$") {
			return // it is the name of a variable
		}
		for _, before := range []string{"storage:\n  secret_key: ", "registry: {url: h, password: ", "storage: {secret_key: "} {
			text := "data_root: /data\nsheep: {}\n" + before + lead + "zq7hunter2" + after
			_, ps := Loader{Types: corpusTypes()}.parse([]source{{"f", []byte(text)}}, corpusMachine())
			if said := ps.inOrder("f").Error(); strings.Contains(said, "zq7hunter2") {
				t.Errorf("%q shows a secret:\n%s", text, said)
			}
		}
	})
}

// FuzzExpand expands references in any text: a value is inserted once and is not expanded
// again, and no message shows one.
func FuzzExpand(f *testing.F) {
	for _, seed := range []string{"$A", "${A}", "${A:-x}", "${A-}", "$$A", "$${A}", "${UNSET:-$A}", "${3_X}", "$", "${", "${A", "$a", "${A:?x}", "$A$A$UNSET$UNSET"} {
		f.Add(seed)
	}
	const value = "zq7$A${A}$$hunter2"
	f.Fuzz(func(t *testing.T, text string) {
		expanded, referred, wrong := expand(text, func(name string) (string, bool) { return value, !strings.HasPrefix(name, "UN") })
		if !referred && expanded != text {
			t.Errorf("%q without references became %q", text, expanded)
		}
		if !strings.Contains(text, "$") && referred {
			t.Errorf("%q has no reference", text)
		}
		if strings.Contains(strings.Join(wrong, "\n"), "hunter2") {
			t.Errorf("a value is shown: %q", wrong)
		}
		if n := strings.Count(expanded, "hunter2"); n != strings.Count(expanded, value) && !strings.Contains(text, "hunter2") {
			t.Errorf("%q: a value was expanded again: %q", text, expanded)
		}
	})
}

// FuzzDropIns merges any file over any other: it does not panic, and each problem has a
// position in one of the files.
func FuzzDropIns(f *testing.F) {
	f.Add("data_root: /data\nsheep: {a: {type: bare, working_directory: /x}}\n", "sheep: {a: {port: 9001}, b: {type: docker}}\n")
	f.Add("data_root: /data\napi: &x {port: 1}\nx-y: *x\nsheep: {}\n", "api: {tokens: [{name: a}]}\ndata_root:\n")
	f.Add("a: &a [1]\ndata_root: *a\n", "data_root: {b: *a}\nsheep: []\n")
	f.Fuzz(func(t *testing.T, main, over string) {
		_, ps := Loader{Types: corpusTypes()}.parse([]source{{"f", []byte(main)}, {"f.d/1.yml", []byte(over)}}, corpusMachine())
		for _, p := range ps.inOrder("f") {
			if p.File != "f" && p.File != "f.d/1.yml" || p.Line < 1 || p.Column < 1 || p.Text == "" {
				t.Errorf("a problem nowhere: %+v", p)
			}
		}
	})
}
