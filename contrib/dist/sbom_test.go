package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestSBOM lists this test's own program, and validates the list with the schema of the
// standard.
func TestSBOM(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	if err := os.Mkdir(filepath.Join(tree, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, filepath.Join(tree, "bin", "shepherdd")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Symlink("shepherdd", filepath.Join(tree, "bin", "shepherd")); err != nil {
		t.Fatal(err)
	}
	r := release{Version: "v1.2.0", Arch: "amd64", Time: time.Unix(1795000000, 0).UTC(), Tree: tree, Out: t.TempDir()}
	path, err := writeSBOM(r)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema(t).Validate(document); err != nil {
		t.Errorf("it is not CycloneDX 1.6: %#v", err)
	}

	var bom struct {
		Components []struct{ Type, Name, Version, PURL string }
	}
	if err := json.Unmarshal(content, &bom); err != nil {
		t.Fatal(err)
	}
	listed := make(map[string]int)
	for _, c := range bom.Components {
		listed[c.PURL]++
	}
	built, err := buildinfo.ReadFile(self)
	if err != nil || len(built.Deps) < 10 {
		t.Fatalf("this test is built from %d modules, %v", len(built.Deps), err)
	}
	for _, m := range built.Deps {
		if listed["pkg:golang/"+m.Path+"@"+m.Version] != 1 {
			t.Errorf("%s %s is not listed once", m.Path, m.Version)
		}
	}
	if listed["pkg:golang/std@"+strings.TrimPrefix(built.GoVersion, "go")] != 1 {
		t.Error("the standard library is not listed")
	}
	if want := len(built.Deps) + 2; len(bom.Components) != want { // and the program, but not its link
		t.Errorf("%d components are listed, not %d", len(bom.Components), want)
	}
}

// schema is the one that comes with the library's source.
func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "schema")
	c := jsonschema.NewCompiler()
	for _, name := range []string{"bom-1.6.schema.json", "spdx.schema.json", "jsf-0.82.schemax.json"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		parsed, err := jsonschema.UnmarshalJSON(f)
		if err != nil {
			t.Fatal(err)
		}
		id := "http://cyclonedx.org/schema/" + strings.Replace(name, "schemax", "schema", 1)
		if err := c.AddResource(id, parsed); err != nil {
			t.Fatal(err)
		}
	}
	compiled, err := c.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}
