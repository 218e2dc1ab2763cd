package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/storage/storagetest"
)

// idleSheep is a sheep that is idle while jobs wait that it could run.
type idleSheep struct {
	since time.Time
	jobs  []time.Time // when those jobs were submitted
}

// oracle knows what clients were told and what runners did, and checks the guarantees against
// that. It reads the ledger and the storage by their public interfaces, and does
// not depend on how a core works.
type oracle struct {
	world  *world
	cursor job.Cursor

	mu     sync.Mutex
	wrong  error // the first broken guarantee
	jobs   map[job.ID]*known
	serial int
	idle   map[string]idleSheep // sheep that could run a waiting job
	looked time.Time            // when idles checked last
	queued int                  // runs that were
	turns  map[string]turn      // of sheep
	// unavailable is when a sheep could not load a model for lack of an answer.
	unavailable map[sheepModel]time.Time
	calm        bool // no faults are injected any more
}

// turn is the model whose jobs a sheep runs, and since when.
type turn struct {
	model job.Model
	since time.Time
}

// known is what the oracle knows of one job.
type known struct {
	request  job.Request
	accepted int // runs that were acknowledged to a client
	runs     []*run
	done     []*execution
	active   *execution

	place     int  // in the queue: one that was submitted later has a larger one
	claimable bool // it waits, and any sheep to which it is addressed may claim it
}

// hasOutputs reports whether the last run has ended as done.
func (k *known) hasOutputs() bool {
	last := len(k.runs) - 1
	return last >= 0 && k.runs[last].ended != nil && k.runs[last].ended.State == job.Done
}

// hasNone reports whether the last run has ended as anything else.
func (k *known) hasNone() bool {
	last := len(k.runs) - 1
	return last >= 0 && k.runs[last].ended != nil && k.runs[last].ended.State != job.Done
}

// run is the events of a run.
type run struct {
	attempts  int
	started   int // the last attempt that was started
	held      bool
	ended     *job.Event
	cancelled bool // a cancel was acknowledged to a client
}

// execution is a runner's time with a job.
type execution struct {
	job         job.ID
	serial      int // among all
	number      int // among the job's
	run         int
	attempt     int
	sheep       string
	began, over time.Time
	ending      string
	answered    bool
}

func newOracle(w *world) *oracle {
	return &oracle{world: w, jobs: make(map[job.ID]*known), idle: make(map[string]idleSheep), turns: make(map[string]turn), unavailable: make(map[sheepModel]time.Time), calm: w.peaceful}
}

func (o *oracle) known(id job.ID) *known {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.jobs[id]
}

// fail records a broken guarantee.
func (o *oracle) fail(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failing(format, args...)
}

func (o *oracle) failing(format string, args ...any) {
	if o.wrong == nil {
		o.wrong = fmt.Errorf(format, args...)
	}
}

// accepts records that a job was acknowledged to its client.
func (o *oracle) accepts(id job.ID) {
	o.known(id).accepted++
	if _, err := o.world.ledger.Get(context.Background(), id); err != nil {
		o.fail("the client of job %s was told that it is taken: %w", id, err)
	}
}

// refuses records that a client's job was refused because of the jobs that it is after: one
// of them has no outputs, or was not acknowledged.
func (o *oracle) refuses(r job.Request) {
	if err := o.read(); err != nil {
		o.fail("%w", err)
	}
	for _, id := range r.After {
		if k := o.known(id); k.accepted == 0 || !k.hasOutputs() {
			return
		}
	}
	o.fail("job %s was refused though those that it is after, %v, are done", r.ID, r.After)
}

// cancels records that a cancel of the present run was acknowledged to a client.
func (o *oracle) cancels(id job.ID) {
	rec, err := o.world.ledger.Get(context.Background(), id)
	switch {
	case err != nil:
		o.fail("the client of job %s was told that it is cancelled: %w", id, err)
	case rec.State != job.Cancelled && !rec.Cancelling:
		o.fail("the client of job %s was told that it is cancelled, and it is %s", id, rec.State)
	default:
		if err := o.read(); err != nil {
			o.fail("%w", err)
		}
		o.run(id, rec.Run).cancelled = true
	}
}

// tells checks a final state that a client has read: it is the one final state of a run.
func (o *oracle) tells(id job.ID, s job.Status) {
	if err := o.read(); err != nil {
		o.fail("%w", err)
	}
	for _, r := range o.known(id).runs {
		if r.ended != nil && sameStatus(s, *r.ended.Status) {
			return
		}
	}
	o.fail("the client of job %s was told %+v, which no run of it is", id, s)
}

