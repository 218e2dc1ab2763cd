package keeper

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/job"
)

// Lease is one sheep's lease of its share of the devices. It implements shepherd.Devices,
// which documents the methods.
type Lease struct {
	k     *Keeper
	share Share

	// The fields below are guarded by the keeper's lock.
	devices    []*device
	notify     func()        // see Notify
	admitted   job.Admission // the admission that the sheep knows
	using      int           // requests that are granted and not ended
	turn       time.Time     // when its turn began
	used       time.Time     // when its last request ended
	waitingFor string        // what the start of a runner waits for; see Prepare
	runner
	outage
	accounts
}

// runner is the runner of a lease's sheep.
type runner struct {
	up       bool
	model    job.Model
	pid      int
	yield    chan struct{}
	yielding bool // it was asked to yield, and has not stopped
	renew    bool // it was affected by an Xid and must be restarted before the next job
}

// outage signals a sheep that a device is out of service.
type outage struct {
	fault chan struct{}
	down  bool // fault is closed
}

// accounts holds the accounts of a sheep's jobs.
type accounts struct {
	memory  map[*gpuRecord]int64 // bytes that the runner's processes use now
	reports []report
	account *account   // of the runner's current job
	closing []*account // of failed jobs that wait for an Xid that explains them
}

// report is an event that a device of the lease reported, such as an Xid.
type report struct {
	at   time.Time
	text string
}

// account records a job's use of the devices.
type account struct {
	job   job.ID
	begin time.Time
	end   time.Time
	peak  int64 // bytes
	done  chan job.Account
	timer *time.Timer
}

// Assign sets the lease's devices, if Lend was called before they were known.
func (l *Lease) Assign(devices []gpu.Grant) { l.k.change(func() { l.k.assign(l, devices) }) }

// Close ends the lease. No process of its sheep may be left.
func (l *Lease) Close() {
	l.k.change(func() {
		l.closeAll()
		l.k.leases = slices.DeleteFunc(l.k.leases, func(other *Lease) bool { return other == l })
		l.k.queue = slices.DeleteFunc(l.k.queue, func(r *request) bool { return r.lease == l })
	})
}

// Admission returns which jobs the sheep may claim.
func (l *Lease) Admission() job.Admission {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	return l.k.admission(l)
}

// Notify sets a function that is called when Admission has grown.
func (l *Lease) Notify(changed func()) {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	l.notify = changed
}

// Request queues a request for the devices.
func (l *Lease) Request() (<-chan error, func()) {
	r := &request{lease: l, result: make(chan error, 1)}
	l.k.change(func() { l.k.queue = append(l.k.queue, r) })
	return r.result, func() { l.k.change(func() { l.k.end(r) }) }
}

// Hold takes the devices if they are available at once.
func (l *Lease) Hold() (func(), bool) {
	r := &request{lease: l, result: make(chan error, 1)}
	l.k.change(func() {
		if l.up || l.k.idle(l) {
			l.withdrawYield()
			l.k.grant(r)
		}
	})
	if !r.granted {
		return nil, false
	}
	return func() { l.k.change(func() { l.k.end(r) }) }, true
}

// Yield returns a channel that receives when the idle runner is to be stopped.
func (l *Lease) Yield() <-chan struct{} { return l.yield }

// requestYield asks the sheep to stop its idle runner.
func (l *Lease) requestYield() {
	if !l.yielding {
		l.yielding = true
		l.yield <- struct{}{}
	}
}

// withdrawYield withdraws the request.
func (l *Lease) withdrawYield() {
	l.yielding = false
	select {
	case <-l.yield:
	default:
	}
}

// Started records that a runner is up.
func (l *Lease) Started(m job.Model, pid int) {
	l.k.change(func() {
		if !l.up {
			l.turn = time.Now()
			l.renew = false
		}
		l.up, l.model, l.pid = true, m, pid
	})
}

// Stopped records that no process of the runner is left.
func (l *Lease) Stopped() {
	l.k.change(func() {
		l.withdrawYield()
		l.up, l.renew, l.model, l.pid = false, false, job.Model{}, 0
		l.memory = nil
		now := time.Now()
		for _, d := range l.devices {
			if d.record != nil {
				d.record.left(l, now)
			}
		}
	})
}

// Fault waits until a device is out of service.
func (l *Lease) Fault(ctx context.Context) error {
	for {
		l.k.mu.Lock()
		why, fault := l.out(), l.fault
		l.k.mu.Unlock()
		if why != nil {
			return why
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-fault:
		}
	}
}

