package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shepherd"
)

// scripted is one sheep's devices, which do as the test says.
type scripted struct {
	mu        sync.Mutex
	admission job.Admission
	changed   func()
	grant     bool // requests are granted
	waiting   []chan error
	asked     int // requests and holds that are not done
	prepare   error
	out       error
	fault     chan struct{} // closed when out is set
	account   job.Account
	model     job.Model
	up        bool
	under     job.ID
	yield     chan struct{}
	log       []string
}

func newScripted() *scripted {
	return &scripted{admission: job.AnyNow, grant: true, fault: make(chan struct{}), yield: make(chan struct{}, 1)}
}

var _ shepherd.Devices = (*scripted)(nil)

func (s *scripted) Admission() job.Admission { s.mu.Lock(); defer s.mu.Unlock(); return s.admission }
func (s *scripted) Notify(changed func())    { s.mu.Lock(); defer s.mu.Unlock(); s.changed = changed }

// set changes the admission and says so.
func (s *scripted) set(a job.Admission) {
	s.mu.Lock()
	s.admission = a
	changed := s.changed
	s.mu.Unlock()
	changed()
}

func (s *scripted) note(what string) { s.log = append(s.log, what) }

func (s *scripted) noted() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, " ")
}

func (s *scripted) Request() (<-chan error, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("request")
	granted := make(chan error, 1)
	s.waiting = append(s.waiting, granted)
	s.asked++
	s.settle()
	return granted, s.done()
}

func (s *scripted) settle() {
	for s.grant && len(s.waiting) > 0 {
		s.waiting[0] <- s.out
		s.waiting = s.waiting[1:]
	}
}

func (s *scripted) done() func() {
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked--
		s.note("done")
	})
}

func (s *scripted) allow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grant = true
	s.settle()
}

func (s *scripted) Hold() (func(), bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.grant && !s.up {
		return nil, false
	}
	s.asked++
	s.note("hold")
	return s.done(), true
}

func (s *scripted) Yield() <-chan struct{} { return s.yield }

func (s *scripted) Prepare(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("prepare")
	return s.prepare
}

func (s *scripted) Started(m job.Model, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("started")
	s.model, s.up = m, true
}

func (s *scripted) Stopped() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("stopped")
	s.up = false
}

func (s *scripted) Fault(ctx context.Context) error {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-fault:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.out
	}
}

// fail takes the device out.
func (s *scripted) fail(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out, s.admission = errors.New(why), job.NoJobs
	close(s.fault)
}

func (s *scripted) Begin(id job.ID, _ time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("begin")
	s.under = id
}

func (s *scripted) End(id job.ID, _ time.Time, failed bool) <-chan job.Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := make(chan job.Account, 1)
	if s.under != id {
		told <- job.Account{}
		return told
	}
	s.note("end")
	s.under = ""
	account := s.account
	if !failed {
		account.Cause = ""
	}
	told <- account
	return told
}

func (s *scripted) State() string { return "as scripted" }

func (s *scripted) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("closed")
}

func (p *fixture) lend(sheep string) *scripted {
	s := newScripted()
	if p.devices == nil {
		p.devices = make(map[string]shepherd.Devices)
	}
	p.devices[sheep] = s
	return s
}

