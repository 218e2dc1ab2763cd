package shepherd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/crashpoint"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// feeder claims jobs for a lane, one at a time, and prepares each while the worker may still
// run another.
type feeder struct {
	lane   *lane
	pulse  pulse
	offers chan *attempt           // received by the worker
	held   atomic.Pointer[attempt] // the attempt that is offered; nil for none
	waits  atomic.Bool             // the offered attempt waits for devices
	unsure bool                    // the last claim failed and may still have succeeded in the ledger; used by run only
	missed func() []job.Event      // ends the record of cancels that began with the last claim; nil for none; used by run only
}

func newFeeder(l *lane) *feeder { return &feeder{lane: l, offers: make(chan *attempt)} }

// holds returns the attempt that is offered to the worker, or nil.
func (f *feeder) holds() *attempt { return f.held.Load() }

// offering reports whether the worker can take an attempt at once.
func (f *feeder) offering() bool { return f.holds() != nil && !f.waitsForDevices() }

// waitsForDevices reports whether the offered attempt waits for devices.
func (f *feeder) waitsForDevices() bool { return f.waits.Load() }

// run claims jobs and offers each to the worker until feed ends. Preparation ends with work
// instead: the inputs of a job in progress are still needed while the daemon drains.
func (f *feeder) run(feed, work context.Context) {
	defer f.pulse.waits()
	yields := false
	for {
		if f.lane.stageAhead == 0 && !f.awaitIdle(feed) {
			return
		}
		f.pulse.works()
		claim, err := f.lane.flock.next(feed, f.lane, yields)
		if err != nil {
			return
		}
		a := f.begin(work, claim)
		if a.ahead {
			f.lane.flock.prepared(f.lane)
		}
		why := f.offer(feed, a)
		yields = errors.Is(why, errTakenOver)
		if why != nil {
			f.lane.concluder.end(work, a, stopped(why))
		}
		f.held.Store(nil)
	}
}

// claim claims a job. A claim that failed may have succeeded in the ledger, so the next call
// first looks for claims of this sheep that the process does not know.
func (f *feeder) claim(ctx context.Context, slot ledger.Slot) (claim *ledger.Claim, err error) {
	f.missedCancels()
	f.missed = f.lane.hub.recordCancels()
	defer func() {
		if claim == nil {
			f.missedCancels()
		}
	}()
	if f.unsure {
		claims, err := f.unanswered(ctx)
		if err != nil {
			return nil, err
		}
		f.unsure = len(claims) > 1
		if len(claims) > 0 {
			return &claims[0], nil
		}
	}
	claim, err = f.lane.ledger.Claim(ctx, slot)
	f.unsure = err != nil && (errdefs.IsUnavailable(err) || errdefs.IsResourceExhausted(err))
	if claim != nil {
		crashpoint.Reached(crashpoint.Claimed)
	}
	return claim, err
}

// missedCancels returns the cancel events since the last claim was asked for, and ends their
// record.
func (f *feeder) missedCancels() (events []job.Event) {
	if f.missed != nil {
		events, f.missed = f.missed(), nil
	}
	return events
}

// unanswered returns the claims of this sheep in the ledger that this process does not know.
func (f *feeder) unanswered(ctx context.Context) ([]ledger.Claim, error) {
	held, err := f.lane.ledger.Held(ctx, f.lane.node)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(held, func(c ledger.Claim) bool { return c.Holder != f.lane.Name || f.lane.tokens.has(c.Token) }), nil
}

// awaitIdle waits until the worker has no job.
func (f *feeder) awaitIdle(ctx context.Context) bool {
	for f.lane.state.busy() {
		f.pulse.waits()
		select {
		case <-ctx.Done():
			return false
		case <-f.lane.state.freed:
		}
	}
	return ctx.Err() == nil
}

// begin creates an attempt for the claim and starts to prepare it.
func (f *feeder) begin(work context.Context, c *ledger.Claim) *attempt {
	l := f.lane
	a := l.watch(*c)
	for _, e := range f.missedCancels() {
		if e.Job == a.ID {
			a.onEvent(e)
		}
	}
	if c.Cancelling { // of a claim whose answer was lost
		a.stopper.stop(errCancelled)
	}
	f.held.Store(a)
	if l.state.isDrained() { // drained during the claim
		a.giveUp(errSheepDrained)
	}
	l.worker.preloader.wanted(a.Model)
	l.prefetch(work, a)
	l.logAssigned(a)
	l.life.running.Go(func() {
		defer close(a.prepared)
		ctx, release := a.stopper.bind(work)
		defer release()
		l.worker.handover.wait(ctx)
		if why := l.prepare(ctx, a); why != nil {
			a.trouble = why
		} else {
			crashpoint.Reached(crashpoint.InputsStaged)
		}
	})
	return a
}

// watch creates an attempt for a claim and subscribes it to the job's events.
func (l *lane) watch(c ledger.Claim) *attempt {
	a := l.newAttempt(c)
	a.unwatch = l.hub.watch(c.ID, a.onEvent)
	if !a.ahead { // else Ledger.Start reports what happened before the subscription, but for a cancel, which does not wait for that
		ctx, cancel := context.WithTimeout(context.Background(), commitTime)
		defer cancel()
		a.check(l.ledger.Get(ctx, c.ID))
	}
	return a
}

