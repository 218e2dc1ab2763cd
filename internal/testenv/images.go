package testenv

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Layer makes an image layer from files by path, all executable.
func Layer(t testing.TB, files map[string][]byte) v1.Layer {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	dirs := map[string]bool{".": true}
	header := func(h *tar.Header) {
		h.ModTime = time.Unix(1e9, 0)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		var parents []string
		for dir := path.Dir(name); !dirs[dir]; dir = path.Dir(dir) {
			dirs[dir] = true
			parents = append(parents, dir)
		}
		for _, dir := range slices.Backward(parents) {
			header(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
		}
		header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(files[name]))})
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return stored(t, archive.Bytes())
}

// TarEntry is one entry of a layer's archive.
type TarEntry struct {
	Name     string
	Type     byte   // as in package tar; 0 is a regular file
	Link     string // the target of a symbolic or hard link
	Mode     int64  // 0 is 0755
	UID, GID int
	Data     []byte
}

// TarLayer makes a layer of an image from entries, in their order. Directories
// that are not listed are not in the archive.
func TarLayer(t testing.TB, entries ...TarEntry) v1.Layer {
	t.Helper()
	return stored(t, tarOf(t, entries))
}

func tarOf(t testing.TB, entries []TarEntry) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, e := range entries {
		h := &tar.Header{
			Typeflag: cmp.Or(e.Type, tar.TypeReg), Name: e.Name, Linkname: e.Link, Mode: cmp.Or(e.Mode, 0o755),
			Uid: e.UID, Gid: e.GID, Size: int64(len(e.Data)), ModTime: time.Unix(1e9, 0),
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// stored makes a layer of an archive without compression, which costs time and gains nothing for
// random data.
func stored(t testing.TB, archive []byte) v1.Layer {
	t.Helper()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive)), nil
	}, tarball.WithCompressionLevel(0))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// RandomLayer makes a layer of one file of random bytes, the same for the same
// seed.
func RandomLayer(t testing.TB, name string, size int, seed uint64) v1.Layer {
	t.Helper()
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	return Layer(t, map[string][]byte{name: data})
}

// Image makes an image for this machine's platform.
func Image(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Config = config
	file.OS, file.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// ZstdLayer is TarLayer, compressed with zstd.
func ZstdLayer(t testing.TB, entries ...TarEntry) v1.Layer {
	t.Helper()
	archive := tarOf(t, entries)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive)), nil
	}, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// EstargzLayer is a layer of one file as lazily pulling snapshotters have them:
// gzip members that can be read one by one, a table of contents and a footer with
// its position. Others read it as a gzip layer.
func EstargzLayer(t testing.TB, name string, data []byte) v1.Layer {
	t.Helper()
	var out bytes.Buffer
	member := func(extra, content []byte) {
		w := gzip.NewWriter(&out)
		w.Extra = extra
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const end = 1024 // two empty blocks end an archive
	first := tarOf(t, []TarEntry{{Name: name, Data: data}})
	member(nil, first[:len(first)-end])
	toc := out.Len()
	member(nil, tarOf(t, []TarEntry{{Name: "stargz.index.json", Data: fmt.Appendf(nil,
		`{"version":1,"entries":[{"name":%q,"type":"reg","size":%d,"digest":"sha256:%x","offset":0}]}`, name, len(data), sha256.Sum256(data))}}))
	member(fmt.Appendf(nil, "SG\x16\x00%016xSTARGZ", toc), nil)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}
