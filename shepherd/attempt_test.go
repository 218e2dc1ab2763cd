package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage/storagetest"
)

// A job that is cancelled while its runner does not want to end, and submitted
// again at once, runs again: nothing of the first attempt is in its way.
func TestCancelAndSubmitAgain(t *testing.T) {
	p := newFixture(t)
	begun, gate := make(chan struct{}, 1), make(chan struct{})
	var runs atomic.Int32
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if runs.Add(1) == 1 {
			begun <- struct{}{}
			<-gate // deaf to what it is told
			// Late, but still at it: what it writes must not reach the second run.
			return fake.WriteOutput(in, "late", []byte("first"))
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("job-1", "m", "x")
	receive(t, begun, "the job does not begin")
	cancelled := make(chan error, 1)
	go func() { cancelled <- p.core.Cancel(t.Context(), "job-1") }()
	p.eventually("the cancel is seen", func() bool {
		rec, err := p.ledger.Get(t.Context(), "job-1")
		return err == nil && rec.Cancelling
	})
	submitted := make(chan error, 1)
	go func() {
		submitted <- p.core.Submit(t.Context(), job.Request{ID: "job-1", Model: job.Model{Name: "m", Version: "v1"}})
	}()
	select {
	case err := <-submitted:
		t.Fatalf("the second run was accepted while the first had the job's place: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if err := receive(t, cancelled, "the cancel does not return"); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, submitted, "the second run is not submitted"); err != nil {
		t.Fatal(err)
	}
	p.await("job-1", job.Done)
	if got := p.output("job-1"); got != "x" {
		t.Errorf("output %q", got)
	}
	files, err := storagetest.All(p.store.List(t.Context(), "job-1", job.OutputDir+"/"))
	if err != nil || len(files) != 1 {
		t.Errorf("outputs are %v, %v", files, err)
	}
	attempts, err := p.ledger.Attempts(t.Context(), "job-1")
	if err != nil || len(attempts) != 2 || attempts[0].Cause != job.CauseCancelled || attempts[0].Run != 1 || attempts[1].Cause != job.CauseDone || attempts[1].Run != 2 {
		t.Errorf("attempts %+v, %v", attempts, err)
	}
}

// A runner that can be told to drop a job keeps its model when the job is
// cancelled.
func TestCancelReachesTheRunner(t *testing.T) {
	p := newFixture(t)
	p.cancels = true
	begun := make(chan struct{}, 1)
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID != "endless" {
			return echo(ctx, m, in)
		}
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	p.start()
	p.submit("endless", "m", "x")
	receive(t, begun, "the job does not begin")
	if err := p.core.Cancel(t.Context(), "endless"); err != nil {
		t.Fatal(err)
	}
	p.await("endless", job.Cancelled)
	p.submit("next", "m", "x")
	p.await("next", job.Done)
	if n := p.runners.Starts("sheep"); n != 1 {
		t.Errorf("the runner was started %d times", n)
	}
}

// A job that is cancelled while its results are stored ends as cancelled, and the
// results of its next run are that run's alone.
func TestCancelDuringTheUpload(t *testing.T) {
	p := newFixture(t, "a", "b")
	storing, gate := make(chan struct{}), make(chan struct{})
	var first sync.Once
	p.store.hook(func() {
		p.store.collect = func(job.ID) error {
			held := false
			first.Do(func() { held = true })
			if held {
				close(storing)
				<-gate
			}
			return nil
		}
	})
	p.handle = func(_ context.Context, _ job.Model, in messenger.Input) error {
		return fake.WriteOutput(in, filepath.Base(filepath.Dir(in.IODataRoot)), []byte("x"))
	}
	p.start()
	p.submit("job-1", "m", "x", to("a"))
	receive(t, storing, "the results are not stored")
	asked := make(chan error, 1)
	go func() { asked <- p.core.Cancel(t.Context(), "job-1") }()
	p.eventually("the cancel is seen", func() bool {
		rec, err := p.ledger.Get(t.Context(), "job-1")
		return err == nil && rec.Cancelling
	})
	close(gate)
	if err := receive(t, asked, "the cancel does not return"); err != nil {
		t.Fatal(err)
	}
	was := p.await("job-1", job.Cancelled)
	p.submit("job-1", "m", "", to("b"), func(r *job.Request) { r.Payload = nil })
	now := p.await("job-1", job.Done)
	files, err := storagetest.All(p.store.List(t.Context(), "job-1", job.OutputDir+"/"))
	if err != nil || len(files) != 1 || files[0].Name != "outputs/b" {
		t.Errorf("outputs are %v, %v", files, err)
	}
	p.eventually("job_status.json is of the second run", func() bool {
		kept, err := p.store.Store.Status(t.Context(), "job-1")
		return err == nil && kept.FinishedAt.Equal(now.FinishedAt) && !kept.FinishedAt.Equal(was.FinishedAt)
	})
}

// Daemon and runner are killed under a job again and again: it is tried
// max_attempts times.
func TestInterruptedAgainAndAgain(t *testing.T) {
	p := newFixture(t)
	p.config.MaxAttempts = 4
	p.give(p.hold("poison", false))
	for n := range 3 { // each start finds what the last, killed, left
		p.start()
		if n == 2 {
			break
		}
		p.eventually("it is claimed again", func() bool {
			rec, err := p.ledger.Get(t.Context(), "poison")
			return err == nil && rec.State.Final() || rec.Attempt > n+1 && rec.State == job.Processing
		})
		if rec, _ := p.ledger.Get(t.Context(), "poison"); rec.State.Final() {
			break
		}
		p.stop()
	}
	p.await("poison", job.Done)

	// The same without the time to run it: claims of a daemon that is killed at once.
	p.stop()
	p.give(p.hold("worse", false))
	for n := 1; n <= 4; n++ {
		p.config.Closing = true // it settles what it finds, and claims nothing
		p.start()
		p.eventually("the attempt has ended", func() bool {
			rec, err := p.ledger.Get(t.Context(), "worse")
			return err == nil && rec.Holder == ""
		})
		p.stop()
		rec, err := p.ledger.Get(t.Context(), "worse")
		if err != nil || rec.Spent != n {
			t.Fatalf("after %d attempts: %+v, %v", n, rec, err)
		}
		if final := rec.State.Final(); final != (n == 4) {
			t.Fatalf("after %d attempts it is %s", n, rec.State)
		}
		if n < 4 {
			c, err := p.ledger.Claim(t.Context(), ledger.Slot{Node: "node", Sheep: "sheep", Only: "worse"})
			for end := time.Now().Add(hang); c == nil && err == nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) { // it has a pause
				c, err = p.ledger.Claim(t.Context(), ledger.Slot{Node: "node", Sheep: "sheep", Only: "worse"})
			}
			if err != nil || c == nil {
				t.Fatal(c, err)
			}
			p.give(c)
			continue
		}
		if !strings.Contains(rec.Failure.Message, "tried 4 times") {
			t.Errorf("it failed with %q", rec.Failure.Message)
		}
	}
	p.config.Closing = false
}

// A sheep whose directory cannot be used fails no job: it rests and says why,
// another does the work, and it goes on when that is mended.
func TestSheepWithoutADirectory(t *testing.T) {
	p := newFixture(t, "broken")
	blocker := filepath.Join(p.config.DataRoot, "broken")
	if err := os.MkdirAll(p.config.DataRoot, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blocker, []byte("in the way"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.start()
	for n := range 20 {
		p.submit(fmt.Sprint("job-", n), "m", "x")
	}
	p.eventually("the sheep says why it rests", func() bool {
		detail := p.core.Sheep(t.Context())[0].Detail
		return strings.Contains(detail, "rests for") && strings.Contains(detail, "not a directory")
	})
	counts, err := p.ledger.Count(t.Context())
	if err != nil || counts[job.Failed] != 0 {
		t.Fatalf("%v, %v", counts, err)
	}
	p.applied(p.apply(0, p.members["broken"], p.member("well")))
	for n := range 20 {
		p.await(fmt.Sprint("job-", n), job.Done)
	}
	if err := os.Remove(blocker); err != nil {
		t.Fatal(err)
	}
	p.submit("own", "m", "x", to("broken"))
	p.await("own", job.Done)
}

// Of two sheep with different models, each job goes to the one that has its model;
// a job whose model nobody has fails, and says who was asked.
func TestSheepWithDifferentModels(t *testing.T) {
	for _, looks := range []bool{true, false} { // whether a sheep can tell before it loads
		t.Run(fmt.Sprint("looks ", looks), func(t *testing.T) {
			p := newFixture(t, "cats", "dogs")
			missing := func(sheep string, m job.Model) error {
				if m.Name == sheep {
					return nil
				}
				return &runtime.LoadError{Message: fmt.Sprintf("Cannot load `%s`.", m), Class: errdefs.ErrNotFound}
			}
			if looks {
				p.find = missing
			}
			p.loadOn = missing
			p.start()
			// All jobs wait before a sheep claims one: one that is submitted between a sheep's
			// look at what waits and its claim may be claimed, and is handed back.
			for _, name := range p.sheep {
				if err := p.core.DrainSheep(name); err != nil {
					t.Fatal(err)
				}
			}
			for n := range 10 {
				p.submit(fmt.Sprint("cat-", n), "cats", "x")
				p.submit(fmt.Sprint("dog-", n), "dogs", "x")
			}
			for _, name := range p.sheep {
				if err := p.core.ResumeSheep(name); err != nil {
					t.Fatal(err)
				}
			}
			for n := range 10 {
				p.await(fmt.Sprint("cat-", n), job.Done)
				p.await(fmt.Sprint("dog-", n), job.Done)
			}
			for n := range 10 { // who can tell does not even claim what it cannot run
				attempts, err := p.ledger.Attempts(t.Context(), job.ID(fmt.Sprint("cat-", n)))
				for _, attempt := range attempts {
					if looks && attempt.Cause == job.CauseNotHere {
						t.Errorf("cat-%d was claimed by sheep %s", n, attempt.Sheep)
					}
				}
				if err != nil || len(attempts) == 0 {
					t.Errorf("attempts of cat-%d: %v, %v", n, attempts, err)
				}
			}
			p.submit("bird", "birds", "x")
			failure := p.await("bird", job.Failed).Failure
			for _, want := range []string{"`cats`", "`dogs`", "Cannot load `birds:v1`."} {
				if !strings.Contains(failure.Message, want) {
					t.Errorf("it failed with %q, which does not say %s", failure.Message, want)
				}
			}
			p.submit("addressed", "dogs", "x", to("cats"))
			if failure := p.await("addressed", job.Failed).Failure; failure.Message != "Failed to start sheep for this job (Cannot load `dogs:v1`.)" {
				t.Errorf("addressed to the sheep without the model: %q", failure.Message)
			}
		})
	}
}

// brokenLedger is a ledger that fails on cue.
type brokenLedger struct {
	ledger.Ledger
	mu   sync.Mutex
	fail map[string]int // so often each fails
}

func (b *brokenLedger) broken(call string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail[call] == 0 {
		return nil
	}
	b.fail[call]--
	return fmt.Errorf("the state disk is full: %w", errdefs.ErrResourceExhausted)
}

func (b *brokenLedger) Release(ctx context.Context, id job.ID, token ledger.Token, why ledger.Return) (job.Record, error) {
	if err := b.broken("release"); err != nil {
		return job.Record{}, err
	}
	return b.Ledger.Release(ctx, id, token, why)
}

func (b *brokenLedger) Finish(ctx context.Context, id job.ID, token ledger.Token, o ledger.Outcome) (job.Record, error) {
	if err := b.broken("finish"); err != nil {
		return job.Record{}, err
	}
	return b.Ledger.Finish(ctx, id, token, o)
}

func (b *brokenLedger) Claim(ctx context.Context, s ledger.Slot) (*ledger.Claim, error) {
	if err := b.broken("claim"); err != nil {
		return nil, err
	}
	return b.Ledger.Claim(ctx, s)
}

// A change that the ledger cannot make durable is made when it can.
func TestFullStateDisk(t *testing.T) {
	p := newFixture(t)
	b := &brokenLedger{Ledger: p.ledger, fail: map[string]int{"release": 2, "finish": 2, "claim": 1}}
	p.config.Ledger = b
	var lost atomic.Bool
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if !lost.Swap(true) {
			return &runtime.Exit{Code: -1, Lost: true, Detail: "its shim is gone"}
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("job-1", "m", "x")
	p.await("job-1", job.Done)
	attempts, err := p.ledger.Attempts(t.Context(), "job-1")
	if err != nil || len(attempts) != 2 || attempts[0].Cause != job.CauseLost {
		t.Errorf("attempts %+v, %v", attempts, err)
	}
}

// With nothing prepared ahead, a request for devices that is refused leaves the
// lane at work.
func TestRefusedRequestWithoutStageAhead(t *testing.T) {
	p := newFixture(t)
	p.config.StageAhead = 0
	devices := p.lend("sheep")
	devices.out = errors.New("GPU 0 is out")
	p.start()
	p.submit("job-1", "m", "x")
	p.eventually("it asks again and again", func() bool { return strings.Count(devices.noted(), "request") >= 2 })
	devices.mu.Lock()
	devices.out = nil
	devices.mu.Unlock()
	p.await("job-1", job.Done)
}

// What happened while no daemon was there reaches job_status.json with the next.
func TestStatesCatchUp(t *testing.T) {
	p := newFixture(t)
	p.start()
	p.submit("done", "m", "x")
	p.await("done", job.Done)
	p.stop()
	ctx := t.Context()
	for _, id := range []job.ID{"queued", "cancelled"} {
		if err := p.store.Init(ctx, id, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := p.ledger.Create(ctx, job.Record{ID: id, Model: job.Model{Name: "m"}}); err != nil {
			t.Fatal(err)
		}
	}
	ended, err := p.ledger.Cancel(ctx, "cancelled")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.store.Store.Status(ctx, "cancelled"); !errdefs.IsNotFound(err) {
		t.Fatalf("its state is in storage already: %v", err)
	}
	p.start()
	p.await("queued", job.Done)
	p.eventually("the state is in storage", func() bool {
		kept, err := p.store.Store.Status(ctx, "cancelled")
		return err == nil && kept.State == job.Cancelled && kept.FinishedAt.Equal(ended.FinishedAt)
	})
}

// A model that plants links where the daemon will write makes it write nowhere
// else.
func TestPlantedLinks(t *testing.T) {
	p := newFixture(t)
	victim := filepath.Join(p.dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	trace := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		sheep := filepath.Dir(in.IODataRoot)
		if in.JobID == "evil" {
			var own int
			fmt.Sscanf(filepath.Base(in.IODataRoot), "attempt-%d", &own)
			for n := own + 1; n < own+4; n++ { // the next attempts' places, as it guesses them
				dir := filepath.Join(sheep, fmt.Sprint("attempt-", n), "good")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				for _, name := range []string{job.TraceFile, job.InputDir, job.OutputDir} {
					if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
						return err
					}
				}
			}
			// And its own outputs are the victim's directory.
			if err := os.Remove(filepath.Join(in.IODataRoot, "evil", job.OutputDir)); err != nil {
				return err
			}
			return os.Symlink(filepath.Dir(victim), filepath.Join(in.IODataRoot, "evil", job.OutputDir))
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("evil", "m", "x", func(r *job.Request) { r.Trace = trace })
	p.eventually("it has ended", func() bool {
		s, err := p.core.Job(t.Context(), "evil")
		return err == nil && s.State.Final()
	})
	if files, err := storagetest.All(p.store.List(t.Context(), "evil", job.OutputDir+"/")); err != nil || len(files) != 0 {
		t.Errorf("files of the host were stored: %v, %v", files, err)
	}
	p.submit("good", "m", "y", func(r *job.Request) { r.Trace = trace })
	p.await("good", job.Done)
	if got := p.output("good"); got != "y" {
		t.Errorf("output %q", got)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
		t.Errorf("the file of the host is %q, %v", text, err)
	}
}

// Retries, timeouts and times of a job.
func TestLimits(t *testing.T) {
	p := newFixture(t)
	pause, short := 10*time.Millisecond, 300*time.Millisecond
	two := 2
	var tries atomic.Int32
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		switch {
		case in.JobID == "flaky" && tries.Add(1) < 3:
			return errors.New("not yet")
		case in.JobID == "slow":
			<-ctx.Done()
			return ctx.Err()
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("flaky", "m", "x", func(r *job.Request) { r.Limits = job.Limits{Retries: &two, RetryPause: &pause} })
	p.await("flaky", job.Done)
	attempts, err := p.ledger.Attempts(t.Context(), "flaky")
	if err != nil || len(attempts) != 3 || attempts[0].Cause != job.CauseError || !attempts[1].Spent || attempts[2].Cause != job.CauseDone {
		t.Errorf("attempts %+v, %v", attempts, err)
	}
	p.submit("slow", "m", "x", func(r *job.Request) { r.Limits.RunTimeout = &short })
	if failure := p.await("slow", job.Failed).Failure; !strings.Contains(failure.Message, "run_timeout of 300ms") {
		t.Errorf("it failed with %q", failure.Message)
	}
	p.submit("late", "m", "x", func(r *job.Request) { r.Deadline = time.Now().Add(-time.Second) })
	if failure := p.await("late", job.Failed).Failure; !strings.Contains(failure.Message, "deadline") {
		t.Errorf("it failed with %q", failure.Message)
	}
	p.submit("later", "m", "x", func(r *job.Request) { r.NotBefore = time.Now().Add(short) })
	p.await("later", job.Done)
	rec, err := p.ledger.Get(t.Context(), "later")
	if err != nil || rec.StartedAt.Before(rec.NotBefore) {
		t.Errorf("started at %v, not before %v, %v", rec.StartedAt, rec.NotBefore, err)
	}
	p.submit("waits", "m", "x", func(r *job.Request) {
		r.Limits.WaitTimeout = new(hang)
		r.NotBefore = time.Now().Add(time.Millisecond)
	})
	p.await("waits", job.Done)
}

// A runner that never takes jobs is given up after load_timeout, with what it was
// waited for and what it wrote.
func TestLoadTimeout(t *testing.T) {
	p := newFixture(t)
	p.log = "of an earlier runner\n"
	p.begin = func(ctx context.Context, m job.Model) {
		fake.Print(ctx, "loading weights")
		fake.Print(ctx, "waiting for a licence")
	}
	p.deaf = func(m job.Model) bool { return m.Name == "deaf" }
	p.config.Limits = shepherd.LimitDefaults{Models: []shepherd.LimitRule{{Models: rule(t, "deaf"), Limits: job.Limits{LoadTimeout: new(time.Hour)}}}}
	p.start()
	p.submit("job-1", "deaf", "x")
	p.eventually("the job says what it waits for", func() bool {
		v, err := p.core.View(t.Context(), "job-1")
		return err == nil && v.Detail == "waiting for port 9999"
	})
	if err := p.core.Cancel(t.Context(), "job-1"); err != nil {
		t.Fatal(err)
	}
	p.await("job-1", job.Cancelled)
	p.stop()

	p.inTime(2*time.Second, func(limit time.Duration) (problem string) {
		p.config.Limits.Models[0].Limits.LoadTimeout = &limit
		p.start()
		id := "deaf-" + limit.String()
		p.submit(id, "deaf", "x")
		failure := p.await(id, job.Failed).Failure
		for _, want := range []string{"Failed to start sheep for this job", "load_timeout of " + limit.String(), "waiting for port 9999", "last log lines: loading weights | waiting for a licence"} {
			if !strings.Contains(failure.Message, want) {
				problem = fmt.Sprintf("%q does not say %q", failure.Message, want)
			}
		}
		if problem != "" {
			p.stop()
		}
		return problem
	})
	p.submit("job-2", "m", "x")
	p.await("job-2", job.Done)
}

func rule(t *testing.T, text string) job.Rule {
	t.Helper()
	r, err := job.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A job that a busy sheep has only prepared is cancelled at once, not when its
// turn comes.
func TestCancelOfAPreparedJob(t *testing.T) {
	p := newFixture(t)
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "1")
	p.began(begun, "wait-1")
	p.submit("prepared", "m", "2")
	p.eventually("it is prepared", func() bool {
		rec, err := p.ledger.Get(t.Context(), "prepared")
		return err == nil && rec.Holder == "sheep"
	})
	if err := p.core.Cancel(t.Context(), "prepared"); err != nil {
		t.Fatal(err)
	}
	p.await("prepared", job.Cancelled)
	open()
	p.await("wait-1", job.Done)
}

// watchedClaims is a ledger that tells of the claims that were made, before who made them
// knows.
type watchedClaims struct {
	ledger.Ledger
	claimed func(job.ID)
}

func (l *watchedClaims) Claim(ctx context.Context, s ledger.Slot) (*ledger.Claim, error) {
	c, err := l.Ledger.Claim(ctx, s)
	if c != nil {
		l.claimed(c.ID)
	}
	return c, err
}

// A job that is cancelled just when a busy sheep claims it to prepare it is cancelled at once,
// too.
func TestCancelDuringTheClaim(t *testing.T) {
	p := newFixture(t)
	begun, gate := p.gated()
	open := sync.OnceFunc(gate)
	p.config.Ledger = &watchedClaims{Ledger: p.ledger, claimed: func(id job.ID) {
		if id != "prepared" {
			return
		}
		if _, err := p.ledger.Cancel(t.Context(), id); err != nil {
			t.Error(err)
		}
		// When this one's end is in storage, the event of that is read.
		_, err := p.ledger.Create(t.Context(), job.Record{ID: "later", Model: job.Model{Name: "m"}, NotBefore: time.Now().Add(time.Hour)})
		if err == nil {
			_, err = p.ledger.Cancel(t.Context(), "later")
		}
		if err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(hang); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if kept, err := p.store.Store.Status(t.Context(), "later"); err == nil && kept.State == job.Cancelled {
				return
			}
		}
		t.Error("the events are not read")
	}}
	p.start()
	if err := p.store.Init(t.Context(), "later", []byte("x")); err != nil {
		t.Fatal(err)
	}
	p.submit("wait-1", "m", "1")
	p.began(begun, "wait-1")
	defer open()
	p.submit("prepared", "m", "2")
	p.await("prepared", job.Cancelled)
	open()
	p.await("wait-1", job.Done)
}

// A client that waits is told of the end of the run that it waits for, also where
// the job is submitted again at once.
func TestWaitersOfARunThatIsSubmittedAgain(t *testing.T) {
	p := newFixture(t)
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "x")
	p.began(begun, "wait-1")
	var waiting sync.WaitGroup
	for range 20 {
		waiting.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), hang)
			defer cancel()
			if s, err := p.core.Wait(ctx, "wait-1"); err != nil || !s.State.Final() || s.FinishedAt.IsZero() {
				t.Errorf("told %+v, %v", s, err)
			}
		})
	}
	open()
	for range 10 {
		p.await("wait-1", job.Done)
		p.submit("wait-1", "m", "", func(r *job.Request) { r.Payload = nil })
	}
	waiting.Wait()
	p.await("wait-1", job.Done)
}

// A machine that has no descriptors, no room or no disk left fails no job: its
// sheep rest, and go on when it has.
func TestMachineFaults(t *testing.T) {
	for _, fault := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.ENOMEM} {
		t.Run(fault.Error(), func(t *testing.T) {
			p := newFixture(t)
			var left atomic.Int32
			left.Store(2)
			p.store.hook(func() {
				p.store.stage = func(job.ID) error {
					if left.Add(-1) >= 0 {
						return fmt.Errorf("open a file: %w", &os.PathError{Op: "open", Path: "/x", Err: fault})
					}
					return nil
				}
			})
			p.start()
			if err := p.store.Init(t.Context(), "job-1", []byte("x")); err != nil {
				t.Fatal(err)
			}
			p.submit("job-1", "m", "", func(r *job.Request) { r.Payload = nil })
			p.await("job-1", job.Done)
			attempts, err := p.ledger.Attempts(t.Context(), "job-1")
			if err != nil || len(attempts) != 3 || attempts[0].Cause != job.CauseSheep || attempts[1].Spent {
				t.Errorf("attempts %+v, %v", attempts, err)
			}
		})
	}
}
