package workdir

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/storage"
)

func open(t *testing.T, path string, how storage.Options) *Dir {
	t.Helper()
	root, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := Open(root, how)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close(); root.Close() })
	return dir
}

func TestErrorClasses(t *testing.T) {
	for errno, is := range map[unix.Errno]func(error) bool{
		unix.ENOSPC: errdefs.IsResourceExhausted, unix.EDQUOT: errdefs.IsResourceExhausted,
		unix.EMFILE: errdefs.IsResourceExhausted, unix.ENFILE: errdefs.IsResourceExhausted,
		unix.EROFS: errdefs.IsUnavailable, unix.EIO: errdefs.IsUnavailable, unix.ENOTDIR: errdefs.IsUnavailable,
		unix.ELOOP: errdefs.IsUnavailable, unix.ENOENT: errdefs.IsUnavailable, unix.ESTALE: errdefs.IsUnavailable,
		unix.EACCES: errdefs.IsPermissionDenied, unix.EPERM: errdefs.IsPermissionDenied,
		unix.EFBIG: errdefs.IsInvalidArgument,
	} {
		err := wrap("open", "inputs/input", &os.PathError{Op: "openat", Path: "/srv/secret/inputs/input", Err: errno})
		if !errors.Is(err, storage.ErrWorkDir) || !is(err) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v, of another class", errno, err)
		}
		if text := err.Error(); !strings.Contains(text, `open "inputs/input"`) || strings.Contains(text, "/srv") {
			t.Errorf("%v becomes %q", errno, text)
		}
	}
	for _, errno := range []unix.Errno{unix.ENAMETOOLONG, unix.EILSEQ} {
		if err := wrap("create", "inputs/input", errno); errors.Is(err, storage.ErrWorkDir) || !errors.Is(err, storage.ErrBadName) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
}

// TestNoDescriptors runs out of file descriptors, which must neither lose what is
// there nor look like a name that is bad.
func TestNoDescriptors(t *testing.T) {
	path := t.TempDir()
	dir := open(t, path, storage.Options{})
	write(t, path, "part", "half")
	write(t, path, "outputs/x", "result")
	var held []int
	free := func() {
		for _, fd := range held {
			_ = unix.Close(fd)
		}
		held = nil
	}
	defer free()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	lower := limit
	lower.Cur = 64
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lower); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }()
	for {
		fd, err := unix.Dup(dir.fd())
		if err != nil {
			break
		}
		held = append(held, fd)
	}
	var w Warnings
	for name, err := range map[string]error{
		"Mkdir":   dir.Mkdir("inputs/a"),
		"Create":  func() error { _, err := dir.Create("part"); return err }(),
		"Outputs": dir.Outputs("outputs", &w, func(string) error { return nil }, func(Output) error { return nil }),
	} {
		if !errors.Is(err, storage.ErrWorkDir) || !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s without file descriptors: %v", name, err)
		}
	}
	free()
	if data, err := os.ReadFile(filepath.Join(path, "part")); string(data) != "half" {
		t.Errorf("what was there is %q, %v", data, err)
	}
}

// TestUnreadableOutputs collects, without root's rights, what a runner left
// without read permission.
func TestUnreadableOutputs(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"Directory": func(path string) error { return os.Mkdir(path, 0) },
		"Link": func(path string) error {
			return errors.Join(os.Mkdir(filepath.Dir(path)+"/d", 0), os.Symlink("d/x", path))
		},
		"File": func(path string) error { return os.WriteFile(path, []byte("x"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			if os.Getuid() == 0 {
				runtime.LockOSThread() // the thread loses its rights, and ends with the test
				if _, err := unix.SetfsuidRetUid(12345); err != nil {
					t.Fatal(err)
				}
			}
			path, err := os.MkdirTemp("", "workdir-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(path) })
			write(t, path, "outputs/good", "result")
			if err := plant(filepath.Join(path, "outputs/x")); err != nil {
				t.Fatal(err)
			}
			dir := open(t, path, storage.Options{})
			var w Warnings
			err = dir.Outputs("outputs", &w, func(string) error { return nil }, func(output Output) error {
				file, _, err := output.Open()
				if err == nil {
					file.Close()
				}
				return err
			})
			if !errors.Is(err, storage.ErrBadName) || errors.Is(err, storage.ErrWorkDir) || !strings.Contains(err.Error(), "read permission") {
				t.Errorf("Outputs: %v", err)
			}
		})
	}
}

// TestLeasedOutput collects a file on which a runner that is still alive holds a
// lease: opening it would wait until the kernel breaks that.
func TestLeasedOutput(t *testing.T) {
	path := t.TempDir()
	write(t, path, "outputs/x", "result")
	runner, err := os.OpenFile(filepath.Join(path, "outputs/x"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer runner.Close()
	if _, err := unix.FcntlInt(runner.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("this file system has no leases: %v", err)
	}
	dir := open(t, path, storage.Options{})
	var w Warnings
	read := func() error {
		return dir.Outputs("outputs", &w, func(string) error { return nil }, func(output Output) error {
			file, _, err := output.Open()
			if err == nil {
				file.Close()
			}
			return err
		})
	}
	if err := read(); !errdefs.IsUnavailable(err) || errors.Is(err, storage.ErrWorkDir) || !strings.Contains(err.Error(), "lease") {
		t.Errorf("Outputs: %v", err)
	}
	if _, err := unix.FcntlInt(runner.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	if err := read(); err != nil || len(w.Texts()) > 0 {
		t.Errorf("Outputs once the lease is given up: %v, %q", err, w.Texts())
	}
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