func (o *oracle) run(id job.ID, number int) *run {
	k := o.known(id)
	for len(k.runs) < number {
		k.runs = append(k.runs, &run{})
	}
	return k.runs[number-1]
}

// executes records that a runner begins a job.
func (o *oracle) executes(n *node, sheep string, m job.Model, in messenger.Input, input []byte, err error) *execution {
	rec, getErr := o.world.ledger.Get(context.Background(), in.JobID)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.serial++
	k := o.jobs[in.JobID]
	e := &execution{job: in.JobID, serial: o.serial, number: len(k.done) + 1, run: rec.Run, attempt: rec.Attempt, sheep: sheep, began: time.Now()}
	switch {
	case getErr != nil:
		o.failing("sheep %s runs job %s: %w", sheep, in.JobID, getErr)
	case err != nil:
		o.failing("sheep %s runs job %s without its input: %w", sheep, in.JobID, err)
	case string(input) != string(k.request.Payload):
		o.failing("sheep %s runs job %s with the input %q", sheep, in.JobID, input)
	case rec.State.Final() || rec.Holder != sheep || rec.Node != n.name: // its start may be recorded behind
		o.failing("sheep %s runs job %s, which is %s and held by %s", sheep, in.JobID, rec.State, rec.Holder)
	case m != k.request.Model:
		o.failing("sheep %s runs job %s with the model %s", sheep, in.JobID, m)
	case rec.Sheep != "" && sheep != rec.Sheep:
		o.failing("sheep %s runs job %s, which is addressed to %s", sheep, in.JobID, rec.Sheep)
	case k.active != nil:
		o.failing("sheep %s runs job %s while %s does", sheep, in.JobID, k.active.sheep)
	}
	if entries, err := filepath.Glob(filepath.Join(in.IODataRoot, string(in.JobID), job.OutputDir, "*")); err != nil || len(entries) > 0 {
		o.failing("sheep %s runs job %s whose outputs are there before: %v, %v", sheep, in.JobID, entries, err)
	}
	for _, id := range k.request.After {
		inputs := filepath.Join(in.IODataRoot, string(in.JobID), job.InputDir, string(id))
		if content, err := os.ReadFile(filepath.Join(inputs, job.DefaultOutput)); err != nil || !o.jobs[id].wrote(string(content)) {
			o.failing("sheep %s runs job %s with the output %q of job %s: %v", sheep, in.JobID, content, id, err)
		}
	}
	k.done, k.active = append(k.done, e), e
	return e
}

// wrote reports whether the content is the output of an execution of the last run that
// was answered.
func (k *known) wrote(content string) bool {
	return slices.ContainsFunc(k.done, func(e *execution) bool {
		return e.answered && e.run == k.done[len(k.done)-1].run && content == fmt.Sprint(e.serial)
	})
}

// executed records how an execution ended.
func (o *oracle) executed(e *execution, ending string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := o.jobs[e.job]; k.active == e {
		k.active = nil
	}
	e.over, e.ending = time.Now(), ending
	e.answered = e.answered || err == nil
	var failure *job.Failure
	if errors.As(err, &failure) {
		e.answered = true
	}
}

