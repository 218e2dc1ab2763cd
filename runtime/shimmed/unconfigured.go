package shimmed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// RemoveUnconfigured removes all sheep but the named ones from stateDir, which holds a
// directory for each sheep: it calls remove, which stops the sheep's runner, and removes
// the sheep's directory. It goes on after errors, and returns them joined.
func RemoveUnconfigured(ctx context.Context, stateDir string, names []string, remove func(ctx context.Context, name string) error) error {
	entries, err := os.ReadDir(stateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for sheep that are not configured any more: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || slices.Contains(names, e.Name()) {
			continue
		}
		err := remove(ctx, e.Name())
		if err == nil {
			err = os.RemoveAll(filepath.Join(stateDir, e.Name()))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove sheep %s, which is not configured any more: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}
