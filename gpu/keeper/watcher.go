package keeper

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/errtext"
)

// watcher watches the driver for a Keeper, and retests GPUs that are out of service.
type watcher struct {
	keeper *Keeper
	wake   chan struct{} // receives when a GPU has gone out of service

	mu      sync.Mutex
	stop    context.CancelFunc // nil before start
	closed  bool
	running sync.WaitGroup
}

func newWatcher(k *Keeper) *watcher { return &watcher{keeper: k, wake: make(chan struct{}, 1)} }

func (w *watcher) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.running.Go(func() { w.watch(ctx) })
}

// close stops the watch and waits until it has ended.
func (w *watcher) close() {
	w.mu.Lock()
	w.closed = true
	if w.stop != nil {
		w.stop()
	}
	w.mu.Unlock()
	w.running.Wait()
}

// How long the watcher waits, at first and at most, before it retries after a failure.
const (
	firstPause = 5 * time.Second
	maxPause   = time.Minute
)

// watch runs sessions, with pauses between them, until ctx ends.
func (w *watcher) watch(ctx context.Context) {
	k := w.keeper
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := w.session(ctx)
		if ctx.Err() != nil {
			return
		}
		k.lost(err)
		if time.Since(began) > maxPause {
			pause = firstPause
		}
		if errdefs.IsNotFound(err) { // there is no driver, and it will hardly be installed soon
			pause = maxPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// session queries the GPUs, watches them and retests those that are out of service,
// until the watch fails.
func (w *watcher) session(ctx context.Context) error {
	k := w.keeper
	inv, err := k.cfg.Source.Inventory(ctx)
	if err != nil {
		return err
	}
	k.change(func() { k.applyInventory(inv) })
	for {
		k.mu.Lock()
		pci, any := k.watchable()
		k.mu.Unlock()
		watching, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() {
			defer cancel()
			if !any {
				<-watching.Done()
				ended <- watching.Err()
				return
			}
			err := k.cfg.Source.Watch(watching, gpu.Watch{Interval: k.cfg.Interval, PCI: pci}, k.observe)
			if err == nil {
				err = errors.New("the watch on the GPUs ended")
			}
			ended <- err
		}()
		changed := w.test(watching, pci, any)
		cancel()
		if err := <-ended; !changed || ctx.Err() != nil {
			return err
		}
	}
}

// test retests each GPU that is out of service when it is due. It returns false when ctx
// ends, and true when other GPUs than pci and any say are to be watched.
func (w *watcher) test(ctx context.Context, pci []string, any bool) (changed bool) {
	k := w.keeper
	for ctx.Err() == nil {
		var earliest time.Time
		k.mu.Lock()
		for _, c := range k.gpus {
			if c.out != "" && (earliest.IsZero() || c.retest.Before(earliest)) {
				earliest = c.retest
			}
		}
		nowPCI, nowAny := k.watchable()
		k.mu.Unlock()
		if nowAny != any || !slices.Equal(nowPCI, pci) {
			return true
		}
		var next <-chan time.Time
		if !earliest.IsZero() {
			wait := time.Until(earliest)
			if wait <= 0 {
				w.retest(ctx)
				continue
			}
			next = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-next:
		}
	}
	return false
}

// retest queries the driver for the GPUs that are out of service and due, and returns
// the healthy ones to service.
func (w *watcher) retest(ctx context.Context) {
	k := w.keeper
	inv, err := k.cfg.Source.Inventory(ctx)
	if ctx.Err() != nil {
		return
	}
	k.change(func() {
		now := time.Now()
		var found []*gpuRecord
		if err == nil {
			found = k.registerAll(inv)
			k.bind()
		}
		for key, c := range k.gpus {
			if c.out == "" || now.Before(c.retest) {
				continue
			}
			c.retest = now.Add(k.cfg.Retest)
			if err != nil {
				c.untested = errtext.Of(err)
				continue
			}
			i := slices.Index(found, c)
			switch {
			case i < 0 && c.UUID == "":
				delete(k.gpus, key)
				continue
			case i < 0:
				c.out = "the driver does not list it any more"
			case inv.GPUs[i].UUID == "":
				c.out = faultOf(&gpu.State{Lost: true})
			default:
				c.out = faultOf(&inv.GPUs[i].State)
			}
			c.untested = ""
			if c.out == "" {
				c.back, c.Lost = now, false
				c.errors = inv.GPUs[i].Uncorrectable
				k.log.Info("A GPU is back in service", "gpu", c.String(), "after", now.Sub(c.since).Round(time.Second))
			}
		}
		for i, c := range found {
			if c.out == "" { // one that is out of service keeps its last known state
				k.setState(c, inv.GPUs[i].State, now)
			}
		}
	})
}

// wakeTester wakes test, because a GPU has gone out of service.
func (w *watcher) wakeTester() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
