package config_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/runtime"
)

// A caller gives the loader a check for each sheep type. The problems that the checks return
// are sorted by position among all others.
func ExampleLoader() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "shepherd.yml")
	err = os.WriteFile(file, []byte(`data_root: /tmp/shepherd-data
storage:
  access_key: shepherd
  secret_key: [hunter2]
sheep:
  field:
    type: bare
    portt: 9001
    working_directory: models
`), 0o600)
	if err != nil {
		panic(err)
	}

	loader := config.Loader{Types: map[string]config.CheckSheep{
		"bare": func(_ *config.Config, s config.Sheep) error {
			var settings struct {
				Type             string `yaml:"type"`
				Port             int    `yaml:"port"`
				WorkingDirectory string `yaml:"working_directory"`
			}
			if err := s.Decode(&settings); err != nil {
				return err
			}
			if settings.WorkingDirectory == "" {
				return &runtime.FieldError{Field: "working_directory", Problem: "required key is missing"}
			}
			return nil
		},
	}}
	_, err = loader.Load(file)
	if problems, ok := err.(config.Problems); ok {
		for _, p := range problems {
			fmt.Printf("%d:%d: %s: %s\n", p.Line, p.Column, p.Path, p.Text)
		}
	}
	// Output:
	// 4:15: storage.secret_key: expected a string, found a list
	// 8:5: sheep.field.portt: unknown key; did you mean "port"? Expected one of gpu_memory, idle_timeout, limits, port, preload, shared, type, working_directory
}