// look reads the changes since the last look.
func (o *oracle) look() error {
	if err := o.read(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wrong
}

// read reads the ledger's events.
func (o *oracle) read() error {
	for {
		events, next, err := o.world.ledger.Events(context.Background(), o.cursor, ledger.EventFilter{}, 1000)
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		o.cursor = next
		for _, e := range events {
			o.see(e)
		}
		if len(events) == 0 {
			return nil
		}
	}
}

// see checks an event against earlier ones.
func (o *oracle) see(e job.Event) {
	k := o.known(e.Job)
	if k == nil {
		o.fail("there is an event of job %s, which nobody submitted", e.Job)
		return
	}
	if e.Kind == job.EventQueued && e.Run != len(k.runs)+1 || e.Kind != job.EventQueued && e.Run != len(k.runs) {
		o.fail("event %s of run %d of job %s comes after %d runs", e.Kind, e.Run, e.Job, len(k.runs))
		return
	}
	if e.Kind == job.EventQueued {
		if last := len(k.runs) - 1; last >= 0 && k.runs[last].ended == nil {
			o.fail("run %d of job %s begins before the last has ended", e.Run, e.Job)
		}
		o.run(e.Job, e.Run)
		o.queued++
		k.place, k.claimable = o.queued, !e.Delayed && e.State == job.Queued
		return
	}
	r := k.runs[e.Run-1]
	if r.ended != nil {
		o.fail("event %s of job %s comes after its run has ended", e.Kind, e.Job)
	}
	switch e.Kind {
	case job.EventClaimed, job.EventStarted:
		switch {
		case !r.held && e.Attempt == r.attempts+1:
			r.held, r.attempts = true, e.Attempt
			for _, id := range k.request.After {
				if !o.jobs[id].hasOutputs() {
					o.fail("job %s, which is after job %s, is claimed before that is done", e.Job, id)
				}
			}
			o.chosen(e, k)
			k.claimable = false
		case r.held && e.Kind == job.EventStarted && e.Attempt == r.attempts:
		default:
			o.fail("event %s of attempt %d of job %s comes after attempt %d (held: %v)", e.Kind, e.Attempt, e.Job, r.attempts, r.held)
		}
		if e.Kind == job.EventStarted {
			r.started = e.Attempt
		}
	case job.EventReturned:
		o.interrupts(e, k)
		if !r.held || e.Attempt != r.attempts {
			o.fail("job %s is returned by attempt %d, and attempt %d has it (held: %v)", e.Job, e.Attempt, r.attempts, r.held)
		}
		r.held, k.claimable = false, !e.Delayed && e.State == job.Queued
		if e.Cause == job.CauseUnavailable {
			o.cannotLoad(e.Sheep, e.Model)
		}
		if _, ok := returning[e.Cause]; !ok {
			o.fail("job %s goes back to the queue with the cause %s: %s", e.Job, e.Cause, e.Reason)
		}
	case job.EventDue:
		if r.held || k.claimable {
			o.fail("job %s is due, and it is held (%v) or was claimable before (%v)", e.Job, r.held, k.claimable)
		}
		k.claimable = true
	case job.EventEnded:
		o.interrupts(e, k)
		if e.Cause == job.CauseAfter && !slices.ContainsFunc(k.request.After, func(id job.ID) bool { return o.jobs[id].hasNone() }) {
			o.fail("job %s fails for lack of the outputs of %v: %s", e.Job, k.request.After, e.Reason)
		}
		if (e.Cause == job.CauseDone || e.Cause == job.CauseError) && r.started != e.Attempt {
			o.fail("attempt %d of job %s ends with the cause %s and was not started", e.Attempt, e.Job, e.Cause)
		}
		r.ended, r.held, k.claimable = &e, false, false
		if !ending[e.State][e.Cause] || e.Cause == job.CauseWaitTimeout && k.request.Limits.WaitTimeout == nil || e.Cause == job.CauseDeadline && k.request.Deadline.IsZero() {
			o.fail("job %s ends as %s with the cause %s: %s", e.Job, e.State, e.Cause, e.Reason)
		}
	}
}

// interrupts checks that an attempt that ends as interrupted has lost its runner: a daemon
// adopts the jobs of runners that still run.
func (o *oracle) interrupts(e job.Event, k *known) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := k.active
	if e.Cause != job.CauseInterrupted || at == nil || at.run != e.Run || at.attempt != e.Attempt {
		return
	}
	for _, n := range o.world.nodes {
		if _, away := n.leaving[e.Sheep]; n.name == e.Node && !away {
			o.failing("attempt %d of job %s ends as interrupted, and the runner of sheep %s still has the job", e.Attempt, e.Job, e.Sheep)
		}
	}
}

// sheepModel is a model on a sheep.
type sheepModel struct {
	sheep string
	model job.Model
}

// longestRest is how long a sheep may wait before it tries again to load a model after a
// service that this needs did not answer.
const longestRest = 30 * time.Second

// turnSlack is how much longer than its turn a sheep may seem to keep a model: it claims while
// another job runs, and before the model is loaded, which begins the turn.
const turnSlack = maxRun + maxLoad + 5*time.Second

