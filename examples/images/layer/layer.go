// Package layer writes layers of container images without any container engine.
//
// A layer is a gzipped tar. The same entries always give the same bytes: entries must be sorted,
// all have the same time, and owners are numbers. Contents are written to a file, so memory does
// not grow with them.
package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
)

// Time is the modification time of everything in a layer.
var Time = time.Unix(0, 0).UTC()

// whiteout is the prefix of names that hide a file of a lower layer.
const whiteout = ".wh."

// xattr is the prefix of PAX records with extended attributes, such as file capabilities.
const xattr = "SCHILY.xattr."

// Writer writes one layer. Finish or Discard must be called.
type Writer struct {
	file       *os.File
	tar        *tar.Writer
	gzip       *gzip.Writer
	compressed *hasher // the compressed layer
	plain      *hasher // the tar stream

	last  []string        // the path of the entry before
	files map[string]bool // regular files so far, which hard links may name
}

// NewWriter returns a Writer whose file is made in dir.
func NewWriter(dir string) (*Writer, error) {
	f, err := os.CreateTemp(dir, "layer-*.tar.gz")
	if err != nil {
		return nil, fmt.Errorf("make a layer: %w", err)
	}
	w := &Writer{file: f, files: make(map[string]bool)}
	w.compressed = newHasher(f)
	w.gzip = gzip.NewWriter(w.compressed)
	w.plain = newHasher(w.gzip)
	w.tar = tar.NewWriter(w.plain)
	return w, nil
}

// Add adds an entry and, for a regular file, its content. Entries come in the
// order of their paths, compared component by component, as `tar --sort=name`
// writes them: each path once, a hard link after its target. Kept are path,
// type, mode, numeric owner, link target, device numbers and extended
// attributes. A path that leads out of the layer, or that would be taken for a
// whiteout, is an error.
func (w *Writer) Add(h *tar.Header, content io.Reader) error {
	if err := w.add(h, content); err != nil {
		return fmt.Errorf("add %s to a layer: %w", h.Name, err)
	}
	return nil
}

func (w *Writer) add(h *tar.Header, content io.Reader) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(path.Base(name), whiteout) {
		return fmt.Errorf("a name that begins with %s would remove a file instead", whiteout)
	}
	parts := strings.Split(name, "/")
	if slices.Compare(w.last, parts) >= 0 {
		return fmt.Errorf("it comes after %s: entries must be in order", strings.Join(w.last, "/"))
	}
	w.last = parts
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		Devmajor: h.Devmajor, Devminor: h.Devminor, ModTime: Time, Format: tar.FormatPAX,
	}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, xattr) {
			if out.PAXRecords == nil {
				out.PAXRecords = make(map[string]string)
			}
			out.PAXRecords[key] = value
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse: // the reader fills the holes
		out.Typeflag = tar.TypeReg
		w.files[name] = true
	case tar.TypeLink:
		if out.Linkname, err = clean(h.Linkname); err != nil {
			return err
		}
		if !w.files[out.Linkname] {
			return fmt.Errorf("it is a hard link to %s, which is no file of this layer before it", out.Linkname)
		}
		w.files[name] = true
	case tar.TypeDir:
		out.Name += "/"
	case tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fmt.Errorf("its type %q has no place in a layer", h.Typeflag)
	}
	if err := w.tar.WriteHeader(out); err != nil {
		return err
	}
	if out.Typeflag != tar.TypeReg {
		return nil
	}
	_, err = io.Copy(w.tar, content)
	return err
}

// clean returns a path of an archive in the form of layers: relative to the root, without a
// leading slash or dot.
func clean(name string) (string, error) {
	cleaned := path.Clean(strings.TrimLeft(name, "/"))
	if cleaned == "." || cleaned == ".." || strings.HasPrefix(cleaned, "../") {
		return "", fmt.Errorf("the path %q is not below the root", name)
	}
	return cleaned, nil
}

// Finish ends the layer. Its file stays until the caller removes the directory.
func (w *Writer) Finish() (v1.Layer, error) {
	err := errors.Join(w.tar.Close(), w.gzip.Close(), w.file.Close())
	if err != nil {
		os.Remove(w.file.Name())
		return nil, fmt.Errorf("finish a layer: %w", err)
	}
	return &file{
		path: w.file.Name(), digest: w.compressed.hash(), diffID: w.plain.hash(), size: w.compressed.size,
	}, nil
}

// Discard removes what was written. After Finish it does nothing.
func (w *Writer) Discard() {
	if w.file.Close() == nil {
		os.Remove(w.file.Name())
	}
}
