// Package sim runs the real core and the real ledger on virtual time, with fake sheep and
// storage and random faults, and checks the guarantees. make sim runs any number of seeds, or
// one.
package sim

import (
	"context"
	"errors"
	"fmt"
	"testing/synctest"
	"time"
)

// The bounds of a world's two phases.
const (
	safetyTime  = 3 * time.Minute
	safetySteps = 500
	livenessIn  = 2 * time.Hour // longer than clocks are off
	livenessMax = 30_000        // steps
)

// live runs a world from its beginning to its end.
func (w *world) live() error {
	w.newClients()
	err := w.run(synctest.Wait, safetySteps, safetyTime, func() bool { return false })
	if errors.Is(err, errNoEnd) {
		err = nil // as it should
	}
	if err == nil {
		w.heal()
		calm := time.Now().Add(2 * time.Minute) // longer than any pause after a fault
		what := ""
		err = w.run(synctest.Wait, livenessMax, livenessIn, func() bool {
			if w.oracle.calm = w.peaceful || time.Now().After(calm); w.oracle.calm {
				w.oracle.idles()
			}
			if len(w.up()) < len(w.nodes) {
				what = "not all daemons are up"
				return false
			}
			for _, c := range w.clients {
				if !c.finished() {
					what = fmt.Sprintf("the client of %s has not been told its end", c.id)
					return false
				}
			}
			var ok bool
			ok, what = w.oracle.settled()
			return ok
		})
		if err != nil {
			err = fmt.Errorf("%w; %s", err, what)
		}
	}
	if stop := w.stop(); err == nil {
		err = stop
	}
	if err == nil {
		w.oracle.verdict()
		err = w.oracle.look()
	}
	w.work.Wait()
	if close := w.ledger.Close(); err == nil {
		err = close
	}
	return err
}

// stop stops all nodes. Goroutines that are left fail the bubble.
func (w *world) stop() error {
	w.faulty = false
	for _, n := range w.nodes {
		clear(n.cut)
		n.until = time.Now()
	}
	w.clients = nil
	for _, n := range w.nodes {
		i := n.now
		if i == nil || i.stops {
			continue
		}
		i.gone, i.stops = true, true
		w.work.Go(func() {
			i.ends.Wait()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			i.core.Stop(ctx)
		})
	}
	ended := make(chan struct{})
	go func() {
		w.work.Wait()
		close(ended)
	}()
	for over := time.Now().Add(time.Hour); ; {
		synctest.Wait()
		w.obey()
		select {
		case <-ended:
			return nil
		default:
		}
		if time.Now().After(over) {
			return fmt.Errorf("%w: not all daemons have stopped", errNoEnd)
		}
		if ready, _ := w.ready(); len(ready) > 0 {
			w.settle(choose(w.dice, ready))
			continue
		}
		w.sleep(time.Second)
	}
}
