// Package build makes the example images without Docker: the digits runner on
// an empty base, and Tesseract on a root file system of Debian's packages.
package build

import (
	"archive/tar"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/iterait/shepherd/examples/images/layer"
)

// port is where a runner in a container listens, by shepherd's convention.
const port = "9999"

// part is a layer and its line in the image's history.
type part struct {
	layer v1.Layer
	what  string
}

// assemble makes an image of layers, the lowest first, for Linux on a processor
// that Go calls arch.
func assemble(arch string, config v1.Config, parts []part) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: arch, OS: "linux", Created: v1.Time{Time: layer.Time}, Config: config,
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: p.layer, History: v1.History{Created: v1.Time{Time: layer.Time}, CreatedBy: p.what},
		})
		if err != nil {
			return nil, err
		}
	}
	return img, nil
}

// Inputs are the parts of an image.
type Inputs struct {
	// Runner is the path of the runner's program, for this machine and built
	// without cgo.
	Runner string
	// Model is the directory of the model's config.yaml.
	Model string
	// Dir is where the layers' files are made. They must stay until the image is
	// pushed.
	Dir string
}

// checkRunner returns an error for a program that needs a dynamic linker, with what to do
// about it.
func checkRunner(path string) error {
	program, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("the runner %s: %w (make build makes it)", path, err)
	}
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("the runner %s needs a dynamic linker, which the image has not: build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// entry is a file or, without a source, a directory of a layer that is made of
// single files.
type entry struct {
	path, source string
	mode         int64
}

// files makes a layer of entries, which are in order, all owned by root.
func files(dir string, entries ...entry) (v1.Layer, error) {
	w, err := layer.NewWriter(dir)
	if err != nil {
		return nil, err
	}
	defer w.Discard()
	for _, e := range entries {
		if err := add(w, e); err != nil {
			return nil, err
		}
	}
	return w.Finish()
}

func add(w *layer.Writer, e entry) error {
	if e.source == "" {
		return w.Add(&tar.Header{Typeflag: tar.TypeDir, Name: e.path, Mode: e.mode}, nil)
	}
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return w.Add(&tar.Header{Typeflag: tar.TypeReg, Name: e.path, Size: info.Size(), Mode: e.mode}, f)
}

// split reads a tar stream and makes one layer of each of the writers' entries:
// sort says which writer an entry is for, nil for none.
func split(archive io.Reader, sort func(*tar.Header) *layer.Writer) error {
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a root file system: %w", err)
		}
		if w := sort(h); w != nil {
			if err := w.Add(h, r); err != nil {
				return err
			}
		}
	}
}

// Push puts an image into a registry, such as 127.0.0.1:6000, under a name such
// as digits:v1, and returns the whole reference. Registries of this machine are
// used over plain HTTP.
func Push(ctx context.Context, img v1.Image, registry, image string) (string, error) {
	ref, err := name.ParseReference(strings.TrimSuffix(registry, "/") + "/" + image)
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref.Name(), nil
}

// Size returns how many bytes an image takes in a registry.
func Size(img v1.Image) (int64, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	size := manifest.Config.Size
	for _, l := range manifest.Layers {
		size += l.Size
	}
	return size, nil
}
