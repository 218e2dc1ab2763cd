package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// file is a layer in a file.
type file struct {
	path           string
	digest, diffID v1.Hash
	size           int64
}

func (f *file) Digest() (v1.Hash, error)            { return f.digest, nil }
func (f *file) DiffID() (v1.Hash, error)            { return f.diffID, nil }
func (f *file) Size() (int64, error)                { return f.size, nil }
func (f *file) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (f *file) Compressed() (io.ReadCloser, error)  { return os.Open(f.path) }

func (f *file) Uncompressed() (io.ReadCloser, error) {
	compressed, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	plain, err := gzip.NewReader(compressed)
	if err != nil {
		return nil, errors.Join(err, compressed.Close())
	}
	return &uncompressed{plain, compressed}, nil
}

type uncompressed struct {
	*gzip.Reader
	compressed *os.File
}

func (u *uncompressed) Close() error { return errors.Join(u.Reader.Close(), u.compressed.Close()) }

// hasher forwards what is written to it, and has its digest and size.
type hasher struct {
	to   io.Writer
	sum  hash.Hash
	size int64
}

func newHasher(to io.Writer) *hasher { return &hasher{to: to, sum: sha256.New()} }

func (h *hasher) Write(b []byte) (int, error) {
	n, err := h.to.Write(b)
	h.sum.Write(b[:n])
	h.size += int64(n)
	return n, err
}

func (h *hasher) hash() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.sum.Sum(nil))}
}