// offer offers the attempt to the worker once its devices are granted. It returns nil when
// the worker has taken it, and otherwise the reason why not.
func (f *feeder) offer(feed context.Context, a *attempt) error {
	l := f.lane
	var granted <-chan error
	offers := f.offers
	granted, a.yield = l.share.request()
	if granted != nil {
		offers = nil
		f.waits.Store(len(granted) == 0)
		defer f.waits.Store(false)
		if len(granted) == 0 && !l.state.busy() {
			l.flock.wakeFirst(l) // an idle sheep may run it at once
		}
	}
	ctx, release := a.stopper.bind(feed)
	defer release()
	failed := a.prepared
	f.pulse.waits()
	defer f.pulse.works()
	for {
		switch { // these take precedence over the worker
		case closed(a.surrendered):
			return a.givenUp
		case ctx.Err() != nil:
			a.withdraw()
			return context.Cause(ctx)
		case closed(failed):
			if a.trouble != nil {
				a.withdraw()
				return &troubleError{*a.trouble}
			}
			failed = nil
		}
		select {
		case err := <-granted:
			if err != nil {
				a.withdraw()
				return fmt.Errorf("a device of the sheep is out: %w", err)
			}
			f.waits.Store(false)
			offers, granted = f.offers, nil
		case offers <- a:
			select {
			case <-a.taken:
				return nil
			case <-a.surrendered:
				return a.givenUp
			}
		case <-a.surrendered:
		case <-failed:
		case <-ctx.Done():
		}
	}
}

// troubleError carries an ending through offer.
type troubleError struct{ ending }

func (e *troubleError) Error() string { return e.reason }

// prepare creates the attempt's working directory and copies the job's inputs into it. It
// retries while storage is unavailable. It returns nil on success, otherwise the attempt's
// ending.
func (l *lane) prepare(ctx context.Context, a *attempt) *ending {
	l.logPreparing(a)
	switch end, err := l.lostTooOften(ctx, a); {
	case err != nil:
		return l.prepareEnding(ctx, a, err)
	case end != nil:
		return end
	}
	dir, err := l.dirs.make(a.Token, a.ID)
	if err != nil {
		return l.prepareEnding(ctx, a, err)
	}
	a.dir = dir
	if data, ok := l.payloads.take(a.ID); ok && len(a.After) == 0 && l.admit(a, int64(len(data))) == nil {
		a.staged = storage.Staged{Files: 1, Bytes: int64(len(data))}
		began := time.Now()
		err := dir.writeInput(data)
		a.phases.Stage = l.passed(a, a.Model, PhaseStage, began, err)
		return l.prepareEnding(ctx, a, err)
	}
	how := storage.Options{After: a.After, Admit: func(bytes int64) error { return l.admit(a, bytes) }}
	if o, err := l.owner(ctx, a.Model); err == nil && o.set { // else the owner is not known yet
		how.Owned, how.UID, how.GID = true, o.uid, o.gid
	}
	for {
		began := time.Now()
		err := l.persist(ctx, a.ID, "stage the inputs", func() (err error) {
			a.staged, err = l.store.Stage(ctx, a.ID, dir.job, how)
			return err
		})
		if errors.Is(err, errBudget) { // wait until the worker takes it: then no budget is needed
			select {
			case <-a.taken:
				continue
			case <-ctx.Done():
				return l.prepareEnding(ctx, a, ctx.Err())
			}
		}
		if err == nil && how.Owned {
			dir.owner = owner{set: true, uid: how.UID, gid: how.GID}
		}
		a.phases.Stage = l.passed(a, a.Model, PhaseStage, began, err)
		return l.prepareEnding(ctx, a, err)
	}
}

// lostTooOften returns the ending of a job whose node was lost too often while it ran, and nil
// for other jobs. The ledger ended those attempts, so judge has not counted them.
func (l *lane) lostTooOften(ctx context.Context, a *attempt) (*ending, error) {
	if a.Spent < l.maxAttempts {
		return nil, nil
	}
	earlier, err := l.attempts(ctx, a.ID)
	if err != nil || historyOf(earlier, a.Run, a.Attempt).wrecked < l.maxAttempts {
		return nil, err
	}
	return &ending{cause: job.CauseNodeLost, reason: fmt.Sprintf("The job was running when its node or its sheep was lost, %d times; it is not tried again", l.maxAttempts)}, nil
}

// admit checks that the disk has room for inputs. For inputs that are staged ahead it also
// reserves their size from the budget, in place of what an earlier try to stage them reserved.
func (l *lane) admit(a *attempt, bytes int64) error {
	if l.room != nil {
		if err := l.room(bytes); err != nil {
			return fmt.Errorf("%w: %w", storage.ErrWorkDir, err)
		}
	}
	l.budget.free(a.reserved.Swap(0))
	if a.ahead && a.owner.Load() == ownedByFeeder {
		if err := l.budget.reserve(bytes); err != nil {
			return err
		}
		a.reserved.Add(bytes)
	}
	return nil
}

// prepareEnding returns the ending for an error during preparation; nil for no error.
func (l *lane) prepareEnding(ctx context.Context, a *attempt, err error) *ending {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		end := stopped(context.Cause(ctx))
		return &end
	case errors.Is(err, storage.ErrWorkDir) && !errdefs.IsInvalidArgument(err), isMachineFault(err):
		return &ending{cause: job.CauseSheep, reason: fmt.Sprintf("the job cannot be prepared on sheep %s: %v", l.Name, err)}
	case errdefs.IsNotFound(err) && len(a.After) == 0:
		return &ending{cause: job.CauseInputs, reason: (&job.UnknownJob{ID: string(a.ID)}).Error()}
	}
	return &ending{cause: job.CauseInputs, reason: fmt.Sprintf("the inputs of this job cannot be fetched: %v", err)}
}
