package access

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// longestAddress is the kernel's limit for the path of a unix socket.
const longestAddress = 107

// Listen creates the socket at path, accessible to its owner and, if group is not nil, to
// the group. It replaces a stale socket left by a killed daemon. The socket is removed when
// the listener is closed.
func Listen(path string, group *uint32) (net.Listener, error) {
	if err := makeRoom(path); err != nil {
		return nil, err
	}
	address, done, err := short(path)
	if err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	defer done()
	mode := uint32(0o600)
	if group != nil {
		mode = 0o660
	}
	// Set the mode on the descriptor before the socket has a name.
	control := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), mode) })
		return errors.Join(err, failed)
	}}
	l, err := control.Listen(context.Background(), "unix", address)
	if err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the address may be the short one, which is not valid later
	made := &socket{Listener: l, path: path}
	// The umask may have removed permissions.
	err = os.Chmod(path, fs.FileMode(mode))
	if err == nil && group != nil {
		err = os.Chown(path, -1, int(*group))
	}
	if err != nil {
		made.Close()
		return nil, fmt.Errorf("set who may use the socket %s: %w", path, err)
	}
	return made, nil
}

// socket removes its file when it is closed. Close may be called more than once.
type socket struct {
	net.Listener
	path string
}

func (s *socket) Close() error {
	err := s.Listener.Close()
	if err == nil {
		err = os.Remove(s.path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// makeRoom removes a stale socket at path, and nothing else.
func makeRoom(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of the socket %s: %w", path, err)
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the socket %s: %w", path, err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket: remove it, or set api.socket to another path", path)
	}
	conn, err := Dial(context.Background(), path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("something listens on the socket %s, perhaps another shepherdd: stop it, or set api.socket to another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("look at the socket %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace the socket %s: %w", path, err)
	}
	return nil
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	address, done, err := short(path)
	if err != nil {
		return nil, err
	}
	defer done()
	return new(net.Dialer).DialContext(ctx, "unix", address)
}

// short returns an address for a path that may be too long for the kernel: one that goes
// through a descriptor of the directory. It is valid until done is called.
func short(path string) (address string, done func(), err error) {
	if len(path) <= longestAddress {
		return path, func() {}, nil
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	address = filepath.Join("/proc/self/fd", strconv.Itoa(dir), filepath.Base(path))
	return address, func() { _ = unix.Close(dir) }, nil
}
