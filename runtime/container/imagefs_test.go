package container

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/oci"
)

// What an image holds is resolved in the image and never out of it, and opening
// it never blocks.
func TestImageFS(t *testing.T) {
	claims.Hold(t, "M2")
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "nix/store/etc"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "nix/store/etc/passwd"), []byte("ada:x:1000:1001::/home/ada:/bin/sh\n"), 0o644))
	for link, to := range map[string]string{
		"etc":                  "/nix/store/etc",
		"nix/store/etc/group":  "/nix/store/etc/passwd",
		"nix/store/etc/out":    "../../../../../../../../../../etc/hostname",
		"nix/store/etc/host":   "/etc/hostname",
		"nix/store/etc/loop":   "loop",
		"nix/store/etc/self":   "/proc/self/root/etc/passwd",
		"nix/store/etc/folder": "/nix",
	} {
		must(os.Symlink(to, filepath.Join(dir, link)))
	}
	must(unix.Mkfifo(filepath.Join(dir, "nix/store/etc/fifo"), 0o644))
	must(unix.Mknod(filepath.Join(dir, "nix/store/etc/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	image, err := openImage(dir)
	must(err)
	defer image.close()
	for _, name := range []string{"etc/passwd", "etc/group", "nix/store/etc/passwd"} {
		if data, err := fs.ReadFile(image, name); err != nil || !strings.HasPrefix(string(data), "ada:") {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	for name, want := range map[string]string{
		"etc/out":     "no such file",
		"etc/host":    "no such file",
		"etc/self":    "no such file",
		"etc/none":    "no such file",
		"etc/loop":    "too many levels of symbolic links",
		"etc/folder":  "a directory",
		"etc/fifo":    "a FIFO",
		"etc/null":    "a device",
		"../etc":      "invalid",
		"/etc/passwd": "invalid",
	} {
		if data, err := fs.ReadFile(image, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", name, data, err, want)
		}
	}
	if a, err := oci.ResolveUser(image, "ada"); err != nil || a.UID != 1000 || a.GID != 1001 {
		t.Errorf("ada is %+v, %v", a, err)
	}
}

// The thread that a namespace is made on is never the main one, which does not
// end: TestMain's goroutine has it, and gives it away here.
func TestOnOwnThread(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		done := make(chan int)
		go onOwnThread(func() {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				t.Error(err)
			}
			done <- unix.Gettid()
		})
		if tid := <-done; tid == unix.Getpid() {
			t.Fatal("it ran on the main thread")
		}
	}
	if now, err := os.Readlink("/proc/self/ns/mnt"); err != nil || now != own {
		t.Errorf("the process is in mount namespace %s, was in %s: %v", now, own, err)
	}
}
