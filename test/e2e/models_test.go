package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUnusableModels submits jobs for models that cannot be loaded, for each reason in a
// model's directory, and checks the message and the advice for the client.
func TestUnusableModels(t *testing.T) {
	const (
		name    = "Check the model's name and version."
		correct = "The reason says why the model could not be loaded. When that is corrected, `shepherd retry JOB`"
		reads   = "A bare sheep runs it with the program `PROGRAMS/shepherd-runner`, which reads `DIR/config.yaml`."
	)
	c := newClient(t, "shepherd")
	for _, m := range []struct {
		model  string
		config string // "-" for none
		change func(dir string) error
		reason string
		advice []string
	}{
		{"nothing", "-", os.Remove, "file `DIR/config.yaml` does not exist", []string{name, "A bare sheep runs it once there is a directory `DIR` with a `config.yaml`."}},
		{"empty-directory", "-", nil, "file `DIR/config.yaml` does not exist", []string{name, "A bare sheep runs it once there is a file `config.yaml` in `DIR`."}},
		{"a-directory", "-", func(dir string) error { return os.Mkdir(dir+"/config.yaml", 0o755) }, "file `DIR/config.yaml` does not exist", []string{name, "A bare sheep runs it once there is a file `config.yaml` in `DIR`."}},
		{"a-loop", "-", func(dir string) error { return os.Symlink("config.yaml", dir+"/config.yaml") }, "too many levels of symbolic links", []string{name, "The daemon must be able to read `DIR/config.yaml`; the reason says why it is not."}},
		{"empty", "", nil, "DIR/config.yaml: no `command` in it; add the program that processes a job, as in `command: [python3, predict.py]`", []string{correct, reads}},
		{"no-command", "env: {A: b}\n", nil, "as in `command: [python3, predict.py]`)", []string{correct, reads}},
		{"the-originals", "model: {class: m.Model}\n", nil, "if it is an emloop model, put the Python package's shepherd-runner first in PATH", []string{correct, reads}},
		{"no-words", "command: []\n", nil, "command: expected a program and its arguments, as in [python3, predict.py]", []string{correct, reads}},
		{"text", "command: python3 predict.py\n", nil, "DIR/config.yaml: 1:10: ", []string{correct, reads}},
		{"no-yaml", "command: [\n", nil, "DIR/config.yaml: 1:10: ", []string{correct, reads}},
		{"no-program", "command: [no-such-program]\n", nil, "command: exec: \"no-such-program\": executable file not found in $PATH", []string{correct, reads}},
		{"no-file", "command: [./predict]\n", nil, "DIR/predict\": stat DIR/predict: no such file or directory", []string{correct, reads}},
		{"not-executable", "command: [./config.yaml]\n", nil, "DIR/config.yaml\": permission denied", []string{correct, reads}},
		{"a-typo", "command: [cat]\ntimeuot: 5s\n", nil, "2:1: unknown field \"timeuot\"", []string{correct, reads}},
		{"contract", "command: [cat]\ncontract: hot\n", nil, "contract \"hot\" is none of command, warm and cog", []string{correct, reads}},
		{"timeout", "command: [cat]\ntimeout: 30\n", nil, "timeout 30: expected a duration with its unit", []string{correct, reads}},
		{"variable", "command: [cat]\nenv: {\"A=B\": c}\n", nil, "env: \"A=B\" cannot be the name of a variable", []string{correct, reads}},
	} {
		dir := filepath.Join(c.w.dir, "models", m.model, "v1")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if m.config != "-" {
			write(t, dir+"/config.yaml", m.config)
		}
		if m.change != nil {
			if err := m.change(dir); err != nil {
				t.Fatal(err)
			}
		}
		o := c.expect(3, "", args("submit", m.model+":v1", "shepherd.yml", "-q", "--id", m.model))
		told := strings.NewReplacer(dir, "DIR", programs, "PROGRAMS", m.model+"`", "JOB`").Replace(o.errors)
		if !strings.Contains(told, m.reason) {
			t.Errorf("%s: no %q in\n%s", m.model, m.reason, told)
		}
		steps := regexp.MustCompile(`(?m)^What to do: (.*)$`).FindAllStringSubmatch(told, -1)
		if len(steps) != len(m.advice) {
			t.Errorf("%s: %d steps, want %d, in\n%s", m.model, len(steps), len(m.advice), told)
			continue
		}
		for i, step := range steps {
			if !strings.HasPrefix(step[1], m.advice[i]) {
				t.Errorf("%s: it advises\n     %s\nwant %s", m.model, step[1], m.advice[i])
			}
		}
	}
}
