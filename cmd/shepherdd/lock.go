package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// lockedError says that another daemon is up with the same state directory.
type lockedError struct{ pid, dir string }

func (e *lockedError) Error() string {
	return fmt.Sprintf("another shepherdd (pid %s) uses the state directory %s: stop it, or give this one its own state_dir", e.pid, e.dir)
}

// lockState makes the state directory this daemon's own until the returned file
// is closed, or the process ends, however it does.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the state directory: %w (set state_dir to a directory that can be written)", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &lockedError{pid: strings.TrimSpace(string(owner)), dir: dir}
		}
		return nil, fmt.Errorf("lock the state directory %s: %w", dir, err)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(fmt.Sprintln(os.Getpid())), 0)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("write %s: %w", path, err)
		}
	}
	return f, nil
}

// announce notes in the state directory where the API of its daemon is, for
// commands that are given the same configuration.
func announce(dir, url string) (forget func(), err error) {
	path := filepath.Join(dir, "api")
	if err := os.WriteFile(path, []byte(url+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("note the address of the API: %w", err)
	}
	return func() { _ = os.Remove(path) }, nil // a stale one is of no consequence: the lock says who is up
}

// announced is where the API of the daemon is that uses the state directory.
func announced(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "api"))
	if err != nil {
		return "", fmt.Errorf("a shepherdd uses the state directory %s and has not said yet where its API is; try again, or name its address with --api", dir)
	}
	return strings.TrimSpace(string(text)), nil
}
