package embedded_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

// smallDisk returns a directory on a file system of its own.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("shepherd-test", dir, "tmpfs", 0, options); err != nil {
		testenv.Missing(t, "mounting a tmpfs", "run the tests as root: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	s := start(t, smallDisk(t, "size=24m"))
	core := s.core()
	b := s.bucket(core.Client, "full")
	kept := random(1, 8<<20)
	put(t, core.Client, b, "kept", kept)
	full := func(what string, err error) {
		t.Helper()
		if got := minio.ToErrorResponse(err); got.StatusCode != http.StatusInsufficientStorage || got.Code != "InsufficientStorage" || !strings.Contains(got.Message, "disk") {
			t.Errorf("%s on a full disk: %v (%d %s)", what, err, got.StatusCode, got.Code)
		}
	}
	big := random(2, 20<<20) // more than is left: known before the first byte
	_, err := core.PutObject(t.Context(), b, "big", bytes.NewReader(big), int64(len(big)), "", "", minio.PutObjectOptions{})
	full("a large object", err)
	_, err = core.PutObject(t.Context(), b, "kept", bytes.NewReader(big), int64(len(big)), "", "", minio.PutObjectOptions{})
	full("a replacement", err)
	id, err := core.NewMultipartUpload(t.Context(), b, "parts", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	part, err := core.PutObjectPart(t.Context(), b, "parts", id, 1, bytes.NewReader(kept), int64(len(kept)), minio.PutObjectPartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// There is no room for parts and object, and none is needed.
	if _, err := core.CompleteMultipartUpload(t.Context(), b, "parts", id, []minio.CompletePart{{PartNumber: 1, ETag: part.ETag}}, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = core.CopyObject(t.Context(), b, "kept", b, "copy", nil, minio.CopySrcOptions{}, minio.PutObjectOptions{})
	full("a copy", err)
	var stored int
	for ; err == nil || stored == 0; stored++ { // and found out on the way, in small steps
		piece := random(uint64(stored), 600<<10)
		if _, err = core.PutObject(t.Context(), b, fmt.Sprint("small/", stored), bytes.NewReader(piece), int64(len(piece)), "", "", minio.PutObjectOptions{}); err != nil {
			break
		}
	}
	full("the last straw", err)
	if !bytes.Equal(get(t, core.Client, b, "kept"), kept) {
		t.Error("what was stored before is damaged")
	}
	for i := range stored {
		if !bytes.Equal(get(t, core.Client, b, fmt.Sprint("small/", i)), random(uint64(i), 600<<10)) {
			t.Errorf("small/%d is damaged", i)
		}
	}
	if err := core.RemoveObject(t.Context(), b, "parts", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	put(t, core.Client, b, "after", kept) // there is room again
}

func TestNoInodesLeft(t *testing.T) {
	s := start(t, smallDisk(t, "size=8m,nr_inodes=20"))
	c := s.client(nil)
	b := s.bucket(c, "inodes")
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = c.PutObject(t.Context(), b, fmt.Sprintf("dir%d/x", i), strings.NewReader("x"), 1, minio.PutObjectOptions{})
	}
	wantCode(t, err, http.StatusInsufficientStorage, "InsufficientStorage")
	if got := get(t, c, b, "dir0/x"); string(got) != "x" {
		t.Errorf("what was stored before holds %q", got)
	}
}