// out returns an error if one of the lease's devices is out of service.
func (l *Lease) out() error {
	for _, d := range l.devices {
		if d.record != nil && d.record.out != "" {
			return fmt.Errorf("%s is out: %s", d.record, d.record.reason())
		}
	}
	return nil
}

// Begin opens the account of a job that the runner has received.
func (l *Lease) Begin(id job.ID, at time.Time) {
	l.k.change(func() {
		l.account = &account{job: id, begin: at, peak: l.total(), done: make(chan job.Account, 1)}
	})
}

// total is how many bytes the runner's processes use on all GPUs.
func (l *accounts) total() (sum int64) {
	for _, used := range l.memory {
		sum += used
	}
	return sum
}

// End closes the account of a job. The account of a failed job may come a moment later,
// in case an Xid explains the failure.
func (l *Lease) End(id job.ID, at time.Time, failed bool) <-chan job.Account {
	var done chan job.Account
	l.k.change(func() {
		a := l.account
		if a == nil || a.job != id {
			done = make(chan job.Account, 1)
			done <- job.Account{}
			return
		}
		l.account = nil
		a.end, done = at, a.done
		switch {
		case !failed:
			l.send(a, false)
		case l.explains(a):
			l.renew = l.up
			l.send(a, true)
		case !l.k.watching || l.k.closed:
			l.send(a, true)
		default:
			l.closing = append(l.closing, a)
			a.timer = time.AfterFunc(lateXid, func() { l.k.change(func() { l.close(a) }) })
		}
	})
	return done
}

// explains reports whether a device has reported an event since the job began.
func (l *accounts) explains(a *account) bool {
	return slices.ContainsFunc(l.reports, func(r report) bool { return !r.at.Before(a.begin) })
}

// send sends the account of a job to End's caller, with the causes if it failed.
func (l *Lease) send(a *account, failed bool) {
	final := job.Account{Usage: job.Usage{GPUMemory: a.peak, GPUTime: max(a.end.Sub(a.begin), 0) * time.Duration(len(l.devices))}}
	if failed {
		var texts []string
		for _, r := range l.reports {
			if !r.at.Before(a.begin) && !slices.Contains(texts, r.text) {
				texts = append(texts, r.text)
			}
		}
		final.Cause = strings.Join(texts, "; ")
		final.Lost = l.out() != nil
	}
	a.done <- final
}

// close sends the account of a failed job, unless it was sent before.
func (l *Lease) close(a *account) {
	if i := slices.Index(l.closing, a); i >= 0 {
		l.closing = slices.Delete(l.closing, i, i+1)
		a.timer.Stop()
		l.send(a, true)
	}
}

// closeAll sends the accounts of all failed jobs.
func (l *Lease) closeAll() {
	for len(l.closing) > 0 {
		l.close(l.closing[0])
	}
}

// report records an event of one of the lease's devices, and sends the accounts of the
// failed jobs that it explains.
func (l *Lease) report(text string) {
	const maxReports = 16
	l.reports = append(l.reports, report{time.Now(), text})
	if len(l.reports) > maxReports {
		l.reports = slices.Delete(l.reports, 0, len(l.reports)-maxReports)
	}
	for len(l.closing) > 0 {
		l.renew = l.up
		l.close(l.closing[0])
	}
}

// State describes for people what the sheep waits for to use its devices; "" if it does
// not wait.
func (l *Lease) State() string {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	for _, d := range l.devices {
		if d.record != nil && d.record.out != "" {
			// Short, with the reason early: it is shown where there is little room, and the
			// GPU's own entry has its name and UUID.
			return fmt.Sprintf("%s is out: %s; tested again at %s", d.record.short(), d.record.reason(), d.record.retest.UTC().Format("15:04:05 UTC"))
		}
	}
	if l.waitingFor != "" {
		return "waiting for memory: " + l.waitingFor
	}
	waits := slices.ContainsFunc(l.k.queue, func(r *request) bool { return r.lease == l })
	if l.using > 0 || !waits {
		return ""
	}
	var holders []string
	for _, other := range l.k.leases {
		if other != l && other.occupies() && other.overlaps(l) {
			holders = append(holders, other.share.Sheep)
		}
	}
	if len(holders) == 0 {
		return "waiting for " + l.deviceNames()
	}
	return fmt.Sprintf("waiting for %s, in use by sheep %s", l.deviceNames(), strings.Join(holders, ", "))
}

// deviceNames lists the lease's devices for people.
func (l *Lease) deviceNames() string {
	names := make([]string, len(l.devices))
	for i, d := range l.devices {
		names[i] = d.name
	}
	return strings.Join(names, ", ")
}
