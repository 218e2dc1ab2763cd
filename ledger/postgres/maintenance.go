package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// The most rows that one maintenance statement changes.
const (
	timerBatch = 64   // jobs whose time has come
	sweepBatch = 2000 // records, and events, that are no longer kept
)

// longestSweep is the longest interval between sweeps: a sweep also stores the ledger's
// age, which may be at most two minutes behind (see the view moment).
const longestSweep = time.Minute

// maxClosed is how much the ledger ages at most while no node has it open.
const maxClosed = 24 * time.Hour

// maintenance is the ledger's background work, in a goroutine of its own: it makes delayed
// jobs claimable, fails those that waited too long, releases the claims of nodes whose leases
// have ended, and removes what is no longer kept. Every node runs it; each statement is safe
// to run concurrently.
type maintenance struct {
	l     *Ledger
	pulse *pulse
	woken chan struct{}
	quit  context.CancelFunc
	done  sync.WaitGroup

	mu sync.Mutex
	todo

	// Only the goroutine touches these.
	swept  time.Time // when the ledger was swept last
	outage outage
}

// todo is the work that there may be.
type todo struct {
	nextTimer time.Time // when jobs' time comes next, by this machine's clock; zero for never
	endings   int       // of runs, since the last sweep
	events    int       // recorded since the last sweep
	unknown   []unknownClaim
	handBacks []*ledger.Claim
	blocked   bool     // there are jobs that are after others which have not ended
	unsettled bool     // one of these may have ended since they were looked at
	lapsed    []string // other nodes whose leases have ended
	fold      bool     // the tally has many rows
}

// unknownClaim is a claim whose outcome is unknown.
type unknownClaim struct{ node, key string }

func newMaintenance(l *Ledger) *maintenance {
	m := &maintenance{l: l, woken: make(chan struct{}, 1)}
	m.pulse = &pulse{m: m}
	return m
}

func (m *maintenance) start() {
	ctx, quit := context.WithCancel(context.Background())
	m.quit = quit
	m.done.Go(func() { m.pulse.run(ctx) })
	m.done.Go(func() { m.run(ctx) })
}

func (m *maintenance) stop() {
	if m.quit != nil {
		m.quit()
		m.done.Wait()
	}
}

func (m *maintenance) wake() {
	select {
	case m.woken <- struct{}{}:
	default:
	}
}

// setTimer schedules a run of the timers at a time of the server's clock. This machine's
// clock may differ: each pulse reads the time again.
func (m *maintenance) setTimer(at time.Time) {
	m.mu.Lock()
	sooner := m.nextTimer.IsZero() || at.Before(m.nextTimer)
	if sooner {
		m.nextTimer = at
	}
	m.mu.Unlock()
	if sooner {
		m.wake()
	}
}

// ended counts a run that ended.
func (m *maintenance) ended() {
	m.mu.Lock()
	m.endings++
	m.unsettled = m.unsettled || m.blocked
	due := m.sweepDue() || m.unsettled
	m.mu.Unlock()
	if due {
		m.wake()
	}
}

// blocks notes that there are blocked jobs.
func (m *maintenance) blocks() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocked = true
}

// recorded counts an event.
func (m *maintenance) recorded() {
	m.mu.Lock()
	m.events++
	due := m.sweepDue()
	m.mu.Unlock()
	if due {
		m.wake()
	}
}

// sweepDue reports whether there may be enough to remove; m.mu is held.
func (m *maintenance) sweepDue() bool {
	return m.endings > m.l.cfg.KeepJobs/100 || m.events > m.l.cfg.EventNumber/50
}

// settleClaim queues a claim with an unknown outcome: it is looked up, and released if it
// was made.
func (m *maintenance) settleClaim(node, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unknown = append(m.unknown, unknownClaim{node, key})
}

// handBack queues a claim to be released.
func (m *maintenance) handBack(claim *ledger.Claim) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handBacks = append(m.handBacks, claim)
}

// found stores what a pulse found to do. next is a time of the server's clock, which is now.
func (m *maintenance) found(now time.Time, next *time.Time, blocked, unsettled bool, lapsed []string, fold bool) {
	m.setNext(now, next)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocked, m.unsettled = blocked, m.unsettled || unsettled
	m.lapsed, m.fold = lapsed, fold
	if m.unsettled || len(lapsed) > 0 || fold || next != nil {
		m.wake()
	}
}