func TestDevicesAreAskedFor(t *testing.T) {
	p := newFixture(t)
	devices := p.lend("sheep")
	devices.account = job.Account{Usage: job.Usage{GPUMemory: 3 << 30, GPUTime: time.Second}, Cause: "GPU 0 reported Xid 31"}
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "bad" {
			return errors.New("CUDA error")
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("good", "m", "x")
	p.await("good", job.Done)
	p.eventually("the devices are given back", func() bool { return strings.HasSuffix(devices.noted(), "done") })
	p.submit("bad", "m", "x")
	if failure := p.await("bad", job.Failed).Failure; failure.Message != "CUDA error (GPU 0 reported Xid 31)" {
		t.Errorf("the job failed with %q", failure.Message)
	}
	for _, id := range []job.ID{"good", "bad"} {
		if rec, err := p.ledger.Get(t.Context(), id); err != nil || rec.Usage != devices.account.Usage {
			t.Errorf("job %s used %+v (%v)", id, rec.Usage, err)
		}
	}
	if got := p.core.Sheep(t.Context())[0].Detail; got != "as scripted" {
		t.Errorf("the sheep's detail is %q", got)
	}
	p.stop()
	const want = "request prepare started begin end done request begin end done stopped closed"
	if got := devices.noted(); got != want {
		t.Errorf("the devices were told %q, want %q", got, want)
	}
	if devices.asked != 0 {
		t.Errorf("%d requests are not done", devices.asked)
	}
}

// TestJobWaitsForDevices has a job that waits be queued to its client, and taken
// over by a sheep that is idle.
func TestJobWaitsForDevices(t *testing.T) {
	p := newFixture(t, "a", "b")
	a, b := p.lend("a"), p.lend("b")
	a.grant, a.admission = false, job.AnyJobs
	b.admission = job.NoJobs
	p.start()
	p.submit("free", "m", "x")
	p.submit("own", "m", "x", func(r *job.Request) { r.Sheep = "a" })
	p.eventually("a asks for its devices", func() bool { return strings.Contains(a.noted(), "request") })
	if s, err := p.core.Job(t.Context(), "free"); err != nil || s.State != job.Queued {
		t.Fatalf("the job that waits is %s, %v", s.State, err)
	}
	b.set(job.AnyNow)
	p.await("free", job.Done)
	if strings.Contains(a.noted(), "begin") {
		t.Error("a ran it without its devices")
	}
	b.set(job.OwnJobs)
	p.submit("more", "m", "x")
	a.allow()
	p.await("own", job.Done)
	p.await("more", job.Done)
	if strings.Count(b.noted(), "begin") != 1 {
		t.Errorf("b was to run one job: %s", b.noted())
	}
}

func TestDeviceIsLost(t *testing.T) {
	for name, elsewhere := range map[string]bool{"elsewhere": true, "nowhere": false} {
		t.Run(name, func(t *testing.T) {
			p := newFixture(t, "a", "b")
			a := p.lend("a")
			b := p.lend("b")
			b.admission = job.NoJobs
			begun := make(chan struct{}, 1)
			var first sync.Once
			p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
				first.Do(func() {
					begun <- struct{}{}
					<-ctx.Done()
				})
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return echo(ctx, m, in)
			}
			p.start()
			p.submit("xxx", "m", "x")
			receive(t, begun, "the job does not begin")
			if elsewhere {
				b.mu.Lock() // without a word: it looks when the job is back
				b.admission = job.AnyNow
				b.mu.Unlock()
			}
			a.fail("GPU 0 fell off the bus")
			if elsewhere {
				p.await("xxx", job.Done)
			} else if failure := p.await("xxx", job.Failed).Failure; failure.Message != "A device was lost under this job (GPU 0 fell off the bus)" {
				t.Errorf("the job failed with %q", failure.Message)
			}
			if !strings.Contains(a.noted(), "stopped") {
				t.Errorf("a's runner is still up: %s", a.noted())
			}
			// What the sheep is asked for now waits until the device is back.
			p.submit("yyy", "m", "x", func(r *job.Request) { r.Sheep = "a" })
			a.mu.Lock()
			a.out, a.fault = nil, make(chan struct{})
			a.mu.Unlock()
			a.set(job.AnyNow)
			p.await("yyy", job.Done)
		})
	}
}

