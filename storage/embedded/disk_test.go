package embedded_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/embedded"
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

// TestOutputLargerThanTheDisk: it will not fit, however long the job waits for room.
func TestOutputLargerThanTheDisk(t *testing.T) {
	s := start(t, smallDisk(t, "size=24m"))
	store, err := s.server.Store("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Init(t.Context(), "job", []byte("x")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, job.OutputDir), 0o755); err != nil {
		t.Fatal(err)
	}
	sparse := filepath.Join(dir, job.OutputDir, "sparse")
	if err := os.WriteFile(sparse, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for size, class := range map[int64]func(error) bool{24<<20 + 1: errdefs.IsInvalidArgument, 24 << 20: errdefs.IsResourceExhausted} {
		if err := os.Truncate(sparse, size); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Collect(t.Context(), "job", root, true); !class(err) || errors.Is(err, storage.ErrWorkDir) || !strings.Contains(err.Error(), "sparse") {
			t.Errorf("an output of %d bytes on a disk of 24 MiB: %v", size, err)
		}
	}
}

// TestMinFree keeps a part of the disk free: what would take from it is refused
// with the reason, and what was begun can still be ended.
func TestMinFree(t *testing.T) {
	s := start(t, smallDisk(t, "size=24m"), func(c *embedded.Config) { c.MinFree = 10 << 20 })
	core := s.core()
	b := s.bucket(core.Client, "floor")
	store, err := s.server.Store("", nil)
	if err != nil {
		t.Fatal(err)
	}
	low := func(what string, err error) {
		t.Helper()
		if got := minio.ToErrorResponse(err); got.StatusCode != http.StatusInsufficientStorage || !strings.Contains(got.Message, "min_free") {
			t.Errorf("%s: %v (%d)", what, err, got.StatusCode)
		}
	}
	if err := store.Init(t.Context(), "early", []byte("x")); err != nil {
		t.Fatal(err)
	}
	id, err := core.NewMultipartUpload(t.Context(), b, "parts", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	part, err := core.PutObjectPart(t.Context(), b, "parts", id, 1, strings.NewReader("part"), 4, minio.PutObjectPartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, core.Client, b, "kept", random(1, 8<<20))
	big := random(2, 8<<20) // leaves less than ten of the sixteen
	_, err = core.PutObject(t.Context(), b, "big", bytes.NewReader(big), int64(len(big)), "", "", minio.PutObjectOptions{})
	low("an object that is too large", err)
	put(t, core.Client, b, "small", random(3, 5<<20))
	put(t, core.Client, b, "last", random(4, 600<<10)) // what is left is just the floor's

	filler := random(5, 1<<20)
	_, err = core.PutObject(t.Context(), b, "more", bytes.NewReader(filler), int64(len(filler)), "", "", minio.PutObjectOptions{})
	low("an object", err)
	_, err = core.PutObjectPart(t.Context(), b, "parts", id, 2, bytes.NewReader(filler), int64(len(filler)), minio.PutObjectPartOptions{})
	low("a part", err)
	if err := store.Init(t.Context(), "late", filler); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "min_free") {
		t.Errorf("a job: %v", err)
	}
	if there, err := store.Exists(t.Context(), "late"); there || err != nil {
		t.Errorf("a job that was refused is there: %t, %v", there, err)
	}

	// What was begun.
	if _, err := core.CompleteMultipartUpload(t.Context(), b, "parts", id, []minio.CompletePart{{PartNumber: 1, ETag: part.ETag}}, minio.PutObjectOptions{}); err != nil {
		t.Errorf("completing an upload: %v", err)
	}
	if err := store.Put(t.Context(), "early", "outputs/output", bytes.NewReader(filler), int64(len(filler))); err != nil {
		t.Errorf("an output: %v", err)
	}
	if err := store.SetStatus(t.Context(), "early", job.Status{State: job.Done}); err != nil {
		t.Errorf("a status: %v", err)
	}
	if err := core.RemoveObject(t.Context(), b, "kept", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	put(t, core.Client, b, "after", filler) // there is room again
}
