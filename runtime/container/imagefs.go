package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/oci"
)

// needMountManager reports whether mounts have types or options that mount(2) does
// not know, such as those of the erofs snapshotter. containerd's mount manager
// (containerd 2.2 and later) turns them into ones that it does.
func needMountManager(mounts []mount.Mount) bool {
	return slices.ContainsFunc(mounts, func(m mount.Mount) bool {
		return strings.Contains(m.Type, "/") ||
			slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "X-containerd.") })
	})
}

// mountPrivately mounts mounts read-only and calls view with the mounted files. It
// mounts in a mount namespace of its own, on a thread that ends with the call, so
// that the kernel unmounts them even if this process is killed.
func mountPrivately(ctx context.Context, mounts []mount.Mount, view func(fs.FS) error) error {
	result := make(chan error, 1)
	go func() {
		onOwnThread(func() { result <- mountInNewNamespace(mounts, view) })
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		// A FUSE or network file system can block forever, and a thread blocked in
		// the kernel cannot be interrupted: the goroutine is abandoned.
		return context.Cause(ctx)
	}
}

// onOwnThread calls f on a thread that ends with the calling goroutine. The
// runtime ends a thread whose goroutine ends locked to it, except for the main
// thread, which would keep the namespaces that f gave it.
func onOwnThread(f func()) {
	goruntime.LockOSThread() // the thread that runs f is never unlocked
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() { // it runs on another thread, because this one is locked
		defer close(done)
		goruntime.LockOSThread()
		f()
	}()
	<-done
	goruntime.UnlockOSThread()
}

// mountInNewNamespace does mountPrivately's work. It changes the calling thread's
// mount namespace, so nothing else may run on that thread afterwards.
func mountInNewNamespace(mounts []mount.Mount, view func(fs.FS) error) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("read the image: new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("read the image: make the new mount namespace private: %w", err)
	}
	const target = "/tmp" // the mount is visible in this namespace only
	for _, m := range mounts {
		if m.Type == "overlay" {
			dir, short := shorten(m.Options)
			if dir != "" {
				if err := unix.Chdir(dir); err != nil {
					return fmt.Errorf("read the image: %w", err)
				}
			}
			m.Options = short
		}
		if err := m.Mount(target); err != nil {
			return fmt.Errorf("read the image: %w", err)
		}
	}
	root, err := openImage(target)
	if err != nil {
		return err
	}
	defer root.close()
	return view(root)
}

// maxMountOptions is the length of options in bytes from which containerd's client
// shortens them, because mount(2) accepts one page at most. The client does so with
// chdir(2) on another thread, which is not in our mount namespace; so options are
// shortened here first.
const maxMountOptions = 4096 - 512

// shorten makes the paths of an overlay's layers relative to dir, which is two
// levels above the first layer, where the options are too long for mount(2). Where
// they are not, dir is empty.
func shorten(options []string) (dir string, short []string) {
	size := 0
	for _, o := range options {
		size += len(o) + 1
	}
	if size < maxMountOptions {
		return "", options
	}
	for _, o := range options {
		name, value, ok := strings.Cut(o, "=")
		if !ok || name != "lowerdir" && name != "upperdir" && name != "workdir" {
			short = append(short, o)
			continue
		}
		paths := strings.Split(value, ":")
		for i, p := range paths {
			if dir == "" {
				dir = filepath.Dir(filepath.Dir(p))
			}
			if rel, err := filepath.Rel(dir, p); err == nil {
				paths[i] = rel
			}
		}
		short = append(short, name+"="+strings.Join(paths, ":"))
	}
	return dir, short
}

// imageFS is the file system of an image. Symbolic links, absolute ones too, are
// resolved as for a process whose root directory it is, and never lead outside.
// Opening a device, FIFO or socket has no side effect and does not block.
type imageFS struct{ root int }

func openImage(path string) (imageFS, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return imageFS{}, fmt.Errorf("read the image: %w", err)
	}
	return imageFS{fd}, nil
}

func (i imageFS) close() { _ = unix.Close(i.root) }

// Open opens a regular file for reading. For any other file it returns an
// oci.ErrNotRegular with the file's type.
func (i imageFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	// O_PATH does not open a device and does not wait for a FIFO's other end.
	fd, err := unix.Openat2(i.root, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOSYS) {
		err = errors.New("container sheep need Linux 5.6 (openat2)")
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%s: %w", fileType(st.Mode), oci.ErrNotRegular)}
	}
	return os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "a device"
	}
	return "something else"
}
