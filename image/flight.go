package image

import (
	"context"
	"errors"
	"sync"
)

// errAbandoned is the cause with which work is cancelled when no caller waits for it.
var errAbandoned = errors.New("no caller waits for the image any more")

// errClosed is the cause with which work is cancelled when the Store is closed.
var errClosed = errors.New("the image store is closed: shepherd is stopping")

// flights merges concurrent calls for one key into one run of the work. The run goes
// on while any of the callers waits, even if the one that started it has left.
type flights struct {
	mu     sync.Mutex
	byKey  map[string]*flight
	closed bool
	wg     sync.WaitGroup
}

type flight struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	image  Image
	err    error

	// Under flights.mu.
	waiting   int
	abandoned bool // may not be joined: no caller waits and the work is being cancelled, or it is hold's
	observers map[int]func(Progress)
	next      int

	reporting sync.Mutex // reports come one at a time
}

// do runs work, or joins the run under way. observe is not called after do has
// returned.
func (f *flights) do(ctx context.Context, key string, observe func(Progress), work func(context.Context, func(Progress)) (Image, error)) (Image, error) {
	f.mu.Lock()
	fl := f.byKey[key]
	for fl != nil && fl.abandoned { // wait until it has cleaned up
		f.mu.Unlock()
		select {
		case <-fl.done:
		case <-ctx.Done():
			return Image{}, context.Cause(ctx)
		}
		f.mu.Lock()
		fl = f.byKey[key]
	}
	if f.closed {
		f.mu.Unlock()
		return Image{}, errClosed
	}
	if fl == nil {
		fl = f.launch(ctx, key, work)
	}
	fl.waiting++
	id := fl.next
	fl.next++
	fl.observers[id] = observe
	f.mu.Unlock()

	var cancelled bool
	select {
	case <-fl.done:
	case <-ctx.Done():
		cancelled = true
	}
	fl.reporting.Lock() // wait for a report that is under way
	f.mu.Lock()
	delete(fl.observers, id)
	fl.waiting--
	if fl.waiting == 0 && cancelled {
		fl.abandoned = true
		fl.cancel(errAbandoned)
	}
	f.mu.Unlock()
	fl.reporting.Unlock()
	if cancelled {
		return Image{}, context.Cause(ctx)
	}
	return fl.image, fl.err
}

// hold keeps work for key from starting until release is called. ok is false, and release
// nil, while there is such work.
func (f *flights) hold(key string) (release func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byKey[key] != nil {
		return nil, false
	}
	fl := &flight{cancel: func(error) {}, done: make(chan struct{}), abandoned: true}
	f.byKey[key] = fl
	return func() {
		f.mu.Lock()
		delete(f.byKey, key)
		f.mu.Unlock()
		close(fl.done)
	}, true
}

// launch starts the work; the caller holds f.mu.
func (f *flights) launch(ctx context.Context, key string, work func(context.Context, func(Progress)) (Image, error)) *flight {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fl := &flight{cancel: cancel, done: make(chan struct{}), observers: map[int]func(Progress){}}
	f.byKey[key] = fl
	f.wg.Go(func() {
		defer cancel(nil)
		fl.image, fl.err = work(ctx, func(p Progress) { f.report(fl, p) })
		f.mu.Lock()
		delete(f.byKey, key)
		f.mu.Unlock()
		close(fl.done)
	})
	return fl
}

func (f *flights) report(fl *flight, p Progress) {
	fl.reporting.Lock()
	defer fl.reporting.Unlock()
	f.mu.Lock()
	observers := make([]func(Progress), 0, len(fl.observers))
	for _, o := range fl.observers {
		observers = append(observers, o)
	}
	f.mu.Unlock()
	for _, o := range observers {
		o(p)
	}
}

// keys returns the keys of the work under way, and of those that are held.
func (f *flights) keys() map[string]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys := make(map[string]bool, len(f.byKey))
	for k := range f.byKey {
		keys[k] = true
	}
	return keys
}

// close cancels all work and waits until it has ended.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.byKey {
		fl.cancel(errClosed)
	}
	f.mu.Unlock()
	f.wg.Wait()
}
