package cdi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/gpu"
)

// FuzzSpecs puts anything where the machine's CDI specs are: what is wrong with a file
// is said in a line of its name, and a device that is listed is put into a container, or
// refused.
func FuzzSpecs(f *testing.F) {
	for _, name := range []string{"vendor.yaml", "vendor.json", "nvidia.yaml", "broken.yaml", "only-all.yaml", "too-new.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), "")
		f.Add(string(text), strings.Replace(string(text), "0.5.0", "0.6.0", 1))
	}
	f.Add("cdiVersion: 0.5.0\nkind: a.b/c\ndevices: [{name: x, containerEdits: {mounts: [{hostPath: /a, containerPath: /b}], hooks: [{hookName: createContainer, path: /h}], intelRdt: {}}}]\n", "\x00")
	f.Add("cdiVersion: \"99.0.0.\\n\"\nkind: a.b/c\n", "cdiVersion: 0.5.0\nkind: \"a.b/\\r\\e[31m\"\ndevices: [{name: \"\\0\"}]\n")
	f.Add("kind: &a {b: *a}\n", "kind: \"a\\nb/c\"\ncdiVersion: 99.0.0\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, one, two string) {
		for name, text := range map[string]string{"one.yaml": one, "two.json": two} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := New(Config{Dirs: []string{dir}})
		devices, err := s.Devices()
		if err != nil && (!errdefs.IsFailedPrecondition(err) || strings.ContainsFunc(err.Error(), unicode.IsControl) || !strings.Contains(err.Error(), dir)) {
			t.Errorf("%q", err)
		}
		for _, name := range devices {
			d, err := gpu.ParseDevice(name)
			if err != nil {
				continue // a sheep cannot ask for it
			}
			edit, err := s.Edit(t.Context(), []gpu.Grant{{Device: d}})
			if err != nil {
				t.Errorf("%s is listed: %v", name, err)
				continue
			}
			var spec specs.Spec
			if edit(&spec) != nil {
				continue // a device node that is not there
			}
			if _, err := json.Marshal(spec); err != nil {
				t.Error(err)
			}
		}
	})
}
