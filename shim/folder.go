package shim

import (
	"bufio"
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

// Folder is a life's directory, opened. Its files are accessed through the descriptor,
// so the length of its path does not matter (a socket's path has at most 107 bytes), and
// a directory that was removed and created anew is not mistaken for it.
type Folder struct {
	path string
	dir  *os.File
}

// OpenFolder opens a life's directory. The error wraps fs.ErrNotExist if it does not
// exist.
func OpenFolder(path string) (*Folder, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Folder{path: path, dir: os.NewFile(uintptr(fd), path)}, nil
}

// Path is a path of the directory through its descriptor. It is short, and valid in this
// process until Close.
func (f *Folder) Path() string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.dir.Fd()))
}

// Close closes the directory and releases its lock.
func (f *Folder) Close() error { return f.dir.Close() }

// Lock waits until no other process holds the directory's lock, and takes it.
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

// TryLock tries to take the directory's lock and reports whether it could. It cannot
// while the shim is alive.
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

// await waits until it can take the directory's lock, and reports whether it could
// before ctx ended.
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

// endTime is how long a shim that finds no spec may take to end.
const endTime = 2 * time.Second

// tryOwn is TryLock for a caller that removes the directory's content. If a shim that
// preventStart has stopped from starting holds the lock, tryOwn waits until it has ended.
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

// preventStart removes the spec, without which a shim that has not started yet ends. The
// caller holds the lock.
func (f *Folder) preventStart() error {
	_, err := os.Stat(filepath.Join(f.Path(), stateFile))
	if err == nil {
		return nil // a shim has started; there is only one in a directory
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(filepath.Join(f.Path(), specFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Unlock releases the lock.
func (f *Folder) Unlock() { _ = unix.Flock(int(f.dir.Fd()), unix.LOCK_UN) }

// Listen creates the directory's socket and listens on it.
func (f *Folder) Listen() (*net.UnixListener, error) {
	path := filepath.Join(f.Path(), socketFile)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", f.path, err)
	}
	l.SetUnlinkOnClose(false) // it is removed with the directory
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen in %s: %w", f.path, err)
	}
	return l, nil
}

// dial connects to the directory's socket.
func (f *Folder) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(f.Path(), socketFile))
	if err != nil {
		return nil, err
	}
	return &bufferedConn{Conn: conn, from: bufio.NewReaderSize(conn, readBuffer)}, nil
}

// bufferedConn is a connection from which a message of the usual size is read by one system
// call.
type bufferedConn struct {
	net.Conn
	from *bufio.Reader
}

const readBuffer = 1 << 10

func (c *bufferedConn) Read(p []byte) (int, error) { return c.from.Read(p) }

// Remove removes a life's directory. While its shim is alive the error is of class
// errdefs.ErrFailedPrecondition. A shim that is just starting finds no spec and ends. It
// is not an error if the directory does not exist.
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
		return fmt.Errorf("remove %s: its shim is alive: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove a runner's state: %w", err)
	}
	return nil
}
