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

// watch ends one request that makes no progress for limit.
type watch struct {
	// kept says that the request goes on after its answer began; the reader of the
	// answer stops the watch then.
	kept  bool
	timer *time.Timer
	limit time.Duration
	end   context.CancelCauseFunc
	// progress says that bytes were sent or received.
	progress atomic.Bool
	// aside is how much of the request's time its caller took.
	aside time.Duration
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

// restart starts the limit anew, without any progress.
func (w *watch) restart() { w.timer.Reset(w.limit) }
func (w *watch) pause()   { w.timer.Stop() }

// meanwhile runs what the caller does with a part of the answer: that time is not the
// server's, for the limit and for what is observed.
func (w *watch) meanwhile(do func()) {
	w.pause()
	began := time.Now()
	do()
	w.aside += time.Since(began)
	w.moved()
}

func (w *watch) stop() {
	w.timer.Stop()
	w.end(context.Canceled)
}

// body wraps a request's body, so that reading it counts as progress.
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

// requester runs requests to one server: it tries again what may succeed on another
// try, ends what makes no progress, and gives errors their class.
type requester struct {
	url       string // as it is configured, for messages
	accessKey string // likewise
	tries     int
	patience  time.Duration
	stall     time.Duration
	observe   func(op string, took time.Duration, err error)
}

// try runs one request, for the operation op. It retries a failure that may be
// temporary until r.tries are spent or r.patience has passed since the first of the
// consecutive tries without progress: a request that broke off late in a large body is
// retried however long it took. It ends a request that makes no progress for limit. The
// error is classified.
func (r *requester) try(ctx context.Context, op string, limit time.Duration, request func(context.Context, *watch) error) error {
	return r.tryFrom(ctx, op, limit, func(ctx context.Context, w *watch, _ bool) error { return request(ctx, w) })
}

// tryFrom is try for a request that has to know whether the server may have carried out
// an earlier try in spite of its error (unsure).
func (r *requester) tryFrom(ctx context.Context, op string, limit time.Duration, request func(ctx context.Context, w *watch, unsure bool) error) error {
	var failing time.Time // since when no try made progress
	unsure := false
	for n := 1; ; n++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sent := time.Now()
		within, w := newWatch(ctx, limit)
		err := r.classify(ctx, within, request(within, w, unsure))
		if err != nil || !w.kept {
			w.stop()
		}
		r.observe(op, time.Since(sent)-w.aside, err)
		var f *requestError
		if err == nil || !errors.As(err, &f) || !f.again {
			return err
		}
		unsure = unsure || f.unsure
		if failing.IsZero() || w.progress.Load() {
			failing = time.Now()
		}
		if n >= r.tries || time.Since(failing) >= r.patience {
			return err
		}
		if err := rest(ctx, n); err != nil {
			return err
		}
	}
}

// rest waits before the next try, after n failed ones.
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
