package daemon

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestConfigurations reads configuration files of the shapes that people write, with
// the real sheep types. What comes of each stands beside it.
func TestConfigurations(t *testing.T) {
	for name, value := range map[string]string{
		"DATA": "/tmp/case", "STORAGE": "http://127.0.0.1:9000", "KEY": "key", "SECRET": "hunter2", "PORT": "9001",
		"HOME": "/home/dolly", "STATE_DIRECTORY": "/tmp/case/state", "RUNTIME_DIRECTORY": "", "NOTIFY_SOCKET": "", "DEBUG": "", "LOG_LEVEL": "",
	} {
		t.Setenv(name, value)
	}
	schema := compiledSchema(t)
	files, err := filepath.Glob("testdata/configs/*.yml")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	hostname := regexp.MustCompile(`(?m)^node: .*$`)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			cfg, err := LoadConfig(file)
			got := ""
			switch {
			case err == nil:
				got = hostname.ReplaceAllString(cfg.String(), "node: HOSTNAME")
				for _, warning := range append(cfg.API.Warnings(), cfg.DeviceWarnings()...) {
					got += "warning: " + warning + "\n"
				}
			default:
				got = err.Error() + "\n"
			}
			if strings.Contains(got, "hunter2") {
				t.Error("a secret is shown")
			}
			golden := strings.TrimSuffix(file, ".yml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, readErr := os.ReadFile(golden)
			if readErr != nil || got != string(want) {
				t.Errorf("got\n%s\nwant\n%s%v", got, want, readErr)
			}
			// An editor with the schema finds nothing wrong with what is right.
			if err != nil {
				return
			}
			text, readErr := os.ReadFile(file)
			if readErr != nil {
				t.Fatal(readErr)
			}
			var document any
			if err := yaml.Unmarshal(bytes.TrimPrefix(text, []byte("\ufeff")), &document); err != nil {
				t.Skip("the library cannot read it as a whole: ", err)
			}
			asJSON, jsonErr := json.Marshal(document)
			if jsonErr != nil {
				t.Fatal(jsonErr)
			}
			value, jsonErr := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
			if jsonErr != nil {
				t.Fatal(jsonErr)
			}
			if err := schema.Validate(value); err != nil {
				t.Errorf("the schema refuses it: %v", err)
			}
		})
	}
}

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := ConfigSchema()
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("shepherd.schema.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("shepherd.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// TestSchemaRefuses what an editor is to mark, and describes every key.
func TestSchemaRefuses(t *testing.T) {
	schema := compiledSchema(t)
	for name, text := range map[string]string{
		"no data_root": `{"sheep": {}}`, "an unknown key": `{"data_root": "/d", "sheep": {}, "api": {"portt": 1}}`,
		"a wrong type": `{"data_root": "/d", "sheep": {}, "api": {"port": "many"}}`, "an unknown sheep type": `{"data_root": "/d", "sheep": {"a": {"type": "x"}}}`,
		"another type's key": `{"data_root": "/d", "sheep": {"a": {"type": "docker", "working_directory": "/x"}}}`,
		"no size":            `{"data_root": "/d", "sheep": {"a": {"type": "docker", "memory": "lots"}}}`,
	} {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if schema.Validate(value) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	text, err := ConfigSchema()
	if err != nil {
		t.Fatal(err)
	}
	var whole map[string]any
	if err := json.Unmarshal(text, &whole); err != nil {
		t.Fatal(err)
	}
	described := 0
	var walk func(path string, value any)
	walk = func(path string, value any) {
		node, _ := value.(map[string]any)
		properties, _ := node["properties"].(map[string]any)
		for key, value := range properties {
			property := value.(map[string]any)
			if !strings.HasPrefix(path, ".gpu.xids") && property["properties"] == nil && property["items"] == nil && property["const"] == nil && property["description"] == nil {
				t.Errorf("%s.%s is not described", path, key)
			}
			described++
			walk(path+"."+key, value)
		}
		if items := node["items"]; items != nil {
			walk(path+"[]", items)
		}
		if all, ok := node["additionalProperties"].(map[string]any); ok {
			walk(path+".NAME", all)
		}
		conditions, _ := node["allOf"].([]any)
		for _, condition := range conditions {
			walk(path, condition.(map[string]any)["then"])
		}
	}
	walk("", whole)
	if described < 100 {
		t.Errorf("only %d keys", described)
	}
}