func (m *maintenance) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.woken:
		}
		m.outage.report(m.l, m.work(ctx), "Cannot run timers, take back the jobs of lost nodes or remove expired records; retrying", "The ledger is maintained again")
		rest := m.l.cfg.Poll
		m.mu.Lock()
		if !m.nextTimer.IsZero() && !m.outage.lasts {
			rest = min(rest, time.Until(m.nextTimer))
		}
		m.mu.Unlock()
		timer.Reset(max(rest, time.Millisecond))
	}
}

// outage is whether work that is repeated fails.
type outage struct{ lasts bool }

// report logs, once each, when the work starts to fail and when it succeeds again.
func (o *outage) report(l *Ledger, err error, fails, succeeds string) {
	switch {
	case err == nil && o.lasts:
		o.lasts = false
		l.cfg.Log.Info(succeeds, "server", l.server)
	case err != nil && !errors.Is(err, context.Canceled) && !o.lasts:
		o.lasts = true
		l.cfg.Log.Warn(fails, "error", explain(l.server, "maintain the ledger", err))
	}
}

// work does what is due now.
func (m *maintenance) work(ctx context.Context) error {
	if err := once(ctx, m.settleClaims); err != nil {
		return err
	}
	m.mu.Lock()
	timers := !m.nextTimer.IsZero() && !time.Now().Before(m.nextTimer)
	unsettled, lapsed := m.unsettled, m.lapsed
	m.unsettled, m.lapsed = false, nil
	sweep := m.fold || m.sweepDue() || time.Since(m.swept) >= m.sweepEvery()
	m.mu.Unlock()
	for _, node := range lapsed {
		if err := once(ctx, func(ctx context.Context) error { return m.takeBack(ctx, node) }); err != nil {
			return err // the next pulse finds it again
		}
	}
	if timers {
		if err := once(ctx, m.runTimers); err != nil {
			return err
		}
	}
	if unsettled {
		if err := once(ctx, m.settle); err != nil {
			return err // the next pulse finds it again
		}
	}
	if sweep {
		return once(ctx, m.sweep)
	}
	return nil
}

// sweepEvery is the interval between the sweeps of a ledger with few changes.
func (m *maintenance) sweepEvery() time.Duration {
	return min(max(min(m.l.cfg.Keep, m.l.cfg.EventKeep)/64, time.Second), longestSweep)
}

// setNext sets the timer to a time of the server's clock, which is now.
func (m *maintenance) setNext(now time.Time, next *time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nextTimer = time.Time{}
	if next != nil {
		m.nextTimer = time.Now().Add(next.Sub(now))
	}
}

// settleClaims releases claims that nobody got.
func (m *maintenance) settleClaims(ctx context.Context) error {
	m.mu.Lock()
	unknown, handBacks := m.unknown, m.handBacks
	m.unknown, m.handBacks = nil, nil
	m.mu.Unlock()
	var failed error
	for _, claim := range unknown {
		made, err := m.l.callOff(ctx, claim.node, claim.key)
		if err != nil {
			failed = err
			m.settleClaim(claim.node, claim.key)
		} else if made != nil {
			handBacks = append(handBacks, made)
		}
	}
	for _, claim := range handBacks {
		if err := m.release(ctx, claim, handedBack); err != nil {
			failed = err
			m.handBack(claim)
		}
	}
	return failed
}

// release releases a claim, unless another node has.
func (m *maintenance) release(ctx context.Context, claim *ledger.Claim, why ledger.Return) error {
	for {
		switch _, err := m.l.applyTo(ctx, claim.ID, newKey(), m.l.release(claim.Token, why)); {
		case errors.Is(err, errConflict): // another node has just changed the record: look again
		case errors.Is(err, ledger.ErrFenced):
			return nil
		default:
			return err
		}
	}
}

