package container_test

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// specimen is an image as people bring them.
type specimen struct {
	config  func(*v1.Config)
	entries []testenv.TarEntry // beside /runner and /config.yaml
	script  string             // config.yaml
	sheep   string             // more of the sheep's configuration
	image   func(t *testing.T, w *world, plain v1.Image) remote.Taggable
	damage  func(t *testing.T, w *world, img v1.Image) // once it is pushed
}

func entrypoint(args ...string) func(*v1.Config) {
	return func(c *v1.Config) { c.Entrypoint, c.Cmd = args, []string{"/runner", "-p", "9999", "/config.yaml"} }
}

func user(name string) func(*v1.Config) { return func(c *v1.Config) { c.User = name } }

func dir(name string) testenv.TarEntry { return testenv.TarEntry{Name: name + "/", Type: tar.TypeDir} }

func file(name, text string) testenv.TarEntry {
	return testenv.TarEntry{Name: name, Data: []byte(text)}
}

// program is a program of this machine with the libraries that it is linked to.
func program(t *testing.T, path, pkg string) []testenv.TarEntry {
	t.Helper()
	path = testenv.Command(t, path, pkg)
	entries := []testenv.TarEntry{copied(t, path)}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Section(".interp") == nil {
		return entries
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, library := range regexp.MustCompile(`(/\S+) \(0x`).FindAllSubmatch(out, -1) {
		entries = append(entries, copied(t, string(library[1])))
	}
	return entries
}

func copied(t *testing.T, path string) testenv.TarEntry {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return testenv.TarEntry{Name: strings.TrimPrefix(path, "/"), Data: data}
}

// corpus is images as they are in the world, small.
func corpus(t *testing.T) map[string]specimen {
	shell := program(t, "/bin/busybox", "busybox-static")
	withShell := func(more ...testenv.TarEntry) []testenv.TarEntry {
		return append([]testenv.TarEntry{{Name: "bin/sh", Type: tar.TypeSymlink, Link: "/bin/busybox"}}, append(shell, more...)...)
	}
	long := strings.Repeat("x", 1000)
	return map[string]specimen{
		"scratch": {},
		"nix": {
			config: func(c *v1.Config) { c.Entrypoint[0], c.User, c.WorkingDir = "/bin/serve", "ada", "/home/ada" },
			entries: append(linkedAccounts(), dir("nix/store/h-serve"),
				testenv.TarEntry{Name: "nix/store/h-serve/serve", Type: tar.TypeSymlink, Link: "/runner"},
				testenv.TarEntry{Name: "bin", Type: tar.TypeSymlink, Link: "/nix/store/h-serve"}),
		},
		"tini":      {config: entrypoint("/usr/bin/tini-static", "--"), entries: program(t, "/usr/bin/tini-static", "tini")},
		"catatonit": {config: entrypoint("/usr/bin/catatonit", "--"), entries: program(t, "/usr/bin/catatonit", "catatonit")},
		"dumb-init": {config: entrypoint("/usr/bin/dumb-init", "--"), entries: program(t, "/usr/bin/dumb-init", "dumb-init")},
		"s6": {
			config: func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/usr/bin/s6-svscan", "/service"}, nil },
			entries: slices.Concat(withShell(
				dir("service"), dir("service/runner"), file("service/runner/run", "#!/bin/sh\nexec /runner -p 9999 /config.yaml\n"),
			), program(t, "/usr/bin/s6-svscan", "s6"), program(t, "/usr/bin/s6-supervise", "s6")),
		},
		"conda": { // a shell script that sets things up and gives way
			config:  entrypoint("/usr/local/bin/_entrypoint.sh"),
			entries: withShell(file("usr/local/bin/_entrypoint.sh", "#!/bin/sh\nset -e\nexport CONDA_PREFIX=/opt/conda\nexec \"$@\"\n")),
			script:  "expect CONDA_PREFIX=/opt/conda",
		},
		"shell-that-stays": {
			config: func(c *v1.Config) {
				c.Entrypoint, c.Cmd = []string{"/bin/sh", "-c"}, []string{"/runner -p 9999 /config.yaml; echo ended"}
			},
			entries: withShell(),
		},
		"user-number":          {config: user("1000")},
		"user-number-colon":    {config: user("1000:")},
		"user-name":            {config: user("ada"), entries: plainAccounts()},
		"user-name-group":      {config: user("ada:video"), entries: plainAccounts()},
		"user-unknown":         {config: user("eve"), entries: plainAccounts()},
		"user-of-the-sheep":    {config: user("ada"), entries: plainAccounts(), sheep: "user: \"1234:99\"\n"},
		"setgid-directory":     {config: func(c *v1.Config) { c.User, c.WorkingDir = "1000:1000", "/work" }, entries: []testenv.TarEntry{{Name: "work/", Type: tar.TypeDir, Mode: 0o2777, GID: 50}}},
		"read-only-root":       {sheep: "read_only: true\ntmpfs: {/tmp: 1048576}\n", entries: []testenv.TarEntry{{Name: "tmp/", Type: tar.TypeDir, Mode: 0o1777}}},
		"with-tmp":             {config: user("1000"), entries: []testenv.TarEntry{{Name: "tmp/", Type: tar.TypeDir, Mode: 0o1777}}},
		"no-working-directory": {config: func(c *v1.Config) { c.WorkingDir = "/not/there" }},
		"odd-environment":      {config: func(c *v1.Config) { c.Env = []string{"A=1", "B", "=x", "A=2", "C="} }, script: "expect A=2\nexpect C="},
		"huge-environment": {config: func(c *v1.Config) {
			for i := range 900 {
				c.Env = append(c.Env, fmt.Sprintf("V%d=%s", i, long))
			}
		}},
		"too-huge-environment": {config: func(c *v1.Config) {
			for i := range 1100 {
				c.Env = append(c.Env, fmt.Sprintf("V%d=%s", i, long))
			}
		}},
		"stop-signal":         {config: func(c *v1.Config) { c.StopSignal = "SIGINT" }, script: "ignore TERM\nquit SIGINT 42"},
		"stop-signal-number":  {config: func(c *v1.Config) { c.StopSignal = "10" }, script: "ignore TERM\nquit SIGUSR1 43"},
		"stop-signal-invalid": {config: func(c *v1.Config) { c.StopSignal = "SIGNONSENSE" }},
		"deaf":                {script: "ignore TERM"},
		"no-command":          {config: func(c *v1.Config) { c.Entrypoint, c.Cmd = nil, nil }},
		"no-program":          {config: func(c *v1.Config) { c.Entrypoint = []string{"serve-model"} }},
		"layers-127": {image: func(t *testing.T, w *world, plain v1.Image) remote.Taggable {
			var more []v1.Layer
			for i := range 127 - 2 {
				more = append(more, testenv.Layer(t, map[string][]byte{fmt.Sprintf("layers/%d", i): {byte(i)}}))
			}
			return appended(t, plain, more...)
		}},
		"zstd": {image: func(t *testing.T, w *world, plain v1.Image) remote.Taggable {
			return appended(t, mutate.MediaType(plain, types.OCIManifestSchema1), testenv.ZstdLayer(t, testenv.TarEntry{Name: "big", Data: bytes.Repeat([]byte("zstd"), 1<<16)}))
		}},
		"estargz": {image: func(t *testing.T, w *world, plain v1.Image) remote.Taggable {
			return appended(t, plain, testenv.EstargzLayer(t, "lazy", bytes.Repeat([]byte("estargz"), 1000)))
		}},
		"attestations": {image: func(t *testing.T, w *world, plain v1.Image) remote.Taggable {
			file, err := plain.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			attestation := appended(t, empty.Image, testenv.Layer(t, map[string][]byte{"in-toto.json": []byte("{}")}))
			return mutate.AppendManifests(empty.Index,
				mutate.IndexAddendum{Add: plain, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: file.OS, Architecture: file.Architecture}}},
				mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{
					Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
					Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
				}})
		}},
		"wrong-digest": {image: func(t *testing.T, w *world, plain v1.Image) remote.Taggable {
			return appended(t, plain, testenv.RandomLayer(t, "damaged", 5000, 99))
		}, damage: func(t *testing.T, w *world, img v1.Image) {
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			last := layers[len(layers)-1]
			digest, _ := last.Digest()
			size, _ := last.Size()
			w.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
				if strings.HasSuffix(r.URL.Path, digest.String()) {
					return &testenv.RegistryFault{Body: make([]byte, size)}
				}
				return nil
			})
		}},
		"wrong-diff-id": {image: func(t *testing.T, w *world, plain v1.Image) remote.Taggable {
			file, err := plain.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			file = file.DeepCopy()
			file.RootFS.DiffIDs[1] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
			img, err := mutate.ConfigFile(plain, file)
			if err != nil {
				t.Fatal(err)
			}
			return img
		}},
	}
}