// chosen checks that the job that a sheep has claimed was its next: no waiting job has a
// higher priority, and an older one is passed over for a turn at most.
func (o *oracle) chosen(e job.Event, k *known) {
	older := job.ID("")
	for id, other := range o.jobs {
		if !other.claimable || other == k || other.request.Sheep != "" && other.request.Sheep != e.Sheep {
			continue
		}
		if o.rests(e.Sheep, other.request.Model) {
			continue
		}
		switch {
		case other.request.Priority > k.request.Priority:
			o.fail("sheep %s claims job %s of priority %d, and job %s of priority %d waits", e.Sheep, e.Job, k.request.Priority, id, other.request.Priority)
		case other.request.Priority == k.request.Priority && other.place < k.place:
			older = id
		}
	}
	now, t := time.Now(), o.turns[e.Sheep]
	if older == "" || t.model != e.Model {
		o.turns[e.Sheep] = turn{e.Model, now}
		return
	}
	if o.calm && now.Sub(t.since) > maxTurn+turnSlack {
		o.fail("sheep %s has gone on with model %s for %s, and claims job %s while job %s waits, which is older", e.Sheep, e.Model, now.Sub(t.since), e.Job, older)
	}
}

// loads records that a sheep starts a runner: the turn of its model begins.
func (o *oracle) loads(sheep string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turns[sheep] = turn{o.turns[sheep].model, time.Now()}
}

// cannotLoad records that a service that a model needs did not answer.
func (o *oracle) cannotLoad(sheep string, m job.Model) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unavailable[sheepModel{sheep, m}] = time.Now()
}

// rests reports whether the sheep may wait before it tries the model again.
func (o *oracle) rests(sheep string, m job.Model) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	last, ok := o.unavailable[sheepModel{sheep, m}]
	return ok && time.Since(last) <= longestRest
}

// returning are the causes with which an attempt may return its job to the queue, and whether
// the attempt is spent: the table of docs/job-states.md, for the causes that occur in a
// world.
var returning = map[job.Cause]bool{
	job.CauseError: true, job.CauseRunnerDied: true, job.CauseRunTimeout: true, job.CauseLoadTimeout: true, job.CauseOutputs: true,
	job.CauseLost: true, job.CauseInterrupted: true,
	job.CauseSheep: false, job.CauseUnavailable: false, job.CauseDevice: false, job.CauseHandedBack: false, job.CauseTakenOver: false,
	job.CauseDaemonKilled: false,
}

// ending are the causes with which a run may end.
var ending = map[job.State]map[job.Cause]bool{
	job.Done:      {job.CauseDone: true},
	job.Cancelled: {job.CauseCancelled: true},
	job.Failed: {
		job.CauseError: true, job.CauseRunnerDied: true, job.CauseRunTimeout: true, job.CauseLoadTimeout: true, job.CauseOutputs: true,
		job.CauseLost: true, job.CauseInterrupted: true, job.CauseDevice: true, job.CauseUnavailable: true,
		job.CauseWaitTimeout: true, job.CauseDeadline: true, // if the job has the limit
		job.CauseAfter: true, // likewise
	},
}

// ownFault reports whether an attempt with this cause failed because of the job.
func ownFault(c job.Cause) bool {
	switch c {
	case job.CauseError, job.CauseRunnerDied, job.CauseRunTimeout, job.CauseLoadTimeout, job.CauseOutputs:
		return true
	}
	return false
}

// settled returns nil when all jobs are complete, or an error with what is left to do.
func (o *oracle) settled() (bool, string) {
	ctx := context.Background()
	for id, k := range o.jobs {
		if k.accepted == 0 {
			continue
		}
		rec, err := o.world.ledger.Get(ctx, id)
		if err != nil {
			o.fail("job %s was taken: %w", id, err)
			return false, ""
		}
		if !rec.State.Final() {
			return false, fmt.Sprintf("job %s is %s, held by %q of %q, attempt %d", id, rec.State, rec.Holder, rec.Node, rec.Attempt)
		}
		status, err := o.world.store.Status(ctx, id)
		if err != nil || !sameStatus(status, rec.Status()) {
			return false, fmt.Sprintf("%s of job %s says %+v (%v), and it is %+v", job.StatusFile, id, status, err, rec.Status())
		}
	}
	return true, ""
}

func sameStatus(a, b job.Status) bool {
	return a.State == b.State && a.Model == b.Model && a.EnqueuedAt.Equal(b.EnqueuedAt) && a.StartedAt.Equal(b.StartedAt) &&
		a.FinishedAt.Equal(b.FinishedAt) && reflect.DeepEqual(a.Failure, b.Failure)
}