// takeBack releases the claims of a node whose lease has ended, unless it has joined again
// since that was found. Those that were running are spent: what took the node down may have
// been the job.
func (m *maintenance) takeBack(ctx context.Context, node string) error {
	held, err := m.l.held(ctx, queryHeldLapsed, node)
	if err != nil {
		return err
	}
	for _, claim := range held {
		why := ledger.Return{
			Cause: job.CauseNodeLost, Spent: claim.State == job.Processing,
			Reason: fmt.Sprintf("the lease of node %s has ended", node),
		}
		if err := m.release(ctx, &claim, why); err != nil {
			return err
		}
	}
	if len(held) > 0 {
		m.l.cfg.Log.Warn("The lease of another node has ended; the jobs that it held are queued again", "node", node, "jobs", len(held))
	}
	_, err = m.l.exec(ctx, queryLapse, pgx.NamedArgs{"node": node})
	return err
}

// runTimers makes jobs claimable whose time has come, and fails those that waited
// for too long.
func (m *maintenance) runTimers(ctx context.Context) error {
	for full := true; full; {
		var due int
		_, err := m.l.queryOne(ctx, queryRunDue, pgx.NamedArgs{"limit": timerBatch, "key": newKey()}, &due)
		if err != nil {
			return err
		}
		var overdue []job.ID
		err = m.l.query(ctx, queryOverdue, pgx.NamedArgs{"limit": timerBatch}, func(rows pgx.Rows) error {
			var id job.ID
			err := rows.Scan(&id)
			overdue = append(overdue, id)
			return err
		})
		if err != nil {
			return err
		}
		for _, id := range overdue {
			_, err := m.l.applyTo(ctx, id, newKey(), func(r *lifecycle.Row, now lifecycle.Moment) (lifecycle.Change, error) {
				return r.GiveUp(m.l.retention, now), nil
			})
			if err != nil && !errors.Is(err, errConflict) { // another node gives it up
				return err
			}
		}
		if due > 0 {
			m.recorded()
			m.l.bell.ringAll()
		}
		full = due == timerBatch || len(overdue) == timerBatch
	}
	var now time.Time
	var next *time.Time
	if _, err := m.l.queryOne(ctx, queryNextTimer, nil, &now, &next); err != nil {
		return err
	}
	m.setNext(now, next)
	return nil
}

// keepAge brings the ledger's age up to date when the ledger is opened.
func (m *maintenance) keepAge(ctx context.Context) error {
	m.swept = time.Now()
	_, err := m.l.exec(ctx, queryKeepAge, pgx.NamedArgs{"most": maxClosed.Microseconds()})
	return err
}

// sweep keeps the ledger's age, and removes what is no longer kept.
func (m *maintenance) sweep(ctx context.Context) error {
	elapsed := time.Since(m.swept)
	m.mu.Lock()
	m.endings, m.events, m.fold = 0, 0, false
	m.mu.Unlock()
	settled := m.l.eventLog.horizon.number()
	for {
		swept := time.Now()
		var expired, pruned int
		batch := &pgx.Batch{}
		batch.Queue(querySweepLock)
		batch.Queue(queryKeepAge, pgx.NamedArgs{"most": elapsed.Microseconds()})
		batch.Queue(queryExpire, pgx.NamedArgs{"keep_jobs": m.l.cfg.KeepJobs, "keep": m.l.cfg.Keep.Microseconds(), "limit": sweepBatch}).
			QueryRow(func(row pgx.Row) error { return row.Scan(&expired) })
		batch.Queue(queryPrune, pgx.NamedArgs{"settled": settled, "keep_events": m.l.cfg.EventNumber, "event_keep": m.l.cfg.EventKeep.Microseconds(), "limit": sweepBatch}).
			QueryRow(func(row pgx.Row) error { return row.Scan(&pruned) })
		batch.Queue(queryFold)
		if policy := m.l.cfg.Policy; policy.Shares() {
			batch.Queue(queryFoldUsed, pgx.NamedArgs{"half_life": policy.HalfLife.Microseconds()})
		}
		batch.Queue(queryDropKeys)
		if err := m.l.batch(ctx, batch); err != nil {
			return err
		}
		elapsed, m.swept = time.Since(swept), swept
		if expired < sweepBatch && pruned < sweepBatch {
			return nil
		}
	}
}
