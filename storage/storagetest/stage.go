package storagetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// big is the size of a large file, in bytes.
const big = 64 << 20

func (s *suite) testStage(t *testing.T) {
	t.Run("Nested", func(t *testing.T) {
		inputs := map[string]string{input: "payload", "inputs/empty": "", "inputs/a/b/c/deep": "deep", "inputs/a/b/other": noise(100_000)}
		id := s.fresh(t, merge(inputs, map[string]string{"outputs/old": "not an input", job.StatusFile: "{}", "inputs2": "no"}))
		dir := t.TempDir()
		s.stage(t, id, dir, inputs)
		for _, folder := range []string{"inputs", "outputs", "inputs/a/b/c"} {
			if info, err := os.Stat(filepath.Join(dir, folder)); err != nil || !info.IsDir() || info.Mode().Perm() != 0o755 {
				t.Errorf("folder %s: %v, %v", folder, info, err)
			}
		}
		if info, err := os.Stat(filepath.Join(dir, input)); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("a runner of another user cannot read %s: %v, %v", input, info, err)
		}
	})

	t.Run("OddName", func(t *testing.T) {
		inputs := make(map[string]string)
		for _, name := range oddNames {
			inputs["inputs/"+name] = name
		}
		s.stage(t, s.fresh(t, inputs), t.TempDir(), inputs)
	})

	t.Run("Many", func(t *testing.T) {
		inputs := make(map[string]string)
		for n := range 1500 {
			inputs[fmt.Sprintf("inputs/%d/%04d", n%7, n)] = fmt.Sprint(n)
		}
		s.stage(t, s.fresh(t, inputs), t.TempDir(), inputs)
	})

	t.Run("Big", func(t *testing.T) {
		id := s.fresh(t, nil)
		want := sha256.New()
		bucket, key := s.at(id, "inputs/big")
		_, err := s.client.PutObject(t.Context(), bucket, key, io.TeeReader(io.LimitReader(noiseReader(), big), want), big, minio.PutObjectOptions{})
		noError(t, err)
		dir := t.TempDir()
		staged, err := s.store.Stage(t.Context(), id, dir, 0)
		noError(t, err)
		if got := sumFile(t, filepath.Join(dir, "inputs/big")); staged.Bytes != big || got != fmt.Sprintf("%x", want.Sum(nil)) {
			t.Errorf("%d bytes staged, or not the stored ones", staged.Bytes)
		}
	})

	t.Run("EarlierOutputs", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "x", "outputs/of-an-earlier-run": "y", "job_status.json": "{}"})
		dir := t.TempDir()
		staged, err := s.store.Stage(t.Context(), id, dir, 0)
		noError(t, err)
		if want := (storage.Staged{Files: 1, Bytes: 1, Outputs: true}); staged != want {
			t.Errorf("Stage found %+v, want %+v", staged, want)
		}
		sameFiles(t, "disk", onDisk(t, dir), map[string]string{input: "x"})
	})

	t.Run("FolderMarker", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "x", "inputs/": "", "inputs/folder/": "", "inputs/folder/file": "y", "inputs/hollow/": ""})
		dir := t.TempDir()
		s.stage(t, id, dir, map[string]string{input: "x", "inputs/folder/file": "y"})
		if info, err := os.Stat(filepath.Join(dir, "inputs/hollow")); err != nil || !info.IsDir() {
			t.Errorf("an empty folder is %v, %v", info, err)
		}
	})

	t.Run("NoInputs", func(t *testing.T) {
		s.stage(t, s.fresh(t, map[string]string{"outputs/x": "x"}), t.TempDir(), nil)
	})

	t.Run("Unknown", func(t *testing.T) {
		_, err := s.store.Stage(t.Context(), s.id(), t.TempDir(), 0)
		class(t, "Stage", err, errdefs.IsNotFound)
	})

	t.Run("Limit", func(t *testing.T) {
		inputs := map[string]string{"inputs/a": "12345", "inputs/b": "67890"}
		id := s.fresh(t, inputs)
		dir := t.TempDir()
		_, err := s.store.Stage(t.Context(), id, dir, 9)
		class(t, "Stage", err, errdefs.IsResourceExhausted)
		sameFiles(t, "disk", onDisk(t, dir), nil)
		staged, err := s.store.Stage(t.Context(), id, dir, 10)
		noError(t, err)
		if want := (storage.Staged{Files: 2, Bytes: 10}); staged != want {
			t.Errorf("Stage found %+v, want %+v", staged, want)
		}
		sameFiles(t, "disk", onDisk(t, dir), inputs)
	})

	t.Run("Again", func(t *testing.T) {
		inputs := map[string]string{input: "payload", "inputs/changed": "before", "inputs/lost": "lost", "inputs/folder/x": "x"}
		id := s.fresh(t, inputs)
		dir := t.TempDir()
		s.stage(t, id, dir, inputs)
		write(t, dir, map[string]string{"inputs/changed": "BEFORE", "inputs/strange": "left by a runner", "inputs/strange.d/x": "x"})
		noError(t, os.Remove(filepath.Join(dir, "inputs/lost")))
		noError(t, os.RemoveAll(filepath.Join(dir, "inputs/folder")))
		noError(t, os.WriteFile(filepath.Join(dir, "inputs/folder"), nil, 0o644)) // in the way
		s.put(t, id, "inputs/changed", "after!")
		inputs["inputs/changed"] = "after!"
		s.stage(t, id, dir, inputs)
		// A file that a runner changed is put right though storage has it unchanged.
		write(t, dir, map[string]string{input: "PAYLOAD"})
		s.stage(t, id, dir, inputs)
	})

	t.Run("Canceled", func(t *testing.T) {
		_, err := s.store.Stage(canceled(), s.fresh(t, map[string]string{input: "x"}), t.TempDir(), 0)
		class(t, "Stage", err, errdefs.IsCanceled)
	})
}

// stage stages a job and checks that just the inputs are on disk.
func (s *suite) stage(t *testing.T, id job.ID, dir string, inputs map[string]string) {
	t.Helper()
	var size int64
	for _, content := range inputs {
		size += int64(len(content))
	}
	staged, err := s.store.Stage(t.Context(), id, dir, 0)
	noError(t, err)
	if staged.Bytes != size || staged.Files != len(inputs) {
		t.Errorf("%d inputs of %d bytes are said to be %+v", len(inputs), size, staged)
	}
	sameFiles(t, "working directory", onDisk(t, dir), inputs)
}

func sumFile(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	noError(t, err)
	defer file.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, file)
	noError(t, err)
	return fmt.Sprintf("%x", sum.Sum(nil))
}