// TestRunnerKnowsFirst has a runner answer that the job failed before it is known
// that the device is lost.
func TestRunnerKnowsFirst(t *testing.T) {
	p := newFixture(t, "a", "b")
	a, b := p.lend("a"), p.lend("b")
	a.account = job.Account{Cause: "GPU 0 fell off the bus", Lost: true}
	b.admission = job.NoJobs
	broken := errors.New("CUDA error")
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if b.noted() == "" {
			a.mu.Lock() // it takes no more, but nobody was told yet
			a.admission = job.NoJobs
			a.mu.Unlock()
			if in.JobID == "free" {
				b.mu.Lock()
				b.admission = job.AnyNow
				b.mu.Unlock()
			}
			return broken
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("own", "m", "x", func(r *job.Request) { r.Sheep = "a" })
	if failure := p.await("own", job.Failed).Failure; failure.Message != "CUDA error (GPU 0 fell off the bus)" {
		t.Errorf("the job failed with %q", failure.Message)
	}
	a.set(job.AnyNow)
	p.submit("free", "m", "x")
	p.await("free", job.Done)
	if rec, err := p.ledger.Get(t.Context(), "free"); err != nil || rec.Attempt != 2 {
		t.Errorf("the job was tried %d times (%v)", rec.Attempt, err)
	}
}

// A device that somebody else uses is waited for, for as long as loading may take.
func TestDevicesAreNotReady(t *testing.T) {
	p := newFixture(t)
	devices := p.lend("sheep")
	devices.prepare = errNoMemory{}
	p.start()
	p.inTime(time.Second, func(limit time.Duration) (problem string) {
		before := strings.Count(devices.noted(), "prepare")
		id := "xxx-" + limit.String()
		p.submit(id, "m", "x", func(r *job.Request) { r.Limits.LoadTimeout = &limit })
		failure := p.await(id, job.Failed).Failure
		if want := "Failed to start sheep for this job (GPU 0 has no memory free)"; failure.Message != want {
			t.Errorf("the job failed with %q, want %q", failure.Message, want)
		}
		if n := strings.Count(devices.noted(), "prepare") - before; n < 2 { // fewer on a busy machine
			problem = fmt.Sprintf("it was tried %d times", n)
		}
		return problem
	})
	p.submit("yyy", "m", "x")
	p.eventually("it rests", func() bool {
		return strings.Contains(p.core.Sheep(t.Context())[0].Detail, "rests for")
	})
	devices.mu.Lock()
	devices.prepare = nil
	devices.mu.Unlock()
	p.await("yyy", job.Done)
}

type errNoMemory struct{}

func (errNoMemory) Error() string { return "GPU 0 has no memory free" }
func (errNoMemory) Unwrap() error { return errdefs.ErrUnavailable }

func TestIdleModelIsUnloaded(t *testing.T) {
	t.Run("in time", func(t *testing.T) {
		p := newFixture(t)
		p.idle = time.Millisecond
		p.start()
		p.submit("xxx", "m", "x")
		p.await("xxx", job.Done)
		p.eventually("the runner is gone", func() bool { return p.runners.Alive() == 0 && !p.core.Sheep(t.Context())[0].Running })
		p.submit("yyy", "m", "y")
		p.await("yyy", job.Done)
		if n := p.runners.Starts("sheep"); n != 2 {
			t.Errorf("%d runners were started, want 2", n)
		}
	})
	t.Run("when asked", func(t *testing.T) {
		p := newFixture(t)
		devices := p.lend("sheep")
		p.start()
		p.submit("xxx", "m", "x")
		p.await("xxx", job.Done)
		if p.runners.Alive() != 1 {
			t.Fatal("the model was unloaded unasked")
		}
		devices.yield <- struct{}{}
		p.eventually("the runner is gone", func() bool { return strings.HasSuffix(devices.noted(), "stopped") })
	})
	t.Run("never", func(t *testing.T) {
		p := newFixture(t)
		p.start()
		for _, id := range []string{"xxx", "yyy"} {
			p.submit(id, "m", id)
			p.await(id, job.Done)
		}
		if n := p.runners.Starts("sheep"); n != 1 {
			t.Errorf("%d runners were started", n)
		}
	})
}

// inTime has try do what must happen within a time limit: on a busy machine again, with a
// longer one. It returns what did not happen.
func (p *fixture) inTime(limit time.Duration, try func(limit time.Duration) (problem string)) {
	p.t.Helper()
	for {
		problem := try(limit)
		if problem == "" {
			return
		}
		if limit *= 5; limit > hang {
			p.t.Fatal(problem)
		}
	}
}

func (p *fixture) eventually(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(hang); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("waited in vain until %s", what)
		}
	}
}
