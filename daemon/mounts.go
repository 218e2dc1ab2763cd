package daemon

import (
	"errors"
	"fmt"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/mounts"
)

// UnmountedError is the error for a path on a file system that is not mounted.
type UnmountedError struct{ Key, Path, MountPoint string }

func (e *UnmountedError) Error() string {
	return fmt.Sprintf("waiting for a file system: %s (%s) lies on %s, where nothing is mounted though %s or a mount unit lists it; mount it (`mount %s`), or change %s",
		e.Key, e.Path, e.MountPoint, mounts.Table, e.MountPoint, e.Key)
}

// checkMounts returns an *UnmountedError for each path of the daemon whose file system is
// not mounted. Files created below an empty mount point would be hidden by a later mount:
// the queue would start empty, and its jobs would disappear.
func checkMounts(cfg *config.Config, missing func(path string) (mountPoint string, err error)) error {
	paths := []struct{ key, path string }{
		{"state_dir", cfg.StateDir}, {"data_root", cfg.DataRoot},
	}
	if !cfg.Ledger.Shared() {
		paths = append(paths, struct{ key, path string }{"ledger.path", cfg.Ledger.Path})
	}
	if cfg.Storage.Embedded() {
		paths = append(paths, struct{ key, path string }{"storage.path", cfg.Storage.Path})
	}
	var wrong []error
	reported := make(map[string]bool)
	for _, p := range paths {
		point, err := missing(p.path)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", p.key, err)
		case point != "" && !reported[point]:
			reported[point] = true
			wrong = append(wrong, &UnmountedError{Key: p.key, Path: p.path, MountPoint: point})
		}
	}
	return errors.Join(wrong...)
}
