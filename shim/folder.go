package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Folder is a life's folder, opened. Its files are reached through the
// descriptor, so that neither the length of its path (a socket's may have 107
// bytes) nor its removal and creation again can lead astray.
type Folder struct {
	path string
	dir  *os.File
}

// OpenFolder opens the folder of a life. The error is fs.ErrNotExist when there
// is none.
func OpenFolder(path string) (*Folder, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Folder{path: path, dir: os.NewFile(uintptr(fd), path)}, nil
}

// Path is the folder reached through its descriptor; it is short, and valid in
// this process until Close.
func (f *Folder) Path() string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.dir.Fd()))
}

// Close closes the folder and ends the lock on it.
func (f *Folder) Close() error { return f.dir.Close() }

// Lock waits until no other process holds the folder's lock, and takes it.
func (f *Folder) Lock() error {
	for {
		err := unix.Flock(int(f.dir.Fd()), unix.LOCK_EX)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", f.path, err)
		}
		return nil
	}
}

// TryLock takes the folder's lock and reports whether it could: it cannot while
// a shim lives.
func (f *Folder) TryLock() (bool, error) {
	err := unix.Flock(int(f.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.path, err)
	}
	return true, nil
}

// await waits until it can take the folder's lock, or ctx ends.
func (f *Folder) await(ctx context.Context) (bool, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if free, err := f.TryLock(); free || err != nil {
			return free, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false, nil
		}
	}
}

// endTime is how long a shim may take that finds no spec, and ends.
const endTime = 2 * time.Second

// tryOwn is TryLock for one who may remove what is in the folder: where the lock has a
// shim that was kept from beginning, tryOwn waits until that has ended.
func (f *Folder) tryOwn(ctx context.Context) (bool, error) {
	free, err := f.TryLock()
	if free || err != nil {
		return free, err
	}
	if _, err := os.Stat(filepath.Join(f.Path(), specFile)); !errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	return f.await(ctx)
}

// preventStart keeps a shim that has not begun in the folder from it: without its spec
// it ends. The caller holds the lock.
func (f *Folder) preventStart() error {
	_, err := os.Stat(filepath.Join(f.Path(), stateFile))
	if err == nil {
		return nil // one has begun, and another does not
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(filepath.Join(f.Path(), specFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Unlock ends the lock.
func (f *Folder) Unlock() { _ = unix.Flock(int(f.dir.Fd()), unix.LOCK_UN) }

// Listen makes the folder's socket.
func (f *Folder) Listen() (*net.UnixListener, error) {
	path := filepath.Join(f.Path(), socketFile)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", f.path, err)
	}
	l.SetUnlinkOnClose(false) // the folder's owner removes it
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen in %s: %w", f.path, err)
	}
	return l, nil
}

// dial connects to the folder's socket.
func (f *Folder) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(f.Path(), socketFile))
}

// Remove removes the life's folder. It refuses, with errdefs.ErrFailedPrecondition,
// while a shim lives in it. A shim that starts in it at this moment finds no
// spec and ends. A folder that is not there is removed already.
func Remove(path string) error {
	f, err := OpenFolder(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	free, err := f.tryOwn(context.Background())
	if err != nil {
		return err
	}
	if !free {
		return fmt.Errorf("remove %s: a shim lives in it: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove a runner's state: %w", err)
	}
	return nil
}
