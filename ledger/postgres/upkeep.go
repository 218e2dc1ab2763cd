package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// How much one statement of the upkeep changes at most.
const (
	timerBatch = 64   // jobs whose time has come
	sweepBatch = 2000 // records, and events, that are no longer kept
)

// longestSweep is how often the ledger is swept at least: its age is kept then, which
// may be behind for two minutes (see the view moment).
const longestSweep = time.Minute

// maxClosed is how much the ledger ages at most while no node has it open.
const maxClosed = 24 * time.Hour

// upkeep does what no caller asks for, from a goroutine of its own: it renews leases,
// asks for changes that no doorbell told, makes delayed jobs claimable, fails those
// that waited too long, takes back the claims of nodes whose leases have ended, and
// removes what is no longer kept. All nodes do; what two do at a time is done once.
type upkeep struct {
	l     *Ledger
	woken chan struct{}
	quit  context.CancelFunc
	done  sync.WaitGroup

	mu        sync.Mutex
	nextTimer time.Time // when jobs' time comes next, by this machine's clock; zero for never
	endings   int       // of runs, since the last sweep
	events    int       // recorded since the last sweep
	unknown   []unknownClaim
	handBacks []*ledger.Claim
	blocked   bool // there are jobs that are after others which have not ended
	unsettled bool // one of these may have ended since they were looked at

	// Only the goroutine touches these.
	renewed   time.Time // when leases were renewed last
	swept     time.Time // when the ledger was swept last
	lastEvent int64     // the last number of an event that was seen
	failing   bool
}

// unknownClaim is a claim of which it is not known whether it was made.
type unknownClaim struct{ node, key string }

func newUpkeep(l *Ledger) *upkeep { return &upkeep{l: l, woken: make(chan struct{}, 1)} }

func (u *upkeep) start() {
	ctx, quit := context.WithCancel(context.Background())
	u.quit = quit
	u.done.Go(func() { u.run(ctx) })
}

func (u *upkeep) stop() {
	if u.quit != nil {
		u.quit()
		u.done.Wait()
	}
}

func (u *upkeep) wake() {
	select {
	case u.woken <- struct{}{}:
	default:
	}
}

// setTimer has jobs looked at that wait for a time of the server's clock. The two
// clocks may differ: the time is looked up again soon (see pulse).
func (u *upkeep) setTimer(at time.Time) {
	u.mu.Lock()
	sooner := u.nextTimer.IsZero() || at.Before(u.nextTimer)
	if sooner {
		u.nextTimer = at
	}
	u.mu.Unlock()
	if sooner {
		u.wake()
	}
}

// ended counts a run that ended.
func (u *upkeep) ended() {
	u.mu.Lock()
	u.endings++
	u.unsettled = u.unsettled || u.blocked
	due := u.sweepDue() || u.unsettled
	u.mu.Unlock()
	if due {
		u.wake()
	}
}

// blocks notes that there are blocked jobs.
func (u *upkeep) blocks() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.blocked = true
}

// recorded counts an event.
func (u *upkeep) recorded() {
	u.mu.Lock()
	u.events++
	due := u.sweepDue()
	u.mu.Unlock()
	if due {
		u.wake()
	}
}

// sweepDue reports whether there may be enough to remove; u.mu is held.
func (u *upkeep) sweepDue() bool {
	return u.endings > u.l.cfg.KeepJobs/100 || u.events > u.l.cfg.EventNumber/50
}

// settleClaim has it found out whether a claim was made, and the claim released.
func (u *upkeep) settleClaim(node, key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.unknown = append(u.unknown, unknownClaim{node, key})
}

// handBack has a claim released.
func (u *upkeep) handBack(claim *ledger.Claim) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handBacks = append(u.handBacks, claim)
}

func (u *upkeep) run(ctx context.Context) {
	var polled time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-u.woken:
		}
		poll := time.Since(polled) >= u.l.cfg.Poll
		if poll {
			polled = time.Now()
		}
		u.report(u.work(ctx, poll))
		rest := time.Until(polled.Add(u.l.cfg.Poll))
		u.mu.Lock()
		if !u.nextTimer.IsZero() && !u.failing {
			rest = min(rest, time.Until(u.nextTimer))
		}
		u.mu.Unlock()
		timer.Reset(max(rest, time.Millisecond))
	}
}

