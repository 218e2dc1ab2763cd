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

// Lease is one sheep's share of the devices. Its methods are what package
// shepherd asks of Devices, where they are described.
type Lease struct {
	k     *Keeper
	share Share

	// The keeper's lock guards what follows.
	devices []*device
	changed func()
	told    job.Admission
	using   int       // granted and not done
	turn    time.Time // when its turn began
	used    time.Time // when it was done last
	lacks   string    // what a runner that is to be started waits for
	runner
	outage
	accounts
}

// runner is what a sheep has on its devices.
type runner struct {
	up       bool
	model    job.Model
	pid      int
	yield    chan struct{}
	yielding bool // it was asked to, and has not stopped
	renew    bool // it suffered from an Xid and is not to get another job
}

// outage is told to a sheep whose device is out.
type outage struct {
	fault chan struct{}
	down  bool // fault is closed
}

// accounts are of jobs.
type accounts struct {
	memory  map[*gpuRecord]int64 // that the runner's processes have now
	reports []report
	account *account   // of the job that the runner has
	closing []*account // of failed jobs that may still be explained
}

// report is an Xid that a device of the lease reported.
type report struct {
	at   time.Time
	text string
}

// account is what is known of a job's time on the devices.
type account struct {
	job   job.ID
	begin time.Time
	end   time.Time
	peak  int64
	told  chan job.Account
	timer *time.Timer
}

// Assign makes these the lease's devices, where they were not known before.
func (l *Lease) Assign(devices []gpu.Grant) { l.k.change(func() { l.k.assign(l, devices) }) }

// Close gives the lease back when nothing of its sheep is left.
func (l *Lease) Close() {
	l.k.change(func() {
		l.closeAll()
		l.k.leases = slices.DeleteFunc(l.k.leases, func(other *Lease) bool { return other == l })
		l.k.queue = slices.DeleteFunc(l.k.queue, func(r *request) bool { return r.lease == l })
	})
}

// Admission says which jobs the sheep may claim.
func (l *Lease) Admission() job.Admission {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	return l.k.admission(l)
}

// Notify has changed called when Admission has become more.
func (l *Lease) Notify(changed func()) {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	l.changed = changed
}

// Request asks for the devices.
func (l *Lease) Request() (<-chan error, func()) {
	r := &request{lease: l, granted: make(chan error, 1)}
	l.k.change(func() { l.k.queue = append(l.k.queue, r) })
	return r.granted, func() { l.k.change(func() { l.k.end(r) }) }
}

// Hold asks for the devices if they are to be had at once.
func (l *Lease) Hold() (func(), bool) {
	r := &request{lease: l, granted: make(chan error, 1)}
	l.k.change(func() {
		if l.up || l.k.idle(l) {
			l.withdrawYield()
			l.k.grant(r)
		}
	})
	if !r.has {
		return nil, false
	}
	return func() { l.k.change(func() { l.k.end(r) }) }, true
}

// Yield receives when the idle runner is to be stopped.
func (l *Lease) Yield() <-chan struct{} { return l.yield }

// requestYield asks for the idle runner to be stopped.
func (l *Lease) requestYield() {
	if !l.yielding {
		l.yielding = true
		l.yield <- struct{}{}
	}
}

// withdrawYield takes the request back.
func (l *Lease) withdrawYield() {
	l.yielding = false
	select {
	case <-l.yield:
	default:
	}
}

// Started tells that a runner is up.
func (l *Lease) Started(m job.Model, pid int) {
	l.k.change(func() {
		if !l.up {
			l.turn = time.Now()
			l.renew = false
		}
		l.up, l.model, l.pid = true, m, pid
	})
}

// Stopped tells that nothing is left of the runner.
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

// Fault waits until a device is out.
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

// out says why the sheep cannot have its devices; nil when it can.
func (l *Lease) out() error {
	for _, d := range l.devices {
		if d.record != nil && d.record.out != "" {
			return fmt.Errorf("%s is out: %s", d.record, d.record.reason())
		}
	}
	return nil
}

