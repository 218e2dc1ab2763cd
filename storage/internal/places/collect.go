package places

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// Collector is how files come from a working directory into storage.
type Collector struct {
	Layout
	Parallel int // files at a time

	// Put stores one file.
	Put func(ctx context.Context, bucket, key string, file *os.File, size int64) error
	// Remove removes the files below prefix that unwanted picks.
	Remove func(ctx context.Context, id job.ID, prefix string, unwanted func(name string) bool) error
}

// Collect copies dir's outputs/ to outputs/. Earlier files go, with replace, when
// all new ones are there. A working directory without outputs has none.
func (c *Collector) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	if err := c.CheckID(id); err != nil {
		return storage.Collected{}, err
	}
	run := &collection{collector: c, id: id}
	if replace {
		run.stored = make(map[string]int64)
	}
	err := run.run(ctx, dir)
	if err == nil && replace {
		err = c.removeOthers(ctx, id, run.stored)
	}
	if err != nil {
		return storage.Collected{}, fmt.Errorf("collect outputs of job %s: %w", id, err)
	}
	run.done.Warnings = run.warnings.Texts()
	return run.done, nil
}

// removeOthers removes from outputs/ what is not among the names.
func (c *Collector) removeOthers(ctx context.Context, id job.ID, names map[string]int64) error {
	return c.Remove(ctx, id, job.OutputDir+"/", func(name string) bool { _, ours := names[name]; return !ours })
}

// collection is one Collect under way.
type collection struct {
	collector *Collector
	id        job.ID
	below     string // what the names begin with in the job's place
	warnings  workdir.Warnings

	mu     sync.Mutex
	done   storage.Collected
	stored map[string]int64 // sizes of what was sent, by name; nil where nobody asks
}

func (c *collection) run(ctx context.Context, root *os.Root) error {
	dir, err := workdir.Open(root, storage.Options{})
	if err != nil {
		return err
	}
	defer dir.Close()
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(c.collector.Parallel)
	enter := func(name string) error {
		if err := within.Err(); err != nil {
			return err
		}
		return CheckName(name) // too deep is told here, before it is entered
	}
	walked := dir.Outputs(job.OutputDir, &c.warnings, enter, func(output workdir.Output) error {
		if err := within.Err(); err != nil {
			return err
		}
		bucket, key, err := c.collector.Key(c.id, c.below+output.Name)
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
	if err := c.collector.Put(ctx, bucket, key, file, size); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done.Files++
	c.done.Bytes += size
	if c.stored != nil {
		c.stored[output.Name] = size
	}
	return nil
}
