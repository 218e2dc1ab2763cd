package shepherd

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// stuckAfter is how long a lane's feeder or worker may take for one bounded operation before
// it counts as stuck. The longest such operation is stopping a runner that does not react.
const stuckAfter = 10 * time.Minute

// pulse shows whether a goroutine of a lane makes progress. The goroutine either waits for
// something unbounded (a job, an answer, an image pull) or works on something bounded.
type pulse struct {
	busy atomic.Int64 // start of the current work in Unix nanoseconds; 0 while waiting
}

func (p *pulse) waits() { p.busy.Store(0) }
func (p *pulse) works() { p.busy.Store(time.Now().UnixNano()) }

// stuck returns how long the goroutine has worked on one thing, and whether that is too
// long.
func (p *pulse) stuck(now time.Time) (time.Duration, bool) {
	since := p.busy.Load()
	if since == 0 {
		return 0, false
	}
	d := now.Sub(time.Unix(0, since))
	return d, d > stuckAfter
}

// Alive checks that the core makes progress: that no lane is stuck, no lock is held forever,
// and the ledger answers a write and a read, even with an error. The error says what is
// stuck; ctx bounds the check. Unavailable dependencies (a full disk, storage that does not
// answer) are reported by Checks; restarting the daemon does not help against them.
func (s *Shepherd) Alive(ctx context.Context) error {
	return s.aliveAt(ctx, time.Now())
}

func (s *Shepherd) aliveAt(ctx context.Context, now time.Time) error {
	looked := make(chan error, 1)
	go func() { // a lock that is held forever blocks this goroutine
		for _, l := range s.env.flock.all() {
			l.view()
			for what, p := range map[string]*pulse{"claiming of jobs": &l.feeder.pulse, "running of jobs": &l.worker.pulse} {
				if d, stuck := p.stuck(now); stuck {
					looked <- fmt.Errorf("the %s of sheep %s has been stuck for %s", what, l.Name, d.Round(time.Second))
					return
				}
			}
		}
		looked <- nil
	}()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_ = s.cfg.Ledger.Ping(ctx) // writes
		_, _ = s.cfg.Ledger.Count(ctx)
	}()
	select {
	case err := <-looked:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return fmt.Errorf("a lock of the sheep is stuck: %w", ctx.Err())
	}
	select {
	case <-answered:
	case <-ctx.Done():
		return fmt.Errorf("the ledger is stuck: %w", ctx.Err())
	}
	if ctx.Err() != nil { // it may have answered only because ctx ended
		return fmt.Errorf("the ledger is stuck: %w", ctx.Err())
	}
	return nil
}