// Begin tells that the runner has the job.
func (l *Lease) Begin(id job.ID, at time.Time) {
	l.k.change(func() {
		l.account = &account{job: id, begin: at, peak: l.total(), told: make(chan job.Account, 1)}
	})
}

// total is what the sheep's processes have on all of its GPUs.
func (l *accounts) total() (sum int64) {
	for _, used := range l.memory {
		sum += used
	}
	return sum
}

// End tells that the sheep is through with the job.
func (l *Lease) End(id job.ID, at time.Time, failed bool) <-chan job.Account {
	var told chan job.Account
	l.k.change(func() {
		a := l.account
		if a == nil || a.job != id {
			told = make(chan job.Account, 1)
			told <- job.Account{}
			return
		}
		l.account = nil
		a.end, told = at, a.told
		switch {
		case !failed:
			l.tell(a, false)
		case l.explains(a):
			l.renew = l.up
			l.tell(a, true)
		case !l.k.watching || l.k.closed:
			l.tell(a, true)
		default:
			l.closing = append(l.closing, a)
			a.timer = time.AfterFunc(late, func() { l.k.change(func() { l.close(a) }) })
		}
	})
	return told
}

// explains says whether a device has reported something since the job began.
func (l *accounts) explains(a *account) bool {
	return slices.ContainsFunc(l.reports, func(r report) bool { return !r.at.Before(a.begin) })
}

// tell sends the account of a job.
func (l *Lease) tell(a *account, failed bool) {
	told := job.Account{Usage: job.Usage{GPUMemory: a.peak, GPUTime: max(a.end.Sub(a.begin), 0) * time.Duration(len(l.devices))}}
	if failed {
		var texts []string
		for _, r := range l.reports {
			if !r.at.Before(a.begin) && !slices.Contains(texts, r.text) {
				texts = append(texts, r.text)
			}
		}
		told.Cause = strings.Join(texts, "; ")
		told.Lost = l.out() != nil
	}
	a.told <- told
}

// close tells the account of a failed job, unless it was told.
func (l *Lease) close(a *account) {
	if i := slices.Index(l.closing, a); i >= 0 {
		l.closing = slices.Delete(l.closing, i, i+1)
		a.timer.Stop()
		l.tell(a, true)
	}
}

// closeAll closes all accounts.
func (l *Lease) closeAll() {
	for len(l.closing) > 0 {
		l.close(l.closing[0])
	}
}

// report notes what a device has reported under the sheep's job.
func (l *Lease) report(text string) {
	const kept = 16
	l.reports = append(l.reports, report{time.Now(), text})
	if len(l.reports) > kept {
		l.reports = slices.Delete(l.reports, 0, len(l.reports)-kept)
	}
	for len(l.closing) > 0 {
		l.renew = l.up
		l.close(l.closing[0])
	}
}

// State says in words what keeps the sheep from its devices.
func (l *Lease) State() string {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	if why := l.out(); why != nil {
		for _, d := range l.devices {
			if d.record != nil && d.record.out != "" {
				return fmt.Sprintf("%v; tested again at %s", why, d.record.retest.UTC().Format("15:04:05"))
			}
		}
	}
	if l.lacks != "" {
		return "waiting for memory: " + l.lacks
	}
	waits := slices.ContainsFunc(l.k.queue, func(r *request) bool { return r.lease == l })
	if l.using > 0 || !waits {
		return ""
	}
	var holders []string
	for _, other := range l.k.leases {
		if other != l && other.occupies() && other.meets(l) {
			holders = append(holders, other.share.Sheep)
		}
	}
	if len(holders) == 0 {
		return "waiting for " + l.named()
	}
	return fmt.Sprintf("waiting for %s, in use by sheep %s", l.named(), strings.Join(holders, ", "))
}

// named are the lease's devices, for people.
func (l *Lease) named() string {
	names := make([]string, len(l.devices))
	for i, d := range l.devices {
		names[i] = d.name
	}
	return strings.Join(names, ", ")
}
