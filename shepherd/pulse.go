package shepherd

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// stuckAfter is how long the feeder or the worker of a lane may be at what takes
// milliseconds when all is well, and is bounded when it is not: the longest such
// thing is to stop a runner that does not want to.
const stuckAfter = 10 * time.Minute

// pulse shows that a goroutine of a lane still goes round. It waits, for what may
// never come (a job, an answer, a model's image), or it is at something that has
// to end.
type pulse struct {
	busy atomic.Int64 // since when, in Unix nanoseconds; 0 while it waits
}

func (p *pulse) waits() { p.busy.Store(0) }
func (p *pulse) works() { p.busy.Store(time.Now().UnixNano()) }

// stuck says for how long the goroutine has been at one thing, where that is too
// long.
func (p *pulse) stuck(now time.Time) (time.Duration, bool) {
	since := p.busy.Load()
	if since == 0 {
		return 0, false
	}
	d := now.Sub(time.Unix(0, since))
	return d, d > stuckAfter
}

// Alive looks whether the core still works: every lane goes round, none of its
// locks is held for ever, and the ledger answers to a write and to a read, be it
// that it cannot. The error says what is stuck; ctx bounds how long anything may
// take to answer. What is merely out of order (a full disk, storage that is away)
// is told by Checks, and is no reason to begin again.
func (s *Shepherd) Alive(ctx context.Context) error {
	return s.aliveAt(ctx, time.Now())
}

func (s *Shepherd) aliveAt(ctx context.Context, now time.Time) error {
	looked := make(chan error, 1)
	go func() { // which a lock that is held for ever would never let end
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
	if ctx.Err() != nil { // it answered because it was told to give up
		return fmt.Errorf("the ledger is stuck: %w", ctx.Err())
	}
	return nil
}
