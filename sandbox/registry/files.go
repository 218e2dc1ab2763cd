package registry

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/iterait/shepherd/internal/durable"
)

// settle syncs a complete file to disk and renames it durably.
func settle(from, to string) error {
	f, err := os.OpenFile(from, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	dir := filepath.Dir(to)
	if err := makeDir(dir); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return durable.SyncDirs(dir)
}

// makeDir creates a directory and its parents durably.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if errors.Is(err, os.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		if err = os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
			return nil // another request has created it
		}
	}
	if err != nil {
		return err
	}
	return durable.SyncDirs(filepath.Dir(dir))
}

// write writes a small file atomically and durably.
func (r *Registry) write(to string, content []byte) error {
	f, err := os.CreateTemp(r.path("uploads"), "file-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = settle(f.Name(), to)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
