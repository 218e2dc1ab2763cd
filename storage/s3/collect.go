package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/layout"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// Collect copies dir's outputs/ to outputs/. Earlier files go, with replace, when
// all new ones are there. A working directory without outputs has none.
func (s *Store) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	if err := s.CheckID(id); err != nil {
		return storage.Collected{}, err
	}
	c := &collection{store: s, id: id, slots: make(slots, s.parallel)}
	if replace {
		c.stored = make(map[string]bool)
	}
	err := c.run(ctx, dir)
	if err == nil && replace {
		err = s.removeFiles(ctx, id, job.OutputDir+"/", func(name string) bool { return !c.stored[name] })
	}
	if err != nil {
		return storage.Collected{}, fmt.Errorf("collect outputs of job %s: %w", id, err)
	}
	c.done.Warnings = c.warnings.Texts()
	return c.done, nil
}

// collection is one Collect under way.
type collection struct {
	store    *Store
	id       job.ID
	slots    slots
	warnings workdir.Warnings

	mu     sync.Mutex
	done   storage.Collected
	stored map[string]bool // names of what was sent; nil where nobody asks
}

func (c *collection) run(ctx context.Context, root *os.Root) error {
	dir, err := workdir.Open(root, storage.Options{})
	if err != nil {
		return err
	}
	defer dir.Close()
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(c.store.parallel)
	enter := func(name string) error {
		if err := within.Err(); err != nil {
			return err
		}
		return layout.CheckName(name) // too deep is told here, before it is entered
	}
	walked := dir.Outputs(job.OutputDir, &c.warnings, enter, func(output workdir.Output) error {
		if err := within.Err(); err != nil {
			return err
		}
		bucket, key, err := c.store.key(c.id, output.Name)
		if err != nil {
			return err
		}
		group.Go(func() error {
			if err := c.send(within, output, bucket, key); err != nil {
				return fmt.Errorf("%s: %w", output.Name, err)
			}
			return nil
		})
		return nil
	})
	sent := group.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case sent != nil: // walked may only say that this ended it
		return sent
	}
	return walked
}

func (c *collection) send(ctx context.Context, output workdir.Output, bucket, key string) error {
	file, size, err := output.Open()
	if err != nil || file == nil {
		return err
	}
	defer file.Close()
	if err := c.store.putFile(ctx, bucket, key, localFile{file}, size, c.slots); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done.Files++
	c.done.Bytes += size
	if c.stored != nil {
		c.stored[output.Name] = true
	}
	return nil
}

// localFile is a file of the working directory, whose errors say so.
type localFile struct{ file *os.File }

func (f localFile) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.file.ReadAt(p, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		err = workdir.Error(err)
	}
	return n, err
}
