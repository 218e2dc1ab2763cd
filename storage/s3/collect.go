package s3

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/job"
)

// Collect copies dir/outputs/ to outputs/. Earlier files go, with replace, when
// all new ones are there. A working directory without outputs has none.
func (s *Store) Collect(ctx context.Context, id job.ID, dir string, replace bool) error {
	if err := s.CheckID(id); err != nil {
		return err
	}
	kept, err := s.collect(ctx, id, dir, replace)
	if err == nil && replace {
		err = s.removeFiles(ctx, id, job.OutputDir+"/", func(name string) bool { return !kept[name] })
	}
	if err != nil {
		return fmt.Errorf("collect outputs of job %s: %w", id, err)
	}
	return nil
}

// collect sends the files and answers their names where remember says so.
func (s *Store) collect(ctx context.Context, id job.ID, dir string, remember bool) (map[string]bool, error) {
	tree, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	names := make(map[string]bool)
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	slots := make(slots, s.parallel)
	walked := tree.walk(job.OutputDir, func(name string, stat *unix.Stat_t) (bool, error) {
		if err := within.Err(); err != nil {
			return false, err
		}
		switch kind := stat.Mode & unix.S_IFMT; kind {
		case unix.S_IFDIR:
			return true, checkName(name) // too deep is told here, before it is entered
		case unix.S_IFREG:
		default:
			return false, notRegular(name, kind)
		}
		bucket, key, err := s.key(id, name)
		if err != nil {
			return false, err
		}
		if remember {
			names[name] = true
		}
		group.Go(func() error {
			if err := s.collectFile(within, tree, name, bucket, key, slots); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
		return false, nil
	})
	if errors.Is(walked, os.ErrNotExist) {
		walked = nil // a working directory without outputs/
	}
	sent := group.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case sent != nil: // walked may only say that this ended it
		return nil, sent
	}
	return names, walked
}

func (s *Store) collectFile(ctx context.Context, tree *tree, name, bucket, key string, slots slots) error {
	file, size, err := tree.open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it went away since its folder was read
	}
	if err != nil {
		return err
	}
	defer file.Close()
	return s.putFile(ctx, bucket, key, file, size, slots)
}
