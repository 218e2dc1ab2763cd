package places

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// attemptsDir holds, in a job's place, the outputs that attempts keep apart.
const attemptsDir = ".attempts/"

// AttemptDir is where in a job's place the outputs of an attempt lie until they are
// promoted.
func AttemptDir(attempt int64) string { return attemptsDir + strconv.FormatInt(attempt, 10) + "/" }

// ApartName splits the name of a file that an attempt keeps apart; ok is false for
// others.
func ApartName(name string) (attempt int64, output string, ok bool) {
	rest, ok := strings.CutPrefix(name, attemptsDir)
	number, output, cut := strings.Cut(rest, "/")
	attempt, err := strconv.ParseInt(number, 10, 64)
	return attempt, output, ok && cut && err == nil
}

// Fencer is how the outputs of attempts that cannot stop one another are kept apart
// in buckets: an attempt stores its outputs in a directory of its own and promotes
// them by copies within storage, which fail once the directory is empty.
type Fencer struct {
	*Collector

	// List calls visit with the files below prefix.
	List func(ctx context.Context, id job.ID, prefix string, visit func(storage.Info)) error
	// Copy copies a stored file within the bucket. It is storage.ErrFenced where the
	// file is not there. However it fails or ends, the bucket has nothing of it but the
	// whole copy, or an upload that Abort ends.
	Copy func(ctx context.Context, bucket, from, to string, size int64) error
	// Abort ends copies of a file of the given size that are under way.
	Abort func(ctx context.Context, bucket, to string, size int64)
}

// CollectApart implements storage.Fencer.
func (f *Fencer) CollectApart(ctx context.Context, id job.ID, attempt int64, dir *os.Root) (storage.Apart, error) {
	if err := f.CheckID(id); err != nil {
		return nil, err
	}
	run := &collection{collector: f.Collector, id: id, below: AttemptDir(attempt), stored: make(map[string]int64)}
	if err := run.run(ctx, dir); err != nil {
		return nil, fmt.Errorf("collect outputs of job %s: %w", id, err)
	}
	run.done.Warnings = run.warnings.Texts()
	return &collectedApart{fencer: f, id: id, below: run.below, files: run.stored, done: run.done}, nil
}

// Fence implements storage.Fencer. Copies that are under way are aborted before their
// sources go, so that a Fence that is cut short finds them again, and after, when no
// new one can begin.
func (f *Fencer) Fence(ctx context.Context, id job.ID, attempt int64) error {
	if err := f.fence(ctx, id, attempt); err != nil {
		return fmt.Errorf("fence earlier attempts at job %s: %w", id, err)
	}
	return nil
}

func (f *Fencer) fence(ctx context.Context, id job.ID, attempt int64) error {
	if err := f.CheckID(id); err != nil {
		return err
	}
	others := make(map[string]int64) // sizes of their outputs, by name
	err := f.List(ctx, id, attemptsDir, func(info storage.Info) {
		if a, output, ok := ApartName(info.Name); ok && a != attempt {
			others[output] = max(info.Size, others[output])
		}
	})
	if err != nil || len(others) == 0 {
		return err
	}
	abort := func() error {
		for _, name := range slices.Sorted(maps.Keys(others)) {
			bucket, key, err := f.Key(id, name)
			if err != nil {
				return err
			}
			f.Abort(ctx, bucket, key, others[name])
		}
		return ctx.Err()
	}
	if err := abort(); err != nil {
		return err
	}
	err = f.Remove(ctx, id, attemptsDir, func(name string) bool {
		a, _, ok := ApartName(name)
		return ok && a != attempt
	})
	return errors.Join(err, abort())
}

// collectedApart is a storage.Apart.
type collectedApart struct {
	fencer *Fencer
	id     job.ID
	below  string           // where the files lie
	files  map[string]int64 // their sizes, by the names that they get
	done   storage.Collected
}

func (a *collectedApart) Collected() storage.Collected { return a.done }

// Promote implements storage.Apart.
func (a *collectedApart) Promote(ctx context.Context, replace bool) error {
	if err := a.promote(ctx, replace); err != nil {
		return fmt.Errorf("promote the outputs of job %s: %w", a.id, err)
	}
	return nil
}

func (a *collectedApart) promote(ctx context.Context, replace bool) error {
	f := a.fencer
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(f.Parallel)
	for name, size := range a.files {
		if within.Err() != nil {
			break
		}
		group.Go(func() error {
			bucket, to, err := f.Key(a.id, name)
			if err != nil {
				return err
			}
			_, from, err := f.Key(a.id, a.below+name)
			if err == nil {
				err = f.Copy(within, bucket, from, to, size)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if replace {
		return f.removeOthers(ctx, a.id, a.files)
	}
	return nil
}

// Discard implements storage.Apart.
func (a *collectedApart) Discard(ctx context.Context) error {
	if len(a.files) == 0 {
		return nil
	}
	if err := a.fencer.Remove(ctx, a.id, a.below, func(string) bool { return true }); err != nil {
		return fmt.Errorf("remove the copies of the outputs of job %s: %w", a.id, err)
	}
	return nil
}
