package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/iterait/shepherd/internal/durable"
)

// LockedError is the error for a state directory that another daemon uses.
type LockedError struct{ PID, Dir string }

func (e *LockedError) Error() string {
	return fmt.Sprintf("another shepherdd (pid %s) uses the state directory %s: stop it, or give this one its own state_dir", e.PID, e.Dir)
}

// lockTime is how long lockState waits for the lock. Commands that check whether a daemon is
// running hold it briefly, which must not prevent a daemon from starting.
const lockTime = time.Second

// lockState creates the state directory if it is missing, and locks it until the
// returned lock is closed or the process ends.
func lockState(dir string) (*durable.FileLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the state directory: %w (set state_dir to a directory that can be written)", err)
	}
	path := filepath.Join(dir, "lock")
	l, _, err := durable.Lock(path, lockTime)
	var busy *durable.BusyError
	if errors.As(err, &busy) {
		return nil, &LockedError{PID: busy.Text, Dir: dir}
	}
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := l.SetText(strconv.Itoa(os.Getpid())); err != nil {
		l.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return l, nil
}

// writeAddress writes the address of the API to the state directory, for commands
// that are given the same configuration: they may read it at any moment. remove removes it.
func writeAddress(dir, url string) (remove func(), err error) {
	path := filepath.Join(dir, "api")
	if err := durable.WriteFile(path, []byte(url+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("write the address of the API: %w", err)
	}
	return func() { _ = os.Remove(path) }, nil // a stale file is harmless: the lock shows whether a daemon runs
}

// Address returns the API's address of the daemon that uses the state directory.
func Address(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "api"))
	if err != nil {
		return "", fmt.Errorf("the shepherdd that uses the state directory %s has not opened its API yet; try again, or give its address with --server", dir)
	}
	return strings.TrimSpace(string(text)), nil
}

// readDrained reads which sheep are drained.
func readDrained(dir string) (sheep []string, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "drained.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &sheep)
	}
	if err != nil {
		return nil, fmt.Errorf("read which sheep are drained, from drained.json in the state directory: %w (without the file none is)", err)
	}
	return sheep, nil
}

// writeDrained persists which sheep are drained.
func writeDrained(dir string, sheep []string) error {
	text, err := json.Marshal(sheep)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, "drained.json"), append(text, '\n'), 0o600)
}

// Running reports whether a daemon uses the state directory. It changes nothing, and holds a
// shared lock only briefly.
func Running(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a daemon: %w", err)
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a daemon: lock %s: %w", f.Name(), err)
	}
	return false, durable.Unlock(f)
}