func appended(t *testing.T, img v1.Image, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestCorpus loads and runs each image, has it do a job and stops it; what comes
// of that is in testdata/corpus.
func TestCorpus(t *testing.T)            { testCorpus(t, testenv.StartContainerd(t)) }
func TestCorpusContainerd2(t *testing.T) { testCorpus(t, testenv.StartContainerd2(t)) }

func testCorpus(t *testing.T, daemon *testenv.Containerd) {
	all := corpus(t)
	golden, err := filepath.Glob("testdata/corpus/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range golden {
		if _, ok := all[strings.TrimSuffix(filepath.Base(path), ".txt")]; !ok {
			t.Errorf("%s is of no image", path)
		}
	}
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, daemon)
			w.more = c.sheep
			if name != "deaf" {
				w.more += "grace: 60s\n" // a machine under load is no reason to kill
			}
			got := w.normal(w.try(t, name, c))
			path := filepath.Join("testdata/corpus", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// try says what becomes of an image.
func (w *world) try(t *testing.T, name string, c specimen) string {
	config := w.runner()
	if c.config != nil {
		c.config(&config)
	}
	img := testenv.Image(t, config, w.base, testenv.TarLayer(t, append(c.entries, testenv.TarEntry{Name: "config.yaml", Mode: 0o644, Data: []byte(c.script)})...))
	what := remote.Taggable(img)
	if c.image != nil {
		what = c.image(t, w, img)
	}
	w.registry.Push(t, name+":v1", what)
	if c.damage != nil {
		c.damage(t, w, what.(v1.Image))
	}
	m := job.Model{Name: name, Version: "v1"}
	h := w.inherit(t)
	if err := h.Sheep.Load(t.Context(), m, runtime.Discard); err != nil {
		return "load: " + err.Error() + "\n"
	}
	uid, gid, err := h.Sheep.(runtime.Owner).Owner(t.Context(), m)
	if err != nil {
		return "owner: " + err.Error() + "\n"
	}
	var load *runtime.LoadError
	if config.Entrypoint == nil || strings.HasPrefix(name, "no-program") || strings.HasPrefix(name, "too-") {
		err := h.Sheep.Run(t.Context(), runtime.Discard)
		if !errors.As(err, &load) {
			t.Fatalf("Run: %v, want a *runtime.LoadError", err)
		}
		h.NothingLeft()
		return "run: " + err.Error() + "\n"
	}
	h.Run()
	const id = "corpus"
	h.Prepare(id, "tell")
	outputs := filepath.Join(w.dataRoot(), runtimetest.Sheep, id, job.OutputDir)
	if err := os.Chown(outputs, uid, gid); err != nil {
		t.Fatal(err)
	}
	h.Do(id, "tell")
	told, err := os.ReadFile(filepath.Join(outputs, "told"))
	if err != nil {
		t.Fatal(err)
	}
	h.Stop()
	exit := h.Exit()
	if !exit.Stopped {
		t.Errorf("the runner was not stopped: %+v", exit)
	}
	if err := h.Sheep.Close(t.Context()); err != nil {
		t.Error(err)
	}
	h.NothingLeft()
	return fmt.Sprintf("owner: %d:%d\n%sstopped: %v\n", uid, gid, told, exit)
}

var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// normal takes out what differs from run to run.
func (w *world) normal(s string) string {
	s = strings.ReplaceAll(s, w.registry.Host, "REGISTRY")
	s = strings.ReplaceAll(s, w.dir, "DIR")
	return digests.ReplaceAllString(s, "DIGEST")
}
