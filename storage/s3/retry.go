package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Pauses between tries; each is drawn at random below its limit, so that many
// clients of a server that comes back do not return in step.
const (
	firstPause = 50 * time.Millisecond
	longPause  = time.Second
)

// watch ends one request when nothing moves for limit.
type watch struct {
	// kept says that the request goes on after its answer began, and that who
	// reads it stops the watch.
	kept  bool
	timer *time.Timer
	limit time.Duration
	end   context.CancelCauseFunc
	// progress says that something moved.
	progress atomic.Bool
}

func newWatch(ctx context.Context, limit time.Duration) (context.Context, *watch) {
	ctx, end := context.WithCancelCause(ctx)
	return ctx, &watch{limit: limit, end: end, timer: time.AfterFunc(limit, func() {
		end(fmt.Errorf("%w for %v", errStalled, limit))
	})}
}

func (w *watch) moved() {
	w.progress.Store(true)
	w.restart()
}

// restart begins to wait again, without anything having moved.
func (w *watch) restart() { w.timer.Reset(w.limit) }
func (w *watch) pause()   { w.timer.Stop() }

func (w *watch) stop() {
	w.timer.Stop()
	w.end(context.Canceled)
}

// body is a request's body that tells w when it is read.
func (w *watch) body(r io.Reader) io.Reader { return &watchedBody{r, w} }

type watchedBody struct {
	io.Reader
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n > 0 {
		b.watch.moved()
	}
	return n, err
}

// try runs one storage request, the operation op, and again what may succeed on another try,
// until s.tries are spent or s.patience has passed since the first of the tries
// in a row that brought nothing forward: one that broke off late in a large body
// is tried again however long it took. It ends a request in which nothing moves
// for limit. The error is classified.
func (s *Store) try(ctx context.Context, op string, limit time.Duration, request func(context.Context, *watch) error) error {
	return s.tryFrom(ctx, op, limit, func(ctx context.Context, w *watch, _ bool) error { return request(ctx, w) })
}

// tryFrom is try for a request to which it matters whether an earlier try may
// have been carried out in spite of its error (unsure).
func (s *Store) tryFrom(ctx context.Context, op string, limit time.Duration, request func(ctx context.Context, w *watch, unsure bool) error) error {
	var failing time.Time // since when no try brought anything forward
	unsure := false
	for n := 1; ; n++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sent := time.Now()
		within, w := newWatch(ctx, limit)
		err := s.classify(ctx, within, request(within, w, unsure))
		if err != nil || !w.kept {
			w.stop()
		}
		s.observe(op, time.Since(sent), err)
		var f *requestError
		if err == nil || !errors.As(err, &f) || !f.again {
			return err
		}
		unsure = unsure || f.unsure
		if failing.IsZero() || w.progress.Load() {
			failing = time.Now()
		}
		if n >= s.tries || time.Since(failing) >= s.patience {
			return err
		}
		if err := rest(ctx, n); err != nil {
			return err
		}
	}
}

// rest waits before another try, after n that failed.
func rest(ctx context.Context, n int) error {
	limit := min(firstPause<<min(n, 10), longPause)
	timer := time.NewTimer(rand.N(limit))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
