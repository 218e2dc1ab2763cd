package build

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// AnyInputs are the parts of the images that do not use shepherd's runner interface.
type AnyInputs struct {
	// Digit and CogServer are the programs examples/any/digit and
	// examples/any/cogserver, built without cgo.
	Digit, CogServer string
	// Script is examples/any/python/predict.py.
	Script string
	// Model is the directory of the digits model.
	Model string
	// Dir is where the layers' files are made. They must stay until the image is
	// pushed.
	Dir string
}

// tree is the files of a layer: the source of each by its path.
type tree map[string]string

// entries returns the files and their directories, sorted.
func (t tree) entries() ([]entry, error) {
	all := map[string]entry{}
	for name, source := range t {
		info, err := os.Stat(source)
		if err != nil {
			return nil, err
		}
		all[name] = entry{name, source, int64(info.Mode().Perm())}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			all[dir] = entry{dir, "", 0o755}
		}
	}
	all["tmp"] = entry{"tmp", "", 0o1777}
	list := make([]entry, 0, len(all))
	for _, e := range all {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b entry) int { return slices.Compare(strings.Split(a.path, "/"), strings.Split(b.path, "/")) })
	return list, nil
}

// image makes an image of one layer.
func (t tree) image(dir, what string, config v1.Config) (v1.Image, error) {
	list, err := t.entries()
	if err != nil {
		return nil, err
	}
	layer, err := files(dir, list...)
	if err != nil {
		return nil, err
	}
	config.WorkingDir = "/"
	config.Env = append(config.Env, "PATH=/usr/bin:/bin")
	return assemble(runtime.GOARCH, config, []part{{layer, what}})
}

func (t tree) addModel(dir, at string) {
	for _, name := range []string{"config.yaml", "weights.bin"} {
		t[path.Join(at, name)] = filepath.Join(dir, name)
	}
}

// Shell makes an image with busybox's shell and a program that classifies digits.
// It has no command of its own.
func Shell(in AnyInputs) (v1.Image, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	for _, program := range []string{busybox, in.Digit} {
		if err := checkRunner(program); err != nil {
			return nil, err
		}
	}
	t := tree{"bin/sh": busybox, "bin/digit": in.Digit}
	t.addModel(in.Model, "model")
	return t.image(in.Dir, "busybox, the digits program and its model", v1.Config{Entrypoint: []string{"/bin/sh"}})
}

// Python makes an image with this machine's Python and a script.
func Python(in AnyInputs) (v1.Image, error) {
	python, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		return nil, fmt.Errorf("%w (apt-get install python3)", err)
	}
	t := tree{"usr/bin/python3": python, "app/predict.py": in.Script, "app/weights.bin": filepath.Join(in.Model, "weights.bin")}
	out, err := exec.Command("ldd", python).Output()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", python, err)
	}
	for _, m := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllSubmatch(out, -1) {
		library := string(bytes.TrimSpace(m[1]))
		source, err := filepath.EvalSymlinks(library)
		if err != nil {
			return nil, err
		}
		t[strings.TrimPrefix(library, "/")] = source
	}
	standard := "/usr/lib/" + filepath.Base(python)
	skipped := []string{"__pycache__", "test", "idlelib", "tkinter", "ensurepip", "distutils", "lib2to3", "pydoc_data"}
	err = filepath.WalkDir(standard, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains(skipped, d.Name()) || strings.HasPrefix(d.Name(), "config-")):
			return filepath.SkipDir
		case d.Type().IsRegular():
			t[strings.TrimPrefix(name, "/")] = name
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t.image(in.Dir, "Python and a script", v1.Config{Entrypoint: []string{"/usr/bin/python3", "/app/predict.py"}})
}

// Cog makes an image like those of Cog: with a server and Cog's label.
func Cog(in AnyInputs) (v1.Image, error) {
	if err := checkRunner(in.CogServer); err != nil {
		return nil, err
	}
	t := tree{"usr/bin/cogserver": in.CogServer}
	t.addModel(in.Model, "model")
	return t.image(in.Dir, "a stand-in for Cog's server, and its model", v1.Config{
		Entrypoint: []string{"/usr/bin/cogserver"}, Labels: map[string]string{"run.cog.version": "0.9.4"},
		ExposedPorts: map[string]struct{}{"5000/tcp": {}},
	})
}