// idles fails if jobs wait for longer than a moment while a sheep that could run them is idle.
// It is for a world without faults.
func (o *oracle) idles() {
	const moment, often = 5 * time.Second, 500 * time.Millisecond
	w := o.world
	if time.Since(o.looked) < often {
		return
	}
	last := o.looked
	o.looked = time.Now()
	ctx := context.Background()
	waiting, err := w.ledger.Waiting(ctx, 100)
	if err != nil {
		o.fail("read what waits: %w", err)
		return
	}
	now := time.Now()
	leapt := now.Sub(last) > 2*often
	for _, n := range w.nodes {
		i := n.now
		calm := i != nil && i.ready && !i.gone && !i.busy
		var prepared []time.Time
		if calm {
			held, err := w.ledger.Held(ctx, n.name)
			if err != nil {
				o.fail("read what is held: %w", err)
			}
			for _, c := range held {
				if c.State == job.Queued && c.Sheep == "" {
					prepared = append(prepared, c.EnqueuedAt)
				}
			}
		}
		for _, name := range n.sheep {
			var jobs []time.Time // that the sheep could run, by when they were submitted
			if calm {
				for _, s := range i.core.Sheep(ctx) {
					if s.Name != name || s.Job != "" || s.Detail != "" {
						continue
					}
					jobs = slices.Clone(prepared)
					for _, m := range waiting {
						if m.Sheep == "" || m.Sheep == name {
							jobs = append(jobs, m.Oldest)
						}
					}
				}
			}
			before, idle := o.idle[name]
			if leapt { // nothing was seen in between: only a job that waited before has waited all the time
				idle = slices.ContainsFunc(jobs, func(t time.Time) bool { return slices.ContainsFunc(before.jobs, t.Equal) })
			}
			switch {
			case len(jobs) == 0:
				delete(o.idle, name)
			case !idle:
				o.idle[name] = idleSheep{now, jobs}
			case now.Sub(before.since) > moment:
				o.fail("sheep %s has had nothing to do for %s, while %+v wait (prepared by another: %v)", name, now.Sub(before.since), waiting, len(prepared) > 0)
			default:
				o.idle[name] = idleSheep{before.since, jobs}
			}
		}
	}
}

// verdict checks the final state after all daemons have stopped.
func (o *oracle) verdict() {
	ctx := context.Background()
	w := o.world
	if ok, what := o.settled(); !ok {
		o.fail("at the end %s", what)
	}
	for id, k := range o.jobs {
		if k.accepted > 0 {
			o.judge(ctx, id, k)
		}
	}
	for _, n := range w.nodes {
		held, err := w.ledger.Held(ctx, n.name)
		if err != nil || len(held) > 0 {
			o.fail("node %s holds %d jobs at the end: %w", n.name, len(held), err)
		}
		if alive := n.runners.Alive(); alive > 0 {
			o.fail("%d runners of node %s are left", alive, n.name)
		}
		data := filepath.Join(n.root(), "data")
		err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if depth := strings.Count(strings.TrimPrefix(path, data), "/"); err == nil && depth > 1 {
				o.fail("%s is left", path)
				return fs.SkipAll
			}
			return err
		})
		if err != nil {
			o.fail("look for what is left: %w", err)
		}
	}
}

// judge checks one job.
func (o *oracle) judge(ctx context.Context, id job.ID, k *known) {
	rec, err := o.world.ledger.Get(ctx, id)
	if err != nil {
		o.fail("job %s was taken: %w", id, err)
		return
	}
	if rec.Tenant != k.request.Tenant {
		o.fail("job %s of tenant %q is tenant %q's", id, k.request.Tenant, rec.Tenant)
	}
	if rec.Run < k.accepted {
		o.fail("%d runs of job %s were taken, and there were %d", k.accepted, id, rec.Run)
	}
	for n, r := range k.runs {
		switch {
		case r.ended == nil:
			o.fail("run %d of job %s has not ended", n+1, id)
		case r.cancelled && r.ended.State != job.Cancelled:
			o.fail("the client of job %s was told that run %d is cancelled, and it is %s", id, n+1, r.ended.State)
		}
	}
	attempts, err := o.world.ledger.Attempts(ctx, id)
	if err != nil {
		o.fail("read the attempts of job %s: %w", id, err)
	}
	o.count(id, k, attempts)
	o.results(ctx, id, k, rec, attempts)
}

