package storagetest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

func (s *suite) testFence(t *testing.T) {
	fencer, ok := s.store.(storage.Fencer)
	if s.Alone {
		if ok {
			t.Error("a store of one machine alone is a Fencer")
		}
		return
	}
	if !ok {
		t.Fatal("the store is no Fencer")
	}
	// apart stores outputs of an attempt apart.
	apart := func(t *testing.T, id job.ID, attempt int64, outputs map[string]string) storage.Apart {
		t.Helper()
		dir := t.TempDir()
		write(t, dir, outputs)
		noError(t, os.MkdirAll(dir+"/outputs", 0o755))
		a, err := fencer.CollectApart(t.Context(), id, attempt, openRoot(t, dir))
		noError(t, err)
		if got := a.Collected(); got.Files != len(outputs) {
			t.Errorf("CollectApart stored %+v, want %d files", got, len(outputs))
		}
		return a
	}
	before := map[string]string{input: "payload", job.StatusFile: "{}", "outputs/output": "earlier", "outputs/earlier": "x"}

	t.Run("Promote", func(t *testing.T) {
		outputs := map[string]string{"outputs/output": "result", "outputs/empty": "", "outputs/a/b": noise(200_000), "outputs/odd/ü +%20&": "odd"}
		id := s.fresh(t, before)
		a := apart(t, id, 7, outputs)
		noError(t, a.Promote(t.Context(), false))
		noError(t, a.Promote(t.Context(), false)) // again
		noError(t, a.Discard(t.Context()))
		noError(t, a.Discard(t.Context()))
		sameFiles(t, "without replace", s.stored(t, id), merge(before, outputs))
		a = apart(t, id, 8, outputs)
		noError(t, a.Promote(t.Context(), true))
		noError(t, a.Discard(t.Context()))
		sameFiles(t, "with replace", s.stored(t, id), merge(outputs, map[string]string{input: "payload", job.StatusFile: "{}"}))
	})

	t.Run("Nothing", func(t *testing.T) {
		id := s.fresh(t, before)
		a := apart(t, id, 1, nil)
		noError(t, a.Promote(t.Context(), true))
		noError(t, a.Discard(t.Context()))
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", job.StatusFile: "{}"})
	})

	// An attempt goes on after another one has taken its place and ended.
	t.Run("Late", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "payload"})
		late := apart(t, id, 1, map[string]string{"outputs/output": "late", "outputs/late": "late"})
		noError(t, fencer.Fence(t.Context(), id, 2))
		noError(t, fencer.Fence(t.Context(), id, 2))
		winner := apart(t, id, 2, map[string]string{"outputs/output": "winner"})
		noError(t, winner.Promote(t.Context(), true))
		noError(t, winner.Discard(t.Context()))
		if err := late.Promote(t.Context(), true); !errors.Is(err, storage.ErrFenced) {
			t.Errorf("the late attempt's outputs are promoted: %v", err)
		}
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", "outputs/output": "winner"})
		noError(t, late.Discard(t.Context()))
	})

	// Its own outputs are not what a Fence removes.
	t.Run("Own", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "payload"})
		a := apart(t, id, 12, map[string]string{"outputs/output": "own"})
		apart(t, id, 1, map[string]string{"outputs/output": "other"})
		noError(t, fencer.Fence(t.Context(), id, 12))
		noError(t, a.Promote(t.Context(), true))
		noError(t, a.Discard(t.Context()))
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", "outputs/output": "own"})
	})

	t.Run("Large", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "payload"})
		content := strings.Repeat("0123456789abcdef", (33<<20)/16)
		a := apart(t, id, 1, map[string]string{"outputs/big": content})
		noError(t, a.Promote(t.Context(), true))
		end := &job.Range{Offset: -20, Length: -1}
		if file, got := s.read(t, id, "outputs/big", end); file.Size != int64(len(content)) || got != content[len(content)-20:] {
			t.Errorf("a copy of a large file has %d bytes and ends with %q", file.Size, got)
		}
		served, ok := s.client.(*s3Client)
		if !ok {
			return
		}
		// A copy of a large file stands still before its parts are joined.
		core := minio.Core{Client: served.client}
		bucket, to := served.at(id, "outputs/big")
		_, from := served.at(id, ".attempts/1/outputs/big")
		upload, err := core.NewMultipartUpload(t.Context(), bucket, to, minio.PutObjectOptions{})
		noError(t, err)
		part, err := core.CopyObjectPart(t.Context(), bucket, from, bucket, to, upload, 1, 0, int64(len(content)), nil)
		noError(t, err)
		noError(t, fencer.Fence(t.Context(), id, 2))
		s.put(t, id, "outputs/big", "winner")
		// Some servers answer that the file is there; what it is counts.
		if _, err := core.CompleteMultipartUpload(t.Context(), bucket, to, upload, []minio.CompletePart{part}, minio.PutObjectOptions{}); err != nil {
			t.Logf("a copy that was under way: %v", err)
		}
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", "outputs/big": "winner"})
		if err := a.Promote(t.Context(), true); !errors.Is(err, storage.ErrFenced) {
			t.Errorf("a large file is copied after a Fence: %v", err)
		}
	})
}
