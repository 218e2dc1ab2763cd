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

// DismissOthers removes what is left in stateDir, which holds a directory per
// sheep, of sheep that are not among those named. dismiss ends one for good; then
// its directory goes.
func DismissOthers(ctx context.Context, stateDir string, names []string, dismiss func(ctx context.Context, name string) error) error {
	entries, err := os.ReadDir(stateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for sheep that are not configured any more: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || slices.Contains(names, e.Name()) {
			continue
		}
		err := dismiss(ctx, e.Name())
		if err == nil {
			err = os.RemoveAll(filepath.Join(stateDir, e.Name()))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove what is left of sheep %s, which is not configured any more: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}