// count checks that attempts are counted as docs/job-states.md says.
func (o *oracle) count(id job.ID, k *known, attempts []job.Attempt) {
	retries := *k.request.Limits.Retries
	for n, r := range k.runs {
		if r.ended == nil {
			continue
		}
		number, own, wrecked := 0, 0, 0
		for _, a := range attempts {
			if a.Run != n+1 {
				continue
			}
			number++
			last := a.Number == r.attempts && r.ended.Attempt == a.Number
			spent, known := returning[a.Cause]
			switch {
			case a.Number != number || a.Ended.IsZero() || a.Cause == "" || a.Ended.Before(a.Began):
				o.fail("attempt %d of run %d of job %s is kept as %+v", number, n+1, id, a)
			case last && (!a.Spent && a.Cause != job.CauseCancelled || a.Cause != r.ended.Cause): // the job may be cancelled while the attempt is handed back
				o.fail("run %d of job %s ended with the cause %s, by an attempt that is kept as %+v", n+1, id, r.ended.Cause, a)
			case !last && (!known || a.Spent != spent):
				o.fail("attempt %d of run %d of job %s goes back to the queue and is kept as %+v", number, n+1, id, a)
			}
			switch a.Cause {
			case job.CauseLost, job.CauseInterrupted, job.CauseDevice:
				wrecked++
			case job.CauseDaemonKilled:
				if k.had(a) {
					o.fail("attempt %d of run %d of job %s ended as daemon-killed, and a runner had it", a.Number, a.Run, id)
				}
			case job.CauseDone, job.CauseOutputs:
				if !k.answered(a, endsDone, endsAfterAnswer, endsOutputs) {
					o.fail("attempt %d of run %d of job %s ended as %s, and no runner answered it that it is done", a.Number, a.Run, id, a.Cause)
				}
			case job.CauseError:
				if !k.answered(a, endsError) {
					o.fail("attempt %d of run %d of job %s ended as error, and no runner answered it so", a.Number, a.Run, id)
				}
			}
			if ownFault(a.Cause) {
				own++
			}
		}
		if number != r.attempts {
			o.fail("run %d of job %s had %d attempts, and %d are kept", n+1, id, r.attempts, number)
		}
		if own > retries+1 || wrecked > maxAttempts {
			o.fail("run %d of job %s failed %d times by its own fault with %d retries, and took its sheep down %d times", n+1, id, own, retries, wrecked)
		}
		if r.ended.State == job.Failed && ownFault(r.ended.Cause) {
			spent := 0
			for _, a := range attempts {
				if a.Run == n+1 && a.Spent {
					spent++
				}
			}
			if spent <= retries {
				o.fail("run %d of job %s failed by its own fault after %d tries, with %d retries", n+1, id, spent, retries)
			}
		}
	}
}

// had reports whether a runner had the job in this attempt.
func (k *known) had(a job.Attempt) bool {
	return slices.ContainsFunc(k.done, func(e *execution) bool { return e.run == a.Run && e.attempt == a.Number })
}

// answered reports whether a runner that had the job in this attempt has answered with one
// of the ends.
func (k *known) answered(a job.Attempt, ends ...string) bool {
	for _, e := range k.done {
		if e.run == a.Run && e.attempt == a.Number && e.answered && slices.Contains(ends, e.ending) {
			return true
		}
	}
	return false
}

// results checks that the outputs in storage are those of one attempt, the right one.
func (o *oracle) results(ctx context.Context, id job.ID, k *known, rec job.Record, attempts []job.Attempt) {
	files, err := storagetest.All(o.world.store.List(ctx, id, job.OutputDir+"/"))
	if err != nil {
		o.fail("list the outputs of job %s: %w", id, err)
		return
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimPrefix(f.Name, job.OutputDir+"/"))
	}
	if rec.State != job.Done {
		if len(names) > 2 {
			o.fail("the outputs of job %s, which is %s, are those of several attempts: %v", id, rec.State, names)
		}
		return
	}
	content := ""
	if f, err := o.world.store.Open(ctx, id, job.OutputDir+"/"+job.DefaultOutput, nil); err == nil {
		data, _ := io.ReadAll(f.Body)
		content = string(data)
	}
	var by *execution
	for _, e := range k.done {
		if fmt.Sprint(e.serial) == content {
			by = e
		}
	}
	switch {
	case by == nil || len(names) != 2 || names[0] != "of-"+content || names[1] != job.DefaultOutput:
		o.fail("job %s is done, and its outputs are %v, of execution %q", id, names, content)
	case by.run != rec.Run || by.attempt != rec.Attempt || !by.answered:
		o.fail("job %s is done in run %d by attempt %d, and its outputs are those of run %d, attempt %d", id, rec.Run, rec.Attempt, by.run, by.attempt)
	}
}
