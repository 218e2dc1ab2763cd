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

// managed reports whether mounts need containerd's mount manager (containerd 2.2
// and later, as with the erofs snapshotter): mount(2) does not know their types
// or options.
func managed(mounts []mount.Mount) bool {
	return slices.ContainsFunc(mounts, func(m mount.Mount) bool {
		return strings.Contains(m.Type, "/") ||
			slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "X-containerd.") })
	})
}

// mountPrivately mounts mounts read-only and calls view with what they show. The
// mounts are made in a mount namespace of a thread that ends with the call, so
// that nothing stays mounted whatever becomes of this process.
func mountPrivately(ctx context.Context, mounts []mount.Mount, view func(fs.FS) error) error {
	result := make(chan error, 1)
	go func() {
		onOwnThread(func() { result <- mountHere(mounts, view) })
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		// A file system in user space or on a network can block for ever, and
		// a thread in the kernel cannot be interrupted: it is left behind.
		return context.Cause(ctx)
	}
}

// onOwnThread calls f on a thread that ends with the calling goroutine. The
// runtime ends a thread whose goroutine ends locked to it, except for the main
// thread, which would keep the namespaces that f gave it.
func onOwnThread(f func()) {
	goruntime.LockOSThread() // never unlocked where f runs
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() { // cannot be on this thread, which is locked
		defer close(done)
		goruntime.LockOSThread()
		f()
	}()
	<-done
	goruntime.UnlockOSThread()
}

// mountHere is mountPrivately on a thread that nothing else will use.
func mountHere(mounts []mount.Mount, view func(fs.FS) error) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("read the image: new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("read the image: make the new mount namespace private: %w", err)
	}
	const target = "/tmp" // of the namespace: nobody else sees what is mounted there
	for _, m := range mounts {
		if m.Type == "overlay" {
			folder, short := shorten(m.Options)
			if folder != "" {
				if err := unix.Chdir(folder); err != nil {
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

// longOptions is how many bytes of options containerd's client passes to
// mount(2) as they are: the kernel takes one page. Longer ones it shortens with
// chdir(2) on another thread, which is in another mount namespace than ours.
const longOptions = 4096 - 512

// shorten makes the paths of an overlay's layers relative to the folder two above
// the first, where the options are too long for mount(2). The folder is empty
// where they are not.
func shorten(options []string) (folder string, short []string) {
	size := 0
	for _, o := range options {
		size += len(o) + 1
	}
	if size < longOptions {
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
			if folder == "" {
				folder = filepath.Dir(filepath.Dir(p))
			}
			if rel, err := filepath.Rel(folder, p); err == nil {
				paths[i] = rel
			}
		}
		short = append(short, name+"="+strings.Join(paths, ":"))
	}
	return folder, short
}

// imageFS is the files of an image. Symbolic links in it, absolute ones too,
// are resolved as they are for a process whose root it is, and never lead out.
// Opening what is no regular file neither blocks nor has an effect.
type imageFS struct{ root int }

func openImage(path string) (imageFS, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return imageFS{}, fmt.Errorf("read the image: %w", err)
	}
	return imageFS{fd}, nil
}

func (i imageFS) close() { _ = unix.Close(i.root) }

// Open opens a regular file for reading; anything else is an oci.ErrNotRegular
// that says what it is.
func (i imageFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	// O_PATH opens no device and waits for no other end of a FIFO.
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
