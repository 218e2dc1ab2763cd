// Package durable makes files survive a power cut, and locks files between processes.
package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SyncDirs makes the names in the directories durable. Directories that one
// operation changed are synced together at its end: the file system then writes
// its journal once.
func SyncDirs(dirs ...string) error {
	for _, dir := range dirs {
		f, err := Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Open is os.OpenFile for a regular file or a directory, whose reads and writes never wait for
// a peer. os.OpenFile tries to add each file to the runtime's poller, which for these fails
// after five system calls.
func Open(path string, flags int, mode os.FileMode) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, uint32(mode.Perm()))
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// WriteFile replaces a small file atomically: after a crash it has either the old or the new
// content. It writes path.new first; there may be one writer of a path at a time.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return SyncDirs(filepath.Dir(path))
}

// BusyError is returned if another process holds a lock.
type BusyError struct {
	Path string
	Text string // what that process wrote into the file
}

func (e *BusyError) Error() string { return fmt.Sprintf("%s is locked by another process", e.Path) }

// maxText is the most bytes that are read of a lock's file.
const maxText = 256

// FileLock is the lock on a file that this process has.
type FileLock struct{ file *os.File }

// Lock locks the file at path for this process, creating it if it is missing. The lock ends
// with Close or with the process. If another process holds it, Lock retries for the given
// time and then returns *BusyError. was is the content of the file: what an earlier holder
// left.
func Lock(path string, within time.Duration) (l *FileLock, was string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			f.Close()
			l = nil
		}
	}()
	for end := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || !time.Now().Before(end) {
			break
		}
	}
	if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, "", fmt.Errorf("lock %s: %w", path, err)
	}
	text, readErr := io.ReadAll(io.LimitReader(f, maxText))
	was = strings.TrimSpace(string(text))
	if err != nil {
		return nil, "", &BusyError{Path: path, Text: was}
	}
	return &FileLock{f}, was, readErr
}

// SetText replaces the content of the file, which other processes find in BusyError.Text.
func (l *FileLock) SetText(text string) error {
	if err := l.Clear(); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(text+"\n"), 0)
	return err
}

// Clear empties the file.
func (l *FileLock) Clear() error { return l.file.Truncate(0) }

// Close releases the lock. Closing the file would not suffice while a forked child that has
// not executed its program yet has it open.
func (l *FileLock) Close() error {
	return errors.Join(Unlock(l.file), l.file.Close())
}

// Unlock releases a lock of flock(2), also if other processes have the file open.
func Unlock(f *os.File) error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN); err != nil {
		return fmt.Errorf("unlock %s: %w", f.Name(), err)
	}
	return nil
}
