package storagetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

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
		for _, name := range s.oddNames() {
			inputs["inputs/"+name] = name
		}
		s.stage(t, s.fresh(t, inputs), t.TempDir(), inputs)
	})

	t.Run("Many", func(t *testing.T) {
		inputs := make(map[string]string)
		for n := range manyFiles {
			inputs[fmt.Sprintf("inputs/%d/%04d", n%7, n)] = fmt.Sprint(n)
		}
		s.stage(t, s.fresh(t, inputs), t.TempDir(), inputs)
	})

	t.Run("Big", func(t *testing.T) {
		id := s.fresh(t, nil)
		want := sha256.New()
		noError(t, s.client.Put(t.Context(), id, "inputs/big", io.TeeReader(io.LimitReader(noiseReader(), big), want), big))
		dir := t.TempDir()
		staged, err := s.store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{})
		noError(t, err)
		if got := sumFile(t, filepath.Join(dir, "inputs/big")); staged.Bytes != big || got != fmt.Sprintf("%x", want.Sum(nil)) {
			t.Errorf("%d bytes staged, or not the stored ones", staged.Bytes)
		}
	})

	t.Run("EarlierOutputs", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "x", "outputs/of-an-earlier-run": "y", "job_status.json": "{}"})
		dir := t.TempDir()
		staged, err := s.store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{})
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
		_, err := s.store.Stage(t.Context(), s.id(), openRoot(t, t.TempDir()), storage.Options{})
		class(t, "Stage", err, errdefs.IsNotFound)
	})

	t.Run("Admit", func(t *testing.T) {
		inputs := map[string]string{"inputs/a": "12345", "inputs/b": "67890"}
		id := s.fresh(t, merge(inputs, map[string]string{"outputs/old": "not counted"}))
		dir := t.TempDir()
		var asked []int64
		full := fmt.Errorf("no room: %w", errdefs.ErrResourceExhausted)
		_, err := s.store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{Admit: func(size int64) error {
			asked = append(asked, size)
			return full
		}})
		if !errors.Is(err, full) || errors.Is(err, storage.ErrWorkDir) {
			t.Errorf("Stage answers %v for what Admit refused", err)
		}
		sameFiles(t, "disk", onDisk(t, dir), nil)
		staged, err := s.store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{Admit: func(size int64) error {
			asked = append(asked, size)
			if files := onDisk(t, dir); len(files) > 0 {
				t.Errorf("before Admit was asked there are %v", files)
			}
			return nil
		}})
		noError(t, err)
		if want := (storage.Staged{Files: 2, Bytes: 10, Outputs: true}); staged != want {
			t.Errorf("Stage found %+v, want %+v", staged, want)
		}
		if !slices.Equal(asked, []int64{10, 10}) {
			t.Errorf("Admit was asked for %v bytes, want 10 each time", asked)
		}
		sameFiles(t, "disk", onDisk(t, dir), inputs)
	})

	t.Run("After", s.testStageAfter)
	t.Run("Owned", s.testOwned)
	t.Run("BrokenDirectory", s.testBrokenDirectory)

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
		_, err := s.store.Stage(canceled(), s.fresh(t, map[string]string{input: "x"}), openRoot(t, t.TempDir()), storage.Options{})
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
	staged, err := s.store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{})
	noError(t, err)
	if staged.Bytes != size || staged.Files != len(inputs) {
		t.Errorf("%d inputs of %d bytes are said to be %+v", len(inputs), size, staged)
	}
	sameFiles(t, "working directory", onDisk(t, dir), inputs)
}

// testStageAfter stages the outputs of other jobs beside the inputs.
func (s *suite) testStageAfter(t *testing.T) {
	first := s.fresh(t, map[string]string{input: "not an output", "outputs/output": "one", "outputs/a/b": noise(100_000), job.StatusFile: "{}"})
	second := s.fresh(t, map[string]string{input: "of one without outputs"})
	id := s.fresh(t, map[string]string{input: "mine"})
	how := storage.Options{After: []job.ID{first, second}}
	dir := t.TempDir()
	want := map[string]string{input: "mine", "inputs/" + string(first) + "/output": "one", "inputs/" + string(first) + "/a/b": noise(100_000)}
	for range 2 { // what is there stays
		staged, err := s.store.Stage(t.Context(), id, openRoot(t, dir), how)
		noError(t, err)
		if staged != (storage.Staged{Files: 3, Bytes: 100_007}) {
			t.Errorf("Stage found %+v", staged)
		}
		sameFiles(t, "disk", onDisk(t, dir), want)
	}
	if info, err := os.Stat(filepath.Join(dir, "inputs", string(second))); err != nil || !info.IsDir() {
		t.Errorf("the folder of a job without outputs is %v, %v", info, err)
	}
	s.put(t, id, "inputs/"+string(second)+"/x", "beside")
	want["inputs/"+string(second)+"/x"] = "beside"
	_, err := s.store.Stage(t.Context(), id, openRoot(t, dir), how)
	noError(t, err)
	sameFiles(t, "disk", onDisk(t, dir), want)

	for _, name := range []string{string(first), string(first) + "/output", string(first) + "/a"} {
		id := s.fresh(t, map[string]string{"inputs/" + name: "in the way"})
		_, err := s.store.Stage(t.Context(), id, openRoot(t, t.TempDir()), how)
		class(t, "Stage with an input "+name, err, errdefs.IsInvalidArgument)
	}
}

