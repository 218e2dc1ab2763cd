package shepherd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// stage copies a job's inputs to its working directory, trying again for as long
// as storage is away. A job ahead of its turn that does not fit the budget waits
// with its inputs until the worker takes it.
func (l *lane) stage(ctx context.Context, a *assignment) (storage.Staged, error) {
	budget := l.shepherd.flock.budget
	if err := l.awaitEnd(ctx, a.id); err != nil {
		return storage.Staged{}, err
	}
	l.logPreparing(a)
	if err := freshDir(a.dir); err != nil {
		return storage.Staged{}, err
	}
	data, remembered := l.shepherd.payloads.take(a.id)
	var staged storage.Staged
	for {
		var limit int64
		if a.ahead && a.owner.Load() != takenByWorker {
			var ok bool
			if limit, ok = budget.left(); !ok {
				if err := l.awaitTurn(ctx, a); err != nil {
					return staged, err
				}
				limit = 0
			}
		}
		began := time.Now()
		err := l.persist(ctx, a.id, "stage the inputs", func() (err error) {
			if remembered && (limit == 0 || int64(len(data)) <= limit) {
				staged = storage.Staged{Files: 1, Bytes: int64(len(data))}
				return os.WriteFile(filepath.Join(a.dir, job.InputDir, job.DefaultInput), data, 0o644)
			}
			remembered = false
			staged, err = l.shepherd.cfg.Store.Stage(ctx, a.id, a.dir, limit)
			if limit > 0 && errdefs.IsResourceExhausted(err) {
				err = errTooLarge
			}
			return err
		})
		if !errors.Is(err, errTooLarge) {
			l.passed(a, PhaseStage, began, err)
		}
		switch {
		case errors.Is(err, errTooLarge):
			if err := l.awaitTurn(ctx, a); err != nil {
				return staged, err
			}
			continue
		case err == nil:
			if a.ahead {
				a.bytes = staged.Bytes
				budget.add(a.bytes)
			}
			return staged, nil
		case errdefs.IsNotFound(err):
			return staged, &job.UnknownJob{ID: string(a.id)}
		}
		return staged, fmt.Errorf("the inputs of this job cannot be fetched: %w", err)
	}
}

var errTooLarge = errors.New("the inputs do not fit the budget for jobs prepared ahead")

// awaitEnd waits until nothing is left of an earlier run of the job: a client may
// submit it again as soon as it is told of the end, while the working directory
// and the kept answer are still there.
func (l *lane) awaitEnd(ctx context.Context, id job.ID) error {
	l.mu.Lock()
	over := l.ending[id]
	l.mu.Unlock()
	if over == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-over:
		return nil
	}
}

// awaitTurn waits until the worker has taken the job.
func (l *lane) awaitTurn(ctx context.Context, a *assignment) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.turn:
		return nil
	}
}

// clear removes what the job has on disk.
func (l *lane) clear(a *assignment) {
	if a.bytes > 0 {
		l.shepherd.flock.budget.add(-a.bytes)
		a.bytes = 0
	}
	if err := os.RemoveAll(a.dir); err != nil {
		l.log.Warn("Cannot remove a job's working directory", "job", a.ID, "error", err)
	}
}

// tellTrace leaves word in the working directory of the trace that the runner's
// work belongs to; runners that know nothing of it need not look.
func (l *lane) tellTrace(a *assignment) error {
	t := l.traceOf(a)
	if t.IsZero() {
		return nil
	}
	text, _ := t.MarshalText()
	if err := os.WriteFile(filepath.Join(a.dir, job.TraceFile), text, 0o644); err != nil {
		return fmt.Errorf("write the job's trace: %w", err)
	}
	return nil
}

// freshDir makes an empty working directory. As a rule none is there, so it
// looks for one only when making it fails.
func freshDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if err != nil {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clean working directory: %w", err)
		}
		err = os.MkdirAll(dir, 0o755)
	}
	for _, sub := range []string{job.InputDir, job.OutputDir} {
		if err == nil {
			err = os.Mkdir(filepath.Join(dir, sub), 0o755)
		}
	}
	if err != nil {
		return fmt.Errorf("create working directory: %w", err)
	}
	return nil
}
