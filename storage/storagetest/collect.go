package storagetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

func (s *suite) testCollect(t *testing.T) {
	t.Run("Nested", func(t *testing.T) {
		outputs := map[string]string{"outputs/output": "result", "outputs/empty": "", "outputs/a/b/c": noise(200_000)}
		for _, name := range s.oddNames() {
			if len(name) < 200 || !s.ShortNames {
				outputs["outputs/odd/"+name] = name
			}
		}
		dir := t.TempDir()
		write(t, dir, merge(outputs, map[string]string{input: "stays here", "log": "too"}))
		noError(t, os.MkdirAll(filepath.Join(dir, "outputs/hollow"), 0o755))
		id := s.fresh(t, map[string]string{input: "payload"})
		var size int64
		for _, content := range outputs {
			size += int64(len(content))
		}
		if got, want := s.collect(t, id, dir, false), (storage.Collected{Files: len(outputs), Bytes: size}); !reflect.DeepEqual(got, want) {
			t.Errorf("Collect stored %+v, want %+v", got, want)
		}
		want := merge(outputs, map[string]string{input: "payload"})
		sameFiles(t, "place", s.stored(t, id), want)
		s.collect(t, id, dir, true) // again
		sameFiles(t, "place", s.stored(t, id), want)
	})

	t.Run("Many", func(t *testing.T) {
		outputs := make(map[string]string)
		for n := range manyFiles {
			outputs[fmt.Sprintf("outputs/%d/%04d", n%7, n)] = fmt.Sprint(n)
		}
		dir := t.TempDir()
		write(t, dir, outputs)
		id := s.fresh(t, map[string]string{input: "payload", "outputs/stale": "x"})
		s.collect(t, id, dir, true)
		sameFiles(t, "place", s.stored(t, id), merge(outputs, map[string]string{input: "payload"}))

		// And all of them go again, which is more than one request can delete.
		empty := t.TempDir()
		write(t, empty, map[string]string{"outputs/output": "only"})
		s.collect(t, id, empty, true)
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", "outputs/output": "only"})
	})

	t.Run("Gone", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "payload", "outputs/earlier": "stays"})
		dir := filepath.Join(t.TempDir(), "gone")
		noError(t, os.Mkdir(dir, 0o755))
		root := openRoot(t, dir)
		noError(t, os.Remove(dir))
		_, err := s.store.Collect(t.Context(), id, root, true)
		if !errors.Is(err, storage.ErrWorkDir) || !errors.Is(err, os.ErrNotExist) || errdefs.IsNotFound(err) || strings.Contains(err.Error(), dir) {
			t.Errorf("Collect of a directory that is gone, whose place clients need not know: %v", err)
		}
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", "outputs/earlier": "stays"})
	})

	t.Run("Replace", func(t *testing.T) {
		before := map[string]string{input: "payload", job.StatusFile: "{}", "outputs/output": "old", "outputs/old/file": "old", "outputs2": "not an output"}
		dir := t.TempDir()
		write(t, dir, map[string]string{"outputs/output": "new", "outputs/new": "new"})
		id := s.fresh(t, before)
		s.collect(t, id, dir, false)
		sameFiles(t, "without replace", s.stored(t, id), merge(before, map[string]string{"outputs/output": "new", "outputs/new": "new"}))
		s.collect(t, id, dir, true)
		sameFiles(t, "with replace", s.stored(t, id), map[string]string{input: "payload", job.StatusFile: "{}", "outputs2": "not an output", "outputs/output": "new", "outputs/new": "new"})
	})

	t.Run("NoOutputs", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "payload", "outputs/old": "old"})
		dir := t.TempDir()
		s.collect(t, id, dir, false)
		sameFiles(t, "without outputs", s.stored(t, id), map[string]string{input: "payload", "outputs/old": "old"})
		noError(t, os.Mkdir(filepath.Join(dir, "outputs"), 0o755))
		s.collect(t, id, dir, true)
		sameFiles(t, "with none", s.stored(t, id), map[string]string{input: "payload"})
	})

	t.Run("Big", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string]string{"outputs/small": "beside it"})
		file, err := os.Create(filepath.Join(dir, "outputs/big"))
		noError(t, err)
		want := sha256.New()
		_, err = io.Copy(io.MultiWriter(file, want), io.LimitReader(noiseReader(), big+1))
		noError(t, err)
		noError(t, file.Close())
		id := s.fresh(t, map[string]string{input: "payload"})
		s.collect(t, id, dir, false)
		opened, err := s.store.Open(t.Context(), id, "outputs/big", nil)
		noError(t, err)
		defer opened.Body.Close()
		got := sha256.New()
		_, err = io.Copy(got, opened.Body)
		noError(t, err)
		if opened.Size != big+1 || fmt.Sprintf("%x", got.Sum(nil)) != fmt.Sprintf("%x", want.Sum(nil)) {
			t.Errorf("a file of %d bytes comes back as %d, or changed", big+1, opened.Size)
		}
	})

	t.Run("Huge", func(t *testing.T) { // with nothing in it
		dir := t.TempDir()
		write(t, dir, map[string]string{"outputs/output": "beside it", "outputs/sub/huge": ""})
		noError(t, os.Truncate(filepath.Join(dir, "outputs/sub/huge"), storage.MaxFile+1))
		id := s.fresh(t, map[string]string{input: "payload"})
		_, err := s.store.Collect(t.Context(), id, openRoot(t, dir), true)
		class(t, "Collect", err, errdefs.IsInvalidArgument)
		if errors.Is(err, storage.ErrWorkDir) || !strings.Contains(err.Error(), "sub/huge") || !strings.Contains(err.Error(), "up to 5.0 TiB") {
			t.Errorf("Collect of a file that is too large: %v", err)
		}
	})

	if s.Bucket == "" {
		t.Run("Unknown", func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"outputs/output": "x"})
			_, err := s.store.Collect(t.Context(), s.id(), openRoot(t, dir), false)
			class(t, "Collect", err, errdefs.IsNotFound)
		})
	}

	t.Run("Canceled", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string]string{"outputs/output": "x"})
		_, err := s.store.Collect(canceled(), s.fresh(t, map[string]string{input: "x"}), openRoot(t, dir), true)
		class(t, "Collect", err, errdefs.IsCanceled)
	})
}

// collect collects a job's outputs.
func (s *suite) collect(t *testing.T, id job.ID, dir string, replace bool) storage.Collected {
	t.Helper()
	collected, err := s.store.Collect(t.Context(), id, openRoot(t, dir), replace)
	noError(t, err)
	return collected
}