// testOwned stages for a runner of another user, with root's rights, or else for
// this process's own.
func (s *suite) testOwned(t *testing.T) {
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 12345, 54321
	}
	owned := storage.Options{Owned: true, UID: uid, GID: gid}
	inputs := map[string]string{input: "payload", "inputs/a/b/file": "x", "inputs/empty": ""}
	id := s.fresh(t, merge(inputs, map[string]string{"inputs/hollow/": ""}))
	check := func(t *testing.T, dir string, err error) {
		t.Helper()
		noError(t, err)
		sameFiles(t, "disk", onDisk(t, dir), inputs)
		for _, name := range []string{"inputs", "outputs", "inputs/a", "inputs/a/b", "inputs/hollow", input, "inputs/a/b/file", "inputs/empty"} {
			info, err := os.Lstat(filepath.Join(dir, name))
			noError(t, err)
			if stat := info.Sys().(*syscall.Stat_t); int(stat.Uid) != uid || int(stat.Gid) != gid {
				t.Errorf("%s belongs to %d:%d, want %d:%d", name, stat.Uid, stat.Gid, uid, gid)
			}
		}
	}
	dir := t.TempDir()
	_, err := s.store.Stage(t.Context(), id, openRoot(t, dir), owned)
	check(t, dir, err)

	// What a Stage for another user left is taken over.
	dir = t.TempDir()
	s.stage(t, id, dir, inputs)
	_, err = s.store.Stage(t.Context(), id, openRoot(t, dir), owned)
	check(t, dir, err)
}

// testBrokenDirectory has the directory's side fail: callers must be able to tell
// that from a storage that is away.
func (s *suite) testBrokenDirectory(t *testing.T) {
	id := s.fresh(t, map[string]string{input: noise(3 << 20), "inputs/more": noise(3 << 20)})
	for name, c := range map[string]struct {
		root func(t *testing.T) *os.Root
		is   func(error) bool
	}{
		"Removed": {func(t *testing.T) *os.Root {
			dir := filepath.Join(t.TempDir(), "job")
			noError(t, os.Mkdir(dir, 0o755))
			root := openRoot(t, dir)
			noError(t, os.Remove(dir))
			return root
		}, errdefs.IsUnavailable},
		"FileForInputs": {func(t *testing.T) *os.Root {
			dir := t.TempDir()
			write(t, dir, map[string]string{"inputs": "in the way"})
			return openRoot(t, dir)
		}, errdefs.IsUnavailable},
		"FileForOutputs": {func(t *testing.T) *os.Root {
			dir := t.TempDir()
			write(t, dir, map[string]string{"outputs": "in the way"})
			return openRoot(t, dir)
		}, errdefs.IsUnavailable},
		"LinkForInputs": {func(t *testing.T) *os.Root {
			dir := t.TempDir()
			noError(t, os.Symlink(t.TempDir(), filepath.Join(dir, "inputs")))
			return openRoot(t, dir)
		}, errdefs.IsUnavailable},
		"ReadOnly": {func(t *testing.T) *os.Root { return openRoot(t, mount(t, "ro")) }, errdefs.IsUnavailable},
		"Full":     {func(t *testing.T) *os.Root { return openRoot(t, fill(t, mount(t, "size=8m"), 5<<20)) }, errdefs.IsResourceExhausted},
		"TooSmall": {func(t *testing.T) *os.Root { return openRoot(t, mount(t, "size=1m")) }, errdefs.IsInvalidArgument},
		"NoInodes": {func(t *testing.T) *os.Root { return openRoot(t, mount(t, "nr_inodes=2")) }, errdefs.IsResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.store.Stage(t.Context(), id, c.root(t), storage.Options{})
			class(t, "Stage", err, c.is)
			if !errors.Is(err, storage.ErrWorkDir) {
				t.Errorf("%v does not say that the directory is to blame", err)
			}
		})
	}
}

// mount mounts a small file system of its own, which takes root's rights.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	var flags uintptr
	if options == "ro" {
		flags, options = syscall.MS_RDONLY, ""
	}
	if err := syscall.Mount("shepherd-test", dir, "tmpfs", flags, options); err != nil {
		if os.Getenv("CI") == "" && errors.Is(err, syscall.EPERM) {
			t.Skipf("mounting a file system takes CAP_SYS_ADMIN: %v", err)
		}
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { noError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// fill takes size bytes of dir's disk away.
func fill(t *testing.T, dir string, size int) string {
	t.Helper()
	noError(t, os.WriteFile(filepath.Join(dir, "ballast"), []byte(noise(size)), 0o644))
	return dir
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
