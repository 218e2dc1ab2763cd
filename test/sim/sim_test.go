// Package sim runs the real core and the real ledger on virtual time, with fake
// sheep and storage, against everything that can happen to them, and looks whether
// the promises hold. make sim runs any number of seeds, or one.
package sim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds to run; 0 is as many as CI has time for")
	first = flag.Uint64("first", 1, "the first of them")
	one   = flag.Int64("seed", -1, "the one seed to run, with a journal of all that happens")
)

// defaultSeeds are those of CI.
const (
	defaultSeeds = 1500
	racySeeds    = 100
)

// The bounds of a world's two phases.
const (
	safetyTime  = 5 * time.Minute
	safetySteps = 1200
	livenessIn  = time.Hour
	livenessMax = 30_000 // steps
)

// report is what came of a seed.
type report struct {
	err   error
	steps int
	sum   uint64
	did   map[string]int
	lines []string
	virt  time.Duration
}

// play runs one seed's world in a bubble.
func play(t *testing.T, seed uint64, dir string) report {
	var r report
	synctest.Test(t, func(*testing.T) {
		began := time.Now()
		w, err := newWorld(seed, dir)
		if err != nil {
			r.err = err
			return
		}
		r.err = w.live()
		r.steps, r.sum, r.did, r.lines = w.steps, w.log.sum, w.did, w.log.lines
		r.virt = time.Since(began)
	})
	return r
}

// live is a world from its beginning to its end.
func (w *world) live() error {
	w.newClients()
	err := w.run(synctest.Wait, safetySteps, safetyTime, func() bool { return false })
	if errors.Is(err, errNoEnd) {
		err = nil // as it should
	}
	if err == nil {
		w.heal()
		calm := time.Now().Add(2 * time.Minute) // the longest pause that a fault leaves behind
		what := ""
		err = w.run(synctest.Wait, livenessMax, livenessIn, func() bool {
			if time.Now().After(calm) {
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

// stop ends all nodes. The goroutines that a world leaves behind fail its bubble.
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

// TestSeeds runs the seeds of CI, or those that flags name.
func TestSeeds(t *testing.T) {
	n := defaultSeeds
	if raceEnabled {
		n = racySeeds
	}
	if *seeds > 0 {
		n = *seeds
	}
	from := *first
	if *one >= 0 {
		n, from = 1, uint64(*one)
	}
	base := tempDir(t)
	did := make(map[string]int)
	steps, virt, began := 0, time.Duration(0), time.Now()
	for seed := from; seed < from+uint64(n); seed++ {
		dir := filepath.Join(base, fmt.Sprint(seed))
		check(t, os.Mkdir(dir, 0o755))
		r := play(t, seed, dir)
		check(t, os.RemoveAll(dir))
		for kind, times := range r.did {
			did[kind] += times
		}
		steps += r.steps
		virt += r.virt
		if *one >= 0 {
			t.Logf("journal %x:\n%s", r.sum, strings.Join(r.lines, "\n"))
		}
		if r.err != nil {
			t.Fatalf("seed %d: %v\n\n%s\n\nTo repeat it: make sim SEED=%d", seed, r.err, tail(r.lines, 5000), seed)
		}
	}
	t.Logf("%d seeds, %d steps, %s of virtual time in %s; faults: %v", n, steps, virt.Round(time.Minute), time.Since(began).Round(time.Second), did)
}

func tail(lines []string, n int) string {
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
