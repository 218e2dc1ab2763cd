package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/runtime"
)

var update = flag.Bool("update", false, "rewrite the expected files of the corpus")

// The environment and the machine for the corpus.
var corpusEnv = map[string]string{
	"REGISTRY_URL":        "http://0.0.0.0:6000",
	"STORAGE_URL":         "http://0.0.0.0:7000",
	"STORAGE_ACCESS_KEY":  "AKIAIOSFODNN7EXAMPLE",
	"_STORAGE_SECRET_KEY": secretText,
	"SHEEP_PORT_1":        "9001",
	"HOME_PATH":           "examples",
	"MODEL_EXAMPLE":       "emloop_example",
	"NOT_A_NUMBER":        secretText,
	"EMPTY":               "",
	"TRUE":                "true",
	"HOME":                "/home/dolly",
	"REFERENCE":           "$SHEEP_PORT_1",
	"LOAD_TIMEOUT":        "45m",
}

// secretText stands for secrets in the corpus. No output may contain it.
const secretText = "wJalrXUtnFEMI/K7MDENG/hunter2"

func lookupIn(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
}

func corpusMachine() machine {
	return machine{env: lookupIn(corpusEnv), root: true, hostname: "box", directory: "/home/dolly"}
}

// bareSheep has the keys of a bare sheep.
type bareSheep struct {
	Type             string            `yaml:"type"`
	Port             int               `yaml:"port"`
	Devices          gpu.Devices       `yaml:"devices"`
	WorkingDirectory string            `yaml:"working_directory"`
	StdoutFile       string            `yaml:"stdout_file"`
	StderrFile       string            `yaml:"stderr_file"`
	Command          []string          `yaml:"command"`
	Env              map[string]string `yaml:"env"`
}

func checkBare(_ *Config, s Sheep) error {
	var c bareSheep
	err := s.Decode(&c)
	if c.WorkingDirectory == "" {
		err = errors.Join(err, &runtime.FieldError{Field: "working_directory", Problem: "required key is missing"})
	}
	for i, d := range c.Devices.List {
		if d.Name == "13" {
			err = errors.Join(err, &runtime.FieldError{Field: fmt.Sprintf("devices[%d]", i), Problem: "brings no luck"})
		}
	}
	if _, ok := c.Env["PATH"]; ok {
		err = errors.Join(err, &runtime.FieldError{Field: "env.PATH", Problem: "is not for you to set"})
	}
	return err
}

type dockerSheep struct {
	Type                 string      `yaml:"type"`
	Port                 int         `yaml:"port"`
	Devices              gpu.Devices `yaml:"devices"`
	AutoremoveContainers bool        `yaml:"autoremove_containers"`
}

func checkDocker(c *Config, s Sheep) error {
	err := s.Decode(new(dockerSheep))
	if c.Registry == nil {
		err = errors.Join(err, errors.New("needs a registry"))
	}
	return err
}

func corpusTypes() map[string]CheckSheep {
	return map[string]CheckSheep{"bare": checkBare, "docker": checkDocker}
}

func parseFile(t *testing.T, file string) (*Config, Problems) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c, ps := Loader{Types: corpusTypes(), LedgerURL: postgres.CheckURL}.parse([]source{{filepath.Base(file), text}}, corpusMachine())
	return c, ps.inOrder(filepath.Base(file))
}

// golden compares with the golden file beside the configuration file.
func golden(t *testing.T, file, got string) {
	t.Helper()
	expected := strings.TrimSuffix(file, ".yml") + ".txt"
	if *update {
		if err := os.WriteFile(expected, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(expected)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
	if strings.Contains(got, secretText) || strings.Contains(got, "hunter2") {
		t.Errorf("%s shows a secret:\n%s", file, got)
	}
}

func corpus(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus in %s: %v", pattern, err)
	}
	return files
}

func TestGoodFiles(t *testing.T) {
	for _, file := range corpus(t, "testdata/*.good.yml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, ps := parseFile(t, file)
			if len(ps) > 0 {
				t.Fatal(ps)
			}
			got := c.String()
			for _, w := range c.Warnings {
				got += "# warning: " + w.Error() + "\n"
			}
			golden(t, file, got)
		})
	}
}

func TestBadFiles(t *testing.T) {
	for _, file := range corpus(t, "testdata/*.bad.yml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, ps := parseFile(t, file)
			if len(ps) == 0 {
				t.Fatal("the file was accepted")
			}
			golden(t, file, ps.Error()+"\n")
			for _, line := range strings.Split(ps.Error(), "\n") {
				if !strings.HasPrefix(line, filepath.Base(file)+":") {
					t.Errorf("a problem takes more than one line: %q", line)
				}
			}
		})
	}
}
