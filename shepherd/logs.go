package shepherd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
)

// Logs opens the output of a sheep's runners, as described at runtime.Logger. The error is
// *job.UnknownSheep or job.ErrNoLog, or has no class.
func (r *reader) Logs(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error) {
	l := r.env.flock.named(sheep)
	if l == nil {
		return nil, &job.UnknownSheep{Name: sheep}
	}
	logger, ok := l.Sheep.(runtime.Logger)
	if !ok {
		return nil, job.ErrNoLog
	}
	log, err := logger.Logs(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("open the log of sheep %s: %w", sheep, err)
	}
	return log, nil
}

// JobLogs opens the output of runners during the attempts of a job's last run, one attempt
// after the other, as far as it is kept on live nodes; with q.Tail, only that many lines of
// the last attempt. With q.Follow it continues through later attempts until the run has
// ended. The error is *job.UnknownJob, job.ErrNoJobLog, *job.Unavailable for a node that
// does not answer, or has the ledger's class.
func (r *reader) JobLogs(ctx context.Context, id job.ID, q job.LogQuery) (io.ReadCloser, error) {
	changed := make(chan struct{}, 1)
	unwatch := r.env.hub.watch(id, func(e job.Event) { // subscribe before reading the ledger, so that no change is missed
		if e.Kind == job.EventProgress {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	rec, err := r.cfg.Ledger.Get(ctx, id)
	if errors.Is(err, ledger.ErrNotFound) {
		unwatch()
		if _, err := r.Job(ctx, id); err != nil {
			return nil, err
		}
		return nil, job.ErrNoJobLog // its record has expired
	}
	if err != nil {
		unwatch()
		return nil, fmt.Errorf("read job %s: %w", id, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	f := &jobLog{reader: r, job: id, run: rec.Run, query: q, changed: changed}
	first, over, err := f.first(ctx)
	if err == nil && first == nil && over {
		err = job.ErrNoJobLog
	}
	if err != nil {
		cancel(errOver)
		unwatch()
		return nil, err
	}
	lines, w := io.Pipe()
	reading := make(chan struct{})
	go func() { // ends with Close
		defer close(reading)
		defer unwatch()
		w.CloseWithError(f.copy(ctx, first, w))
	}()
	return &readJobLog{PipeReader: lines, end: func() {
		cancel(errOver)
		<-reading
	}}, nil
}

// readJobLog is the reader's end of a job's log.
type readJobLog struct {
	*io.PipeReader
	end func()
}

func (r *readJobLog) Close() error {
	err := r.PipeReader.Close()
	r.end()
	return err
}

// jobLog follows the log of one run of a job.
type jobLog struct {
	reader  *reader
	job     job.ID
	run     int
	query   job.LogQuery
	changed <-chan struct{} // receives when the job may have changed
	next    int             // the first attempt that was not read yet
}

// attemptLog is the log of one attempt.
type attemptLog struct {
	runtime.JobLog
	attempt int
}

// logEnd tells an open log where it ends, in whichever order the log and its end become
// known.
type logEnd struct {
	mu   sync.Mutex
	log  runtime.JobLog
	span string
}

func (e *logEnd) end(span string) { e.set(nil, span) }

func (e *logEnd) set(log runtime.JobLog, span string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log, e.span = cmp.Or(e.log, log), cmp.Or(e.span, span)
	if e.log != nil && e.span != "" {
		e.log.End(e.span)
	}
}

// first opens the log to begin with: the first attempt's, or the last attempt's if there is
// a tail.
func (f *jobLog) first(ctx context.Context) (_ *attemptLog, over bool, err error) {
	log, over, err := f.open(ctx)
	if f.query.Tail < 0 {
		return log, over, err
	}
	for log != nil && err == nil {
		var later *attemptLog
		f.next = log.attempt + 1
		if later, over, err = f.open(ctx); later == nil {
			return log, over, err
		}
		log.Close()
		log = later
	}
	return log, over, err
}

// open opens the first log that is kept of the attempts from next on. over is set if no
// further attempts can follow.
func (f *jobLog) open(ctx context.Context) (_ *attemptLog, over bool, err error) {
	attempts, over, err := f.attempts(ctx)
	if err != nil {
		return nil, false, err
	}
	for _, a := range attempts {
		if a.Number < f.next {
			continue
		}
		of := f.localAttempt
		if a.Node != f.reader.cfg.Node {
			of = f.remoteAttempt
		}
		log, err := of(ctx, a)
		if err != nil {
			return nil, false, fmt.Errorf("open the log of job %s: %w", f.job, err)
		}
		if log != nil {
			return &attemptLog{JobLog: log, attempt: a.Number}, over, nil
		}
	}
	return nil, over, nil
}

// localAttempt opens the log of an attempt of this node, or returns nil if nothing is kept
// of it.
func (f *jobLog) localAttempt(ctx context.Context, a job.Attempt) (runtime.JobLog, error) {
	l := f.reader.env.flock.named(a.Sheep)
	if l == nil {
		return nil, nil
	}
	sheep, ok := l.Sheep.(runtime.JobLogger)
	if !ok {
		return nil, nil
	}
	span := a.Log
	var end logEnd
	if a.Ended.IsZero() {
		span = l.state.span(f.job, end.end)
	}
	if span == "" {
		return nil, nil
	}
	log, err := sheep.JobLogs(ctx, span, f.query)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	end.set(log, "")
	return log, nil
}

// attempts returns the attempts of the run. over is set if no further ones can follow.
func (f *jobLog) attempts(ctx context.Context) (of []job.Attempt, over bool, err error) {
	rec, err := f.reader.cfg.Ledger.Get(ctx, f.job)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		over = true
	case err != nil:
		return nil, false, fmt.Errorf("read job %s: %w", f.job, err)
	default:
		over = rec.State.Final() || rec.Run != f.run
	}
	all, err := f.reader.cfg.Ledger.Attempts(ctx, f.job)
	if err != nil {
		return nil, false, fmt.Errorf("read the attempts of job %s: %w", f.job, err)
	}
	for _, a := range all {
		if a.Run == f.run {
			of = append(of, a)
		}
	}
	return of, over, nil
}

// copy writes the log to its reader, beginning with the attempt that is open.
func (f *jobLog) copy(ctx context.Context, log *attemptLog, to io.Writer) error {
	over := false
	for {
		if log != nil {
			_, err := io.Copy(to, log)
			if err := errors.Join(err, log.Close()); err != nil {
				return err
			}
			f.next, f.query.Tail = log.attempt+1, -1
			over = false
		}
		if over || log == nil && !f.query.Follow {
			return nil
		}
		if log == nil {
			select {
			case <-f.changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		var err error
		if log, over, err = f.open(ctx); err != nil {
			return err
		}
	}
}

// AttemptLog opens the log that this node has kept of an attempt, for other nodes. With
// q.Follow it ends when the attempt has ended. The error is job.ErrNoJobLog, or has the
// ledger's class.
func (r *reader) AttemptLog(ctx context.Context, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error) {
	f := &jobLog{reader: r, job: id, run: run, query: q}
	attempts, _, err := f.attempts(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range attempts {
		if a.Number != attempt || a.Node != r.cfg.Node {
			continue
		}
		log, err := f.localAttempt(ctx, a)
		if err != nil || log != nil {
			return log, err
		}
	}
	return nil, job.ErrNoJobLog
}
