package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/embedded"
	"github.com/iterait/shepherd/storage/s3"
	"github.com/iterait/shepherd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hang = 2 * time.Minute // only a hang reaches it

// fixture is a core on a real ledger and real storage, with fake sheep.
type fixture struct {
	t       *testing.T
	dir     string
	url     string // of the storage
	ledger  *sqlite.Ledger
	store   *watchedStore
	runners *fake.Runners
	handle  fake.Handler
	load    func(context.Context, job.Model) error
	loadOn  func(sheep string, m job.Model) error // beside load
	events  []runtime.Event                       // that a load reports
	check   func(sheep string, m job.Model) error
	find    func(sheep string, m job.Model) error
	deaf    func(m job.Model) bool
	begin   func(ctx context.Context, m job.Model) // when a runner starts
	cancels bool                                   // runners can be told to drop a job
	log     string                                 // of what runners have written
	keeper  runtime.ModelKeeper
	devices map[string]shepherd.Devices // by sheep
	idle    time.Duration
	preload job.Model
	config  shepherd.Config
	sheep   []string
	members map[string]shepherd.Member
	wrap    func(runtime.Sheep) runtime.Sheep
	core    *shepherd.Shepherd
}

func newFixture(t *testing.T, sheep ...string) *fixture {
	t.Helper()
	p := &fixture{t: t, dir: t.TempDir(), runners: fake.NewRunners(), handle: echo, sheep: sheep}
	if len(sheep) == 0 {
		p.sheep = []string{"sheep"}
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	server, err := embedded.Open(embedded.Config{Dir: p.dir + "/storage", Listen: "127.0.0.1:0", AccessKey: "access", SecretKey: "secret-key", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(context.Background()) })
	t.Cleanup(func() { server.Close(); serving.Wait() })
	real, err := s3.New(s3.Config{URL: "http://" + server.Addr(), AccessKey: "access", SecretKey: "secret-key", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	p.url = "http://" + server.Addr()
	p.store = &watchedStore{Store: real}
	p.ledger, err = sqlite.Open(t.Context(), sqlite.Config{Path: p.dir + "/ledger.db", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.ledger.Close() })
	p.config = shepherd.Config{
		Node: "node", DataRoot: p.dir + "/data", Ledger: p.ledger, Webhooks: p.ledger, Store: p.store,
		StageAhead: 1, MaxAttempts: 3, Log: log,
	}
	t.Cleanup(p.stop)
	return p
}

// echo copies inputs/input to outputs/output.
func echo(_ context.Context, _ job.Model, in messenger.Input) error {
	data, err := fake.ReadInput(in, job.DefaultInput)
	if err != nil {
		return err
	}
	return fake.WriteOutput(in, job.DefaultOutput, data)
}

func (p *fixture) newSheep(name string) runtime.Sheep {
	p.t.Helper()
	driver := fake.New(fake.Config{
		Runners: p.runners,
		Observe: p.events,
		Handle:  func(ctx context.Context, m job.Model, in messenger.Input) error { return p.handle(ctx, m, in) },
		Load: func(ctx context.Context, m job.Model) error {
			if p.loadOn != nil {
				if err := p.loadOn(name, m); err != nil {
					return err
				}
			}
			if p.load != nil {
				return p.load(ctx, m)
			}
			return nil
		},
		Find: func(m job.Model) error {
			if p.find != nil {
				return p.find(name, m)
			}
			return nil
		},
		Start: func(ctx context.Context, m job.Model) error {
			if p.begin != nil {
				p.begin(ctx, m)
			}
			return nil
		},
		Deaf: p.deaf, Cancels: p.cancels, Log: p.log,
		Check: func(m job.Model) error {
			if p.check != nil {
				return p.check(name, m)
			}
			return nil
		},
	})
	sheep, err := driver.NewSheep(name, func(any) error { return nil })
	if err != nil {
		p.t.Fatal(err)
	}
	return sheep
}

func (p *fixture) start() {
	p.t.Helper()
	cfg := p.config
	p.members = make(map[string]shepherd.Member)
	for _, name := range p.sheep {
		sheep := p.newSheep(name)
		if p.wrap != nil {
			sheep = p.wrap(sheep)
		}
		p.members[name] = shepherd.Member{Name: name, Type: "fake", Sheep: sheep, Models: p.keeper, Devices: p.devices[name], IdleTimeout: p.idle, Preload: p.preload}
		cfg.Sheep = append(cfg.Sheep, p.members[name])
	}
	core, err := shepherd.New(cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := core.Start(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	p.core = core
}

func (p *fixture) stop() {
	if p.core == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	p.core.Stop(ctx)
	p.core.Stop(ctx) // twice is safe
	if n := p.runners.Alive(); n > 0 {
		p.t.Errorf("%d runners outlived the core", n)
	}
	p.core = nil
}

func (p *fixture) submit(id, model, payload string, more ...func(*job.Request)) {
	p.t.Helper()
	r := job.Request{ID: job.ID(id), Model: job.Model{Name: model, Version: "v1"}, Payload: []byte(payload)}
	for _, f := range more {
		f(&r)
	}
	var err error
	p.eventually("no earlier files of the job are being removed", func() bool { // a client tries again, too
		err = p.core.Submit(p.t.Context(), r)
		return !errors.Is(err, job.ErrRemoving)
	})
	if err != nil {
		p.t.Fatalf("submit %s: %v", id, err)
	}
}

// await waits until the job has ended in the state.
func (p *fixture) await(id string, want job.State) job.Status {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), hang)
	defer cancel()
	s, err := p.core.Wait(ctx, job.ID(id))
	if err != nil {
		p.t.Fatalf("wait for %s: %v", id, err)
	}
	if s.State != want {
		p.t.Fatalf("job %s is %s (%v), want %s", id, s.State, s.Failure, want)
	}
	return s
}

func (p *fixture) output(id string) string {
	p.t.Helper()
	f, err := p.core.Output(p.t.Context(), job.ID(id), job.DefaultOutput, nil)
	if err != nil {
		p.t.Fatalf("output of %s: %v", id, err)
	}
	defer f.Body.Close()
	b, err := io.ReadAll(f.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// watchedStore is a real store that counts calls and fails on cue.
type watchedStore struct {
	storage.Store
	calls atomic.Int64

	mu      sync.Mutex
	collect func(job.ID) error
	status  func(job.ID, job.Status) error
	stage   func(job.ID) error
	remove  func(job.ID) error
	admit   func(id job.ID, bytes int64, err error) // what was said of inputs that are to be staged
}

func (s *watchedStore) hook(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

func (s *watchedStore) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (storage.Staged, error) {
	s.calls.Add(1)
	s.mu.Lock()
	f, told := s.stage, s.admit
	s.mu.Unlock()
	if f != nil {
		if err := f(id); err != nil {
			return storage.Staged{}, err
		}
	}
	if admit := how.Admit; admit != nil && told != nil {
		how.Admit = func(bytes int64) error {
			err := admit(bytes)
			told(id, bytes, err)
			return err
		}
	}
	return s.Store.Stage(ctx, id, dir, how)
}

func (s *watchedStore) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	s.calls.Add(1)
	s.mu.Lock()
	f := s.collect
	s.mu.Unlock()
	if f != nil {
		if err := f(id); err != nil {
			return storage.Collected{}, err
		}
	}
	return s.Store.Collect(ctx, id, dir, replace)
}

func (s *watchedStore) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	s.calls.Add(1)
	s.mu.Lock()
	f := s.status
	s.mu.Unlock()
	if f != nil {
		if err := f(id, status); err != nil {
			return err
		}
	}
	return s.Store.SetStatus(ctx, id, status)
}

func (s *watchedStore) Remove(ctx context.Context, id job.ID) error {
	s.calls.Add(1)
	s.mu.Lock()
	f := s.remove
	s.mu.Unlock()
	if f != nil {
		if err := f(id); err != nil {
			return err
		}
	}
	return s.Store.Remove(ctx, id)
}

func TestSubmitRefuses(t *testing.T) {
	p := newFixture(t)
	p.start()
	p.submit("taken", "m", "x")
	model := job.Model{Name: "m", Version: "v1"}
	var invalid *job.Invalid
	var unknownSheep *job.UnknownSheep
	var unknownJob *job.UnknownJob
	for _, c := range []struct {
		name string
		r    job.Request
		ok   func(error) bool
	}{
		{"taken id", job.Request{ID: "taken", Model: model, Payload: []byte("y")}, func(err error) bool { return errors.Is(err, job.ErrSubmitted) }},
		{"no place", job.Request{ID: "no-place", Model: model}, func(err error) bool { return errors.As(err, &unknownJob) }},
		{"unknown sheep", job.Request{ID: "x-1", Model: model, Sheep: "wolf", Payload: []byte("y")}, func(err error) bool { return errors.As(err, &unknownSheep) }},
		{"escaping model", job.Request{ID: "x-2", Model: job.Model{Name: "../m"}, Payload: []byte("y")}, func(err error) bool { return errors.As(err, &invalid) }},
		{"id no bucket can have", job.Request{ID: "X_2", Model: model, Payload: []byte("y")}, func(err error) bool { return errors.As(err, &invalid) && invalid.Field == "job_id" }},
	} {
		if err := p.core.Submit(t.Context(), c.r); err == nil || !c.ok(err) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.r.ID != "taken" {
			if there, err := p.store.Exists(t.Context(), c.r.ID); there && err == nil {
				t.Errorf("%s: a place was made in storage", c.name)
			}
		}
	}
	for _, check := range p.core.Checks(t.Context()) {
		if check.Err != nil {
			t.Errorf("not ready: %s: %v", check.Name, check.Err)
		}
	}
	p.core.Drain()
	ready := true
	for _, check := range p.core.Checks(t.Context()) {
		ready = ready && check.Err == nil
	}
	if ready {
		t.Error("ready while draining")
	}
	if err := p.core.Submit(t.Context(), job.Request{ID: "late", Model: model, Payload: []byte("y")}); !errors.Is(err, job.ErrDraining) {
		t.Errorf("while draining: %v", err)
	}
}

// The runner has its next job while the results of the last are still put away.
func TestRunnerDoesNotWaitForStorage(t *testing.T) {
	p := newFixture(t)
	second := make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "second" {
			close(second)
		}
		return echo(ctx, m, in)
	}
	p.store.hook(func() {
		p.store.collect = func(id job.ID) error {
			if id == "first" {
				select {
				case <-second:
				case <-time.After(hang):
					return errors.New("the second job was not given to the runner meanwhile")
				}
			}
			return nil
		}
	})
	p.start()
	p.submit("first", "m", "1")
	p.submit("second", "m", "2")
	p.await("first", job.Done)
	p.await("second", job.Done)
}

// Storage goes away while a job ends: the job waits and ends well.
func TestStorageAwayAtTheEnd(t *testing.T) {
	p := newFixture(t)
	var failures atomic.Int64
	away := func(job.ID) error {
		if failures.Add(1) <= 3 {
			return fmt.Errorf("storage is away: %w", errdefs.ErrUnavailable)
		}
		return nil
	}
	p.store.hook(func() { p.store.collect = away })
	p.start()
	p.submit("job-1", "m", "kept")
	p.await("job-1", job.Done)
	if got := p.output("job-1"); got != "kept" {
		t.Errorf("output %q", got)
	}
	if failures.Load() != 4 {
		t.Errorf("Collect was called %d times", failures.Load())
	}
}

// job_status.json says how the job ended by the time that a waiting client knows.
func TestStatusIsInStorageWhenTheClientKnows(t *testing.T) {
	p := newFixture(t)
	p.start()
	looked := 0
	for i := range 20 {
		id := fmt.Sprintf("job-%d", i)
		p.submit(id, "m", "x")
		told := p.await(id, job.Done)
		if time.Since(told.FinishedAt) > 2*time.Second { // the client is not kept waiting for longer
			continue
		}
		looked++
		kept, err := p.store.Store.Status(t.Context(), job.ID(id))
		if err != nil || kept.State != job.Done || !kept.FinishedAt.Equal(told.FinishedAt) || !kept.StartedAt.Equal(told.StartedAt) {
			t.Fatalf("storage has %+v (%v), the client was told %+v", kept, err, told)
		}
	}
	if looked == 0 {
		t.Error("the machine is too slow")
	}
}

// hold leaves a job as a daemon that is killed does: claimed, with its payload in
// storage.
func (p *fixture) hold(id job.ID, ahead bool) *ledger.Claim {
	p.t.Helper()
	ctx := p.t.Context()
	if err := p.store.Init(ctx, id, []byte(id)); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.ledger.Create(ctx, job.Record{ID: id, Model: job.Model{Name: "m"}}); err != nil {
		p.t.Fatal(err)
	}
	c, err := p.ledger.Claim(ctx, ledger.Slot{Node: "node", Sheep: "sheep", Only: id, Ahead: ahead})
	if err != nil || c == nil {
		p.t.Fatal(c, err)
	}
	return c
}

// give moves the working directory of a claimed job to where runners see it, as a
// daemon does before it gives the job to one.
func (p *fixture) give(c *ledger.Claim) {
	p.t.Helper()
	dir := filepath.Join(p.config.DataRoot, "sheep", fmt.Sprint("attempt-", c.Token), string(c.ID))
	for _, sub := range []string{job.InputDir, job.OutputDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
}

// leave leaves a runner as a daemon that is killed does: alive, with the jobs
// answered, their outputs on disk, and no answer acknowledged.
func (p *fixture) leave(answered ...*ledger.Claim) {
	p.t.Helper()
	ctx := p.t.Context()
	sheep := p.newSheep("sheep")
	if err := sheep.Load(ctx, job.Model{Name: "m"}, runtime.Discard); err != nil {
		p.t.Fatal(err)
	}
	up := make(chan struct{})
	var once sync.Once
	ran := make(chan error, 1)
	go func() { ran <- sheep.Run(ctx, func(runtime.Event) { once.Do(func() { close(up) }) }) }()
	receive(p.t, up, "the runner does not start")
	conn := sheep.Conn()
	for _, c := range answered {
		dataRoot := filepath.Join(p.config.DataRoot, "sheep", fmt.Sprint("attempt-", c.Token))
		dir := filepath.Join(dataRoot, string(c.ID))
		if err := os.MkdirAll(filepath.Join(dir, job.OutputDir), 0o755); err != nil {
			p.t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			p.t.Fatal(err)
		}
		_, err = p.store.Stage(ctx, c.ID, root, storage.Options{})
		root.Close()
		if err != nil {
			p.t.Fatal(err)
		}
		if err := conn.Send(ctx, messenger.Input{JobID: c.ID, IODataRoot: dataRoot}); err != nil {
			p.t.Fatal(err)
		}
		if _, err := conn.Recv(ctx); err != nil {
			p.t.Fatal(err)
		}
	}
	sheep.Detach()
	if err := receive(p.t, ran, "the sheep does not detach"); !errors.Is(err, runtime.ErrDetached) {
		p.t.Fatal(err)
	}
}

// The directory of a job that was held by a daemon that did not mark directories is
// removed; one of the same shape whose job the ledger does not know is not.
func TestUnmarkedDirectories(t *testing.T) {
	p := newFixture(t)
	c := p.hold("held", false)
	sheep := filepath.Join(p.config.DataRoot, "sheep")
	ours := filepath.Join(sheep, fmt.Sprint("attempt-", c.Token))
	theirs := filepath.Join(sheep, "attempt-99")
	for _, dir := range []string{ours + "/held/", theirs + "/run/"} {
		for _, sub := range []string{job.InputDir, job.OutputDir} {
			if err := os.MkdirAll(dir+sub, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.start()
	p.await("held", job.Done)
	if _, err := os.Stat(ours); !os.IsNotExist(err) {
		t.Errorf("the directory of an earlier attempt: %v", err)
	}
	if _, err := os.Stat(theirs + "/run/" + job.OutputDir); err != nil {
		t.Error(err)
	}
}

// Answers that nobody acknowledged are finished by the next daemon, with their
// outputs, whether the runner that gave them is alive or not.
func TestAdoptsAnswers(t *testing.T) {
	for _, c := range []struct {
		name string
		then func(p *fixture)
	}{
		{"alive", func(*fixture) {}},
		{"ended since", func(p *fixture) { p.runners.Kill("sheep", runtime.Exit{Code: 1}) }},
		{"answered while it was looked at", func(p *fixture) {
			p.wrap = func(s runtime.Sheep) runtime.Sheep { return lateAnswer{s} }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newFixture(t)
			p.leave(p.hold("first", false), p.hold("second", true)) // the start of the second was not recorded
			c.then(p)
			starts := p.runners.Starts("sheep")
			p.handle = func(context.Context, job.Model, messenger.Input) error { return errors.New("run again") }
			p.start()
			for _, id := range []string{"first", "second"} {
				if s := p.await(id, job.Done); s.StartedAt.IsZero() {
					t.Errorf("%s has ended without a start: %+v", id, s)
				}
				if got := p.output(id); got != id {
					t.Errorf("output of %s is %q", id, got)
				}
			}
			if n := p.runners.Starts("sheep"); c.name != "ended since" && n != starts {
				t.Errorf("the runner was started %d times", n)
			}
		})
	}
}

// lateAnswer is a sheep whose last answered job was still under way when Recover
// looked for it first.
type lateAnswer struct{ runtime.Sheep }

func (l lateAnswer) Recover(ctx context.Context) (*runtime.Recovered, error) {
	r, err := l.Sheep.(runtime.Recoverer).Recover(ctx)
	if r != nil {
		r.Job = r.Answers[len(r.Answers)-1].JobID
	}
	return r, err
}

// What an earlier daemon held and nothing is left of runs again, also where its
// sheep has been taken out of the configuration meanwhile.
func TestRunsAgainWhatAnEarlierDaemonHeld(t *testing.T) {
	for _, sheep := range []string{"sheep", "other"} {
		t.Run(sheep, func(t *testing.T) {
			p := newFixture(t, sheep)
			p.give(p.hold("interrupted", false))
			p.hold("started", false)
			p.hold("prepared", true)
			p.give(p.hold("given", true)) // its start was not recorded
			p.start()
			for id, want := range map[job.ID]job.Attempt{
				"interrupted": {Cause: job.CauseInterrupted, Spent: true},
				"given":       {Cause: job.CauseInterrupted, Spent: true},
				"started":     {Cause: job.CauseDaemonKilled},
				"prepared":    {Cause: job.CauseDaemonKilled},
			} {
				p.await(string(id), job.Done)
				attempts, err := p.ledger.Attempts(t.Context(), id)
				if err != nil || len(attempts) != 2 || attempts[0].Cause != want.Cause || attempts[0].Spent != want.Spent || attempts[1].Cause != job.CauseDone {
					t.Errorf("attempts of %s: %+v, %v", id, attempts, err)
				}
			}
		})
	}
}

// A runner that is lost with its supervisor costs an attempt; a job that loses
// all of its attempts fails and says so.
func TestLostRunners(t *testing.T) {
	p := newFixture(t)
	var tries atomic.Int64
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "poison" || tries.Add(1) == 1 {
			return &runtime.Exit{Code: -1, Lost: true, Detail: "its shim is gone"}
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("unlucky", "m", "x")
	p.await("unlucky", job.Done)
	p.submit("poison", "m", "x")
	s := p.await("poison", job.Failed)
	for _, want := range []string{"Sheep container died without notice", "its shim is gone", "tried 3 times"} {
		if !strings.Contains(s.Failure.Message, want) {
			t.Errorf("message %q does not say %q", s.Failure.Message, want)
		}
	}
	p.submit("after", "m", "x")
	p.await("after", job.Done)
}

// A runner that dies fails its own job only, not the one prepared behind it.
func TestRunnerDeathFailsOneJob(t *testing.T) {
	p := newFixture(t)
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "dies" {
			return &runtime.Exit{Code: 3, LastLog: "one\ntwo\n"}
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("dies", "m", "x")
	p.submit("behind", "m", "x")
	if s := p.await("dies", job.Failed); s.Failure.Message != "Sheep container died without notice (exit code 3; last log line: two)" {
		t.Errorf("message %q", s.Failure.Message)
	}
	p.await("behind", job.Done)
}

// killingSheep calls before when a job is about to be given to its runner.
type killingSheep struct {
	runtime.Sheep
	before func()
}

func (s killingSheep) Conn() messenger.Conn { return killingConn{s.Sheep.Conn(), s.before} }

type killingConn struct {
	messenger.Conn
	before func()
}

func (c killingConn) Send(ctx context.Context, in messenger.Input) error {
	c.before()
	return c.Conn.Send(ctx, in)
}

// TestRunnerDiesBeforeItHasTheJob has runners end when their model is loaded and the job was
// not given to them yet: the job is not to blame, unless that is so again and again.
func TestRunnerDiesBeforeItHasTheJob(t *testing.T) {
	for _, c := range []struct {
		name   string
		deaths int // of the runners for the second job
		state  job.State
		sends  int
	}{
		{"once", 1, job.Done, 2},
		{"twice", 2, job.Done, 3},
		{"always", 1000, job.Failed, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newFixture(t)
			var deaths, sends atomic.Int64
			p.wrap = func(s runtime.Sheep) runtime.Sheep {
				return killingSheep{s, func() {
					sends.Add(1)
					if deaths.Add(-1) >= 0 {
						p.runners.Kill("sheep", runtime.Exit{Code: 3})
					}
				}}
			}
			p.start()
			p.submit("first", "m", "x")
			p.await("first", job.Done)
			deaths.Store(int64(c.deaths))
			sends.Store(0)
			p.submit("second", "m", "y")
			s := p.await("second", c.state)
			if c.state == job.Done && p.output("second") != "y" {
				t.Errorf("the output is %q", p.output("second"))
			}
			if c.state == job.Failed && s.Failure.Message != "Sheep container died without notice (exit code 3)" {
				t.Errorf("message %q", s.Failure.Message)
			}
			if n := sends.Load(); n != int64(c.sends) {
				t.Errorf("the job was sent %d times, want %d", n, c.sends)
			}
			attempts, err := p.ledger.Attempts(t.Context(), "second")
			if err != nil || len(attempts) != 1 {
				t.Errorf("attempts are %+v, %v", attempts, err)
			}
			deaths.Store(0)
			p.submit("third", "m", "z")
			p.await("third", job.Done)
		})
	}
}

// With one sheep and two models, jobs of the loaded model go first.
func TestModelAffinity(t *testing.T) {
	p := newFixture(t)
	gate := make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		<-gate
		return echo(ctx, m, in)
	}
	p.start()
	for i := range 12 {
		p.submit(fmt.Sprintf("job-%d", i), []string{"one", "two"}[i%2], "x")
	}
	close(gate)
	for i := range 12 {
		p.await(fmt.Sprintf("job-%d", i), job.Done)
	}
	if n := p.runners.Starts("sheep"); n > 3 { // one, then two; the second may have been prepared before the others came
		t.Errorf("12 jobs of two models took %d starts of a runner", n)
	}
}

// A load that fails names the model's trouble and leaves the sheep usable.
func TestModelCannotBeLoaded(t *testing.T) {
	p := newFixture(t)
	p.load = func(_ context.Context, m job.Model) error {
		if m.Name == "bad" {
			return &runtime.LoadError{Message: "Cannot load it.", Class: errdefs.ErrNotFound}
		}
		return nil
	}
	p.start()
	p.submit("bad", "bad", "x")
	p.submit("good", "good", "x")
	if s := p.await("bad", job.Failed); s.Failure.Message != "Failed to start sheep for this job (Cannot load it.)" {
		t.Errorf("message %q", s.Failure.Message)
	}
	p.await("good", job.Done)
}

// A sheep that cannot be started for a reason that may pass is tried again; the
// job fails when it has not passed within the time that loading may take.
func TestSheepCannotBeStartedNow(t *testing.T) {
	p := newFixture(t)
	var tries atomic.Int32
	p.load = func(_ context.Context, m job.Model) error {
		if tries.Add(1) == 1 || m.Name == "never" {
			return &runtime.LoadError{Message: "Its port is in use.", Class: errdefs.ErrUnavailable}
		}
		return nil
	}
	p.start()
	p.submit("later", "later", "x")
	p.await("later", job.Done)
	if n := tries.Swap(0); n != 2 {
		t.Errorf("the sheep was started %d times", n)
	}
	id := ""
	p.inTime(time.Second, func(limit time.Duration) (problem string) {
		tries.Store(0)
		id = "never-" + limit.String()
		p.submit(id, "never", "x", func(r *job.Request) { r.Limits.LoadTimeout = &limit })
		if s := p.await(id, job.Failed); s.Failure.Message != "Failed to start sheep for this job (Its port is in use.)" {
			t.Errorf("message %q", s.Failure.Message)
		}
		n := tries.Load()
		if limit == time.Second && n > 6 {
			t.Errorf("the sheep was started %d times", n)
		}
		if n < 2 { // fewer on a busy machine
			problem = fmt.Sprintf("the sheep was started %d times", n)
		}
		return problem
	})
	rec, err := p.ledger.Get(t.Context(), job.ID(id))
	if err != nil || rec.Spent != 1 {
		t.Errorf("attempts spent: %d of %d, %v", rec.Spent, rec.Attempt, err)
	}
}

// A crashed runner is started again by itself, with its model.
func TestCrashedRunnerComesBack(t *testing.T) {
	p := newFixture(t)
	p.start()
	p.submit("job-1", "m", "x")
	p.await("job-1", job.Done)
	p.runners.Kill("sheep", runtime.Exit{Code: 1})
	for end := time.Now().Add(hang); p.runners.Starts("sheep") < 2 || p.runners.Alive() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the runner did not come back")
		}
	}
	p.submit("job-2", "m", "x")
	p.await("job-2", job.Done)
	if n := p.runners.Starts("sheep"); n != 2 {
		t.Errorf("%d starts", n)
	}
}

// Inputs that do not fit the budget are not staged ahead of their turn.
func TestStageBudget(t *testing.T) {
	p := newFixture(t)
	p.config.StageBudget = 10
	gate := make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "first" {
			<-gate
		}
		return echo(ctx, m, in)
	}
	refused := make(chan struct{}, 1)
	var admitted atomic.Bool
	p.store.hook(func() {
		p.store.admit = func(id job.ID, bytes int64, err error) {
			switch {
			case id == "big" && bytes == 100 && err != nil:
				refused <- struct{}{}
			case id == "big" && err == nil:
				admitted.Store(true)
			}
		}
	})
	p.start()
	p.submit("first", "m", "1")
	p.submit("big", "m", strings.Repeat("x", 100))
	select {
	case <-refused:
	case <-time.After(hang):
		t.Fatal("the second job was not looked at ahead of its turn")
	}
	if entries, _ := filepath.Glob(p.dir + "/data/.staging/*/big/inputs/*"); len(entries) > 0 {
		t.Errorf("staged in spite of the budget: %v", entries)
	}
	close(gate)
	p.await("big", job.Done)
	if !admitted.Load() {
		t.Error("the job was not staged when its turn had come")
	}
	if used, _ := p.core.StageBudget(); used != 0 {
		t.Errorf("%d bytes of the budget are still taken", used)
	}
}

// Ten thousand clients wait for jobs and cost storage nothing.
func TestManyWaiters(t *testing.T) {
	p := newFixture(t)
	gate := make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		<-gate
		return echo(ctx, m, in)
	}
	p.config.StatusDelay = time.Hour
	p.start()
	p.submit("job-1", "m", "x")
	p.submit("job-2", "m", "x")
	before := p.store.calls.Load()
	var waiters sync.WaitGroup
	var ended atomic.Int64
	for i := range 10_000 {
		waiters.Go(func() {
			s, err := p.core.Wait(t.Context(), job.ID(fmt.Sprintf("job-%d", 1+i%2)))
			if err == nil && s.State == job.Done {
				ended.Add(1)
			}
		})
	}
	close(gate)
	waiters.Wait()
	if ended.Load() != 10_000 {
		t.Errorf("%d of 10,000 waiters were told", ended.Load())
	}
	// What ending two jobs takes: stage of the second at most, two collects, two states.
	if calls := p.store.calls.Load() - before; calls > 6 {
		t.Errorf("storage was called %d times while 10,000 clients waited", calls)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	p := newFixture(t)
	p.handle = func(ctx context.Context, _ job.Model, _ messenger.Input) error { <-ctx.Done(); return ctx.Err() }
	p.start()
	p.submit("job-1", "m", "x")
	for _, limit := range []time.Duration{250 * time.Millisecond, 0} { // 0: over before it begins
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		s, err := p.core.Wait(ctx, "job-1")
		if !errors.Is(err, context.DeadlineExceeded) || s.State.Final() || s.State == "" {
			t.Errorf("Wait for %s: %+v, %v", limit, s, err)
		}
	}
	if err := p.core.Cancel(t.Context(), "job-1"); err != nil {
		t.Fatal(err)
	}
	p.await("job-1", job.Cancelled)
	if err := p.core.Cancel(t.Context(), "job-1"); !errors.Is(err, job.ErrEnded) {
		t.Errorf("second cancel: %v", err)
	}
}

func TestStopBeforeStart(t *testing.T) {
	p := newFixture(t)
	p.start()
	p.stop()
	core, err := shepherd.New(p.config)
	if err != nil {
		t.Fatal(err)
	}
	core.Stop(t.Context())
	core.Stop(t.Context())
	if err := core.Start(t.Context()); err == nil {
		t.Error("Start after Stop succeeded")
	}
}

// An earlier run's outputs do not mix with a later one's.
func TestRunAgain(t *testing.T) {
	p := newFixture(t)
	run := 0
	p.handle = func(_ context.Context, _ job.Model, in messenger.Input) error {
		run++
		return fake.WriteOutput(in, fmt.Sprintf("run-%d", run), nil)
	}
	p.start()
	p.submit("job-1", "m", "x")
	p.await("job-1", job.Done)
	p.submit("job-1", "m", "", func(r *job.Request) { r.Payload = nil })
	p.await("job-1", job.Done)
	files, err := storagetest.All(p.store.List(t.Context(), "job-1", job.OutputDir+"/"))
	if err != nil || len(files) != 1 || files[0].Name != "outputs/run-2" {
		t.Errorf("outputs are %v (%v)", files, err)
	}
}