// report logs that upkeep fails, and that it does so no more.
func (u *upkeep) report(err error) {
	switch {
	case err == nil && u.failing:
		u.failing = false
		u.l.cfg.Log.Info("The ledger's database answers again", "server", u.l.server)
	case err != nil && !errors.Is(err, context.Canceled) && !u.failing:
		u.failing = true
		u.l.cfg.Log.Warn("Cannot renew leases, run timers or remove what is no longer kept; it is tried again",
			slog.Any("error", explain(u.l.server, "maintain the ledger", err)))
	}
}

// work does what is due now.
func (u *upkeep) work(ctx context.Context, poll bool) error {
	if poll {
		if err := once(ctx, u.pulse); err != nil {
			return err
		}
		if err := once(ctx, u.settleClaims); err != nil {
			return err
		}
	}
	u.mu.Lock()
	timers := !u.nextTimer.IsZero() && !time.Now().Before(u.nextTimer)
	unsettled := u.unsettled
	u.unsettled = false
	sweep := u.sweepDue() || time.Since(u.swept) >= u.sweepEvery()
	u.mu.Unlock()
	if timers {
		if err := once(ctx, u.runTimers); err != nil {
			return err
		}
	}
	if unsettled {
		if err := once(ctx, u.settle); err != nil {
			return err // the next pulse sees it again
		}
	}
	if sweep {
		return once(ctx, u.sweep)
	}
	return nil
}

// sweepEvery is how often the ledger is swept where little happens.
func (u *upkeep) sweepEvery() time.Duration {
	return min(max(min(u.l.cfg.Keep, u.l.cfg.EventKeep)/64, time.Second), longestSweep)
}

// pulse renews leases that are due for it, and asks what there is to do.
func (u *upkeep) pulse(ctx context.Context) error {
	asked := time.Now()
	nodes, generations := u.l.leases.list()
	mine, renew := nodes, asked.Sub(u.renewed) >= u.l.cfg.renewEvery()
	if !renew {
		nodes, generations = []string{}, []int64{}
	}
	var now time.Time
	var renewed, lapsed, draining []string
	var last, rows int64
	var next *time.Time
	var blocked, unsettled bool
	_, err := u.l.queryOne(ctx, queryPulse, pgx.NamedArgs{"names": nodes, "generations": generations, "lease": u.l.cfg.Lease.Microseconds()},
		&now, &renewed, &last, &next, &blocked, &unsettled, &lapsed, &draining, &rows)
	if err != nil {
		return err
	}
	u.mu.Lock()
	u.blocked, u.unsettled = blocked, u.unsettled || unsettled
	u.mu.Unlock()
	if renew {
		u.renewed = asked
		u.l.leases.renewed(asked, nodes, generations, renewed)
	}
	if u.l.leases.setDraining(draining) || last > u.lastEvent || u.l.horizon.waiting() {
		u.lastEvent = last
		u.l.bell.ring()
	}
	u.setNext(now, next)
	if len(mine) > 0 {
		for _, node := range lapsed {
			if slices.Contains(mine, node) {
				continue
			}
			if err := u.takeBack(ctx, node); err != nil {
				return err
			}
		}
	}
	if rows > foldAbove {
		return u.sweep(ctx)
	}
	return nil
}

// setNext sets the timer to a time of the server's clock, which is now.
func (u *upkeep) setNext(now time.Time, next *time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.nextTimer = time.Time{}
	if next != nil {
		u.nextTimer = time.Now().Add(next.Sub(now))
	}
}

// settleClaims releases claims that nobody got.
func (u *upkeep) settleClaims(ctx context.Context) error {
	u.mu.Lock()
	unknown, handBacks := u.unknown, u.handBacks
	u.unknown, u.handBacks = nil, nil
	u.mu.Unlock()
	var failed error
	for _, claim := range unknown {
		made, err := u.l.callOff(ctx, claim.node, claim.key)
		if err != nil {
			failed = err
			u.settleClaim(claim.node, claim.key)
		} else if made != nil {
			handBacks = append(handBacks, made)
		}
	}
	for _, claim := range handBacks {
		_, err := u.l.applyTo(ctx, claim.ID, newKey(), u.l.release(claim.Token, handedBack))
		if err != nil && !errors.Is(err, ledger.ErrFenced) {
			failed = err
			u.handBack(claim)
		}
	}
	return failed
}

// takeBack releases the claims of a node whose lease has ended. Those that were
// running are spent: what took the node down may have been the job.
func (u *upkeep) takeBack(ctx context.Context, node string) error {
	held, err := u.l.held(ctx, node)
	if err != nil {
		return err
	}
	for _, claim := range held {
		why := ledger.Return{
			Cause: job.CauseNodeLost, Spent: claim.State == job.Processing,
			Reason: fmt.Sprintf("node %s was not heard from", node),
		}
		_, err := u.l.applyTo(ctx, claim.ID, newKey(), u.l.release(claim.Token, why))
		if err != nil && !errors.Is(err, ledger.ErrFenced) {
			return err
		}
	}
	if len(held) > 0 {
		u.l.cfg.Log.Warn("The lease of another node has ended; the jobs that it held are queued again", "node", node, "jobs", len(held))
	}
	_, err = u.l.exec(ctx, queryLapse, pgx.NamedArgs{"node": node})
	return err
}

// runTimers makes jobs claimable whose time has come, and fails those that waited
// for too long.
func (u *upkeep) runTimers(ctx context.Context) error {
	for full := true; full; {
		var due int
		_, err := u.l.queryOne(ctx, queryRunDue, pgx.NamedArgs{"limit": timerBatch, "key": newKey()}, &due)
		if err != nil {
			return err
		}
		var overdue []job.ID
		err = u.l.query(ctx, queryOverdue, pgx.NamedArgs{"limit": timerBatch}, func(rows pgx.Rows) error {
			var id job.ID
			err := rows.Scan(&id)
			overdue = append(overdue, id)
			return err
		})
		if err != nil {
			return err
		}
		for _, id := range overdue {
			_, err := u.l.applyTo(ctx, id, newKey(), func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
				return r.GiveUp(u.l.retention, m), nil
			})
			if err != nil && !errors.Is(err, errConflict) { // another node gives it up
				return err
			}
		}
		if due > 0 {
			u.recorded()
			u.l.bell.ringAll()
		}
		full = due == timerBatch || len(overdue) == timerBatch
	}
	var now time.Time
	var next *time.Time
	if _, err := u.l.queryOne(ctx, queryNextTimer, nil, &now, &next); err != nil {
		return err
	}
	u.setNext(now, next)
	return nil
}

// keepAge brings the ledger's age up to date when the ledger is opened.
func (u *upkeep) keepAge(ctx context.Context) error {
	u.swept = time.Now()
	_, err := u.l.exec(ctx, queryKeepAge, pgx.NamedArgs{"most": maxClosed.Microseconds()})
	return err
}

// sweep keeps the ledger's age, and removes what is no longer kept.
func (u *upkeep) sweep(ctx context.Context) error {
	elapsed := time.Since(u.swept)
	u.mu.Lock()
	u.endings, u.events = 0, 0
	u.mu.Unlock()
	u.l.horizon.mu.Lock()
	settled := u.l.horizon.settled
	u.l.horizon.mu.Unlock()
	for {
		swept := time.Now()
		var expired, pruned int
		batch := &pgx.Batch{}
		batch.Queue(querySweepLock)
		batch.Queue(queryKeepAge, pgx.NamedArgs{"most": elapsed.Microseconds()})
		batch.Queue(queryExpire, pgx.NamedArgs{"keep_jobs": u.l.cfg.KeepJobs, "keep": u.l.cfg.Keep.Microseconds(), "limit": sweepBatch}).
			QueryRow(func(row pgx.Row) error { return row.Scan(&expired) })
		batch.Queue(queryPrune, pgx.NamedArgs{"settled": settled, "keep_events": u.l.cfg.EventNumber, "event_keep": u.l.cfg.EventKeep.Microseconds(), "limit": sweepBatch}).
			QueryRow(func(row pgx.Row) error { return row.Scan(&pruned) })
		batch.Queue(queryFold)
		if policy := u.l.cfg.Policy; policy.Shares() {
			batch.Queue(queryFoldUsed, pgx.NamedArgs{"half_life": policy.HalfLife.Microseconds()})
		}
		batch.Queue(queryDropKeys)
		if err := u.l.batch(ctx, batch); err != nil {
			return err
		}
		elapsed, u.swept = time.Since(swept), swept
		if expired < sweepBatch && pruned < sweepBatch {
			return nil
		}
	}
}
