// Package runtimetest is the conformance suite of package runtime for all sheep types. Run
// runs the suite; RunnerMain is a runner that executes the script in a job's input.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// Sheep is the name of the suite's sheep.
const Sheep = "dolly"

// Harness is the environment of one test.
type Harness struct {
	// NewDriver makes a driver, as each start of a daemon does; all drivers of a Harness
	// share its state.
	NewDriver func(t *testing.T) runtime.Driver
	// Decode is the configuration of a sheep whose runner is RunnerMain.
	Decode func(into any) error
	// AddModel adds a model whose config.yaml is the script.
	AddModel func(t *testing.T, m job.Model, script string)
	// DataRoot is the io_data_root of the sheep.
	DataRoot string
	// Init is true if runners are the first process of a PID namespace, so that signals
	// that they send themselves do not end them.
	Init bool
	// Gone reports whether the runner with a process id has ended; nil reads /proc.
	Gone func(pid int) bool
	// Grace is the time between TERM and KILL when a runner is stopped.
	Grace time.Duration
	// Leftovers lists what is left of runners: processes, sockets, directories. It is
	// called when there should be nothing.
	Leftovers func(t *testing.T) []string
}

// hang is the time limit after which a test that hangs fails.
const hang = 60 * time.Second

// Run runs the suite; make makes a Harness for each test.
func Run(t *testing.T, make func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, w *world)
	}{
		{"a job's round trip", testRoundTrip},
		{"many jobs and unacknowledged answers", testKeptAnswers},
		{"error answers", testErrorAnswer},
		{"messages that are not the answer", testNoise},
		{"a model that is missing", testMissingModel},
		{"a model outside", testOutsideModel},
		{"Run before Load", testRunBeforeLoad},
		{"a runner that ends by itself", testExits},
		{"a runner that cannot start", testCrashAtStart},
		{"a runner that binds late", testLateBind},
		{"a runner that speaks no ZeroMQ", testNonsense},
		{"an answer just before the end", testLastAnswer},
		{"a runner that drops its connection", testConnectionLost},
		{"a runner that ignores TERM", testIgnoresTERM},
		{"forks that outlive the runner", testForks},
		{"another model", testSwitchModel},
		{"a runner that gets a trace", testTrace},
		{"contexts that end", testContexts},
		{"Detach and Recover while idle", testDetachIdle},
		{"Detach and Recover with a job", testDetachWithJob},
		{"answers that wait for Recover", testDetachAnswered},
		{"a runner that ends without a daemon", testDetachExit},
		{"Recover with nothing to adopt", testRecoverNothing},
		{"Close without Run and twice", testClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{t: t, h: make(t)}
			c.test(t, w)
			for _, left := range w.h.Leftovers(t) {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

var (
	good        = job.Model{Name: "good", Version: "v1"}
	unversioned = job.Model{Name: "group/unversioned"}
)

// world is a Harness with the helpers of the tests.
type world struct {
	t *testing.T
	h Harness
	n int
}

// daemon is one start of a daemon with the sheep.
type daemon struct {
	*world
	sheep runtime.Sheep
	trace job.Trace // passed to Run
}

func (w *world) daemon() *daemon {
	w.t.Helper()
	s, err := w.h.NewDriver(w.t).NewSheep(Sheep, w.h.Decode)
	if err != nil {
		w.t.Fatal(err)
	}
	d := &daemon{world: w, sheep: s}
	return d
}

func (d *daemon) close() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	for range 2 {
		if err := d.sheep.Close(ctx); err != nil {
			d.t.Error(err)
		}
	}
}

func (d *daemon) load(m job.Model) {
	d.t.Helper()
	if err := d.sheep.Load(d.ctx(), m, runtime.Discard); err != nil {
		d.t.Fatalf("load %s: %v", m, err)
	}
}

func (d *daemon) recover() *runtime.Recovered {
	d.t.Helper()
	found, err := d.sheep.(runtime.Recoverer).Recover(d.ctx())
	if err != nil {
		d.t.Fatalf("recover: %v", err)
	}
	return found
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	w.t.Cleanup(cancel)
	return ctx
}

// life is one call of Run.
type life struct {
	*daemon
	conn      messenger.Conn
	pid       int
	stop      context.CancelFunc
	events    chan runtime.Event
	connected chan struct{}
	begun     chan struct{} // closed with the first event, or when Run has returned
	done      chan error
}

// run calls Run and waits for the Starting event.
func (d *daemon) run() *life {
	d.t.Helper()
	l := d.launch()
	select {
	case <-l.begun:
	case <-time.After(hang):
		d.t.Fatal("the runner does not start")
	}
	select {
	case e := <-l.events:
		if e.Stage != runtime.Starting {
			d.t.Fatalf("first event %+v, want %s", e, runtime.Starting)
		}
		l.pid = e.PID
		l.conn = d.sheep.Conn()
	default:
		d.t.Fatalf("Run returned %v before the runner started", <-l.done)
	}
	return l
}

func (d *daemon) launch() *life {
	ctx, cancel := context.WithCancel(runtime.WithTrace(context.Background(), d.trace))
	l := &life{daemon: d, stop: cancel, events: make(chan runtime.Event, 100), connected: make(chan struct{}), begun: make(chan struct{}), done: make(chan error, 1)}
	begun := sync.OnceFunc(func() { close(l.begun) })
	go func() {
		l.done <- d.sheep.Run(ctx, func(e runtime.Event) {
			if e.Stage == runtime.Connected {
				close(l.connected)
			}
			l.events <- e
			begun()
		})
		begun()
	}()
	d.t.Cleanup(cancel)
	return l
}

func (l *life) awaitConnected() {
	l.t.Helper()
	select {
	case <-l.connected:
	case err := <-l.done:
		l.t.Fatalf("Run returned %v before the runner was connected", err)
	case <-time.After(hang):
		l.t.Fatal("the runner is not connected")
	}
}

// wait waits for Run to return.
func (l *life) wait() error {
	l.t.Helper()
	select {
	case err := <-l.done:
		if err == nil {
			l.t.Fatal("Run returned nil")
		}
		return err
	case <-time.After(hang):
		l.t.Fatal("Run does not return")
	}
	return nil
}

func (l *life) exit() *runtime.Exit {
	l.t.Helper()
	err := l.wait()
	var exit *runtime.Exit
	if !errors.As(err, &exit) {
		l.t.Fatalf("Run returned %T %v, want *runtime.Exit", err, err)
	}
	return exit
}

// stopRunner stops the runner.
func (l *life) stopRunner() {
	l.t.Helper()
	l.stop()
	if exit := l.exit(); !exit.Stopped {
		l.t.Errorf("stopped runner: %+v, want Stopped", exit)
	}
	if err := l.conn.Send(l.ctx(), messenger.Input{JobID: "late"}); !errors.Is(err, messenger.ErrClosed) {
		l.t.Errorf("Send after the end: %v, want %v", err, messenger.ErrClosed)
	}
}

// prepare creates a job whose input is the script.
func (w *world) prepare(script string) job.ID {
	w.t.Helper()
	w.n++
	id := job.ID(fmt.Sprintf("job-%d", w.n))
	for _, dir := range []string{job.InputDir, job.OutputDir} {
		if err := os.MkdirAll(filepath.Join(w.h.DataRoot, string(id), dir), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(w.h.DataRoot, string(id), job.InputDir, job.DefaultInput), []byte(script), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (l *life) send(id job.ID) {
	l.t.Helper()
	if err := l.conn.Send(l.ctx(), messenger.Input{JobID: id, IODataRoot: l.h.DataRoot}); err != nil {
		l.t.Fatalf("send job %s: %v", id, err)
	}
}

// recv waits for the answer to the job.
func (l *life) recv(id job.ID) *job.Failure {
	l.t.Helper()
	a, err := l.conn.Recv(l.ctx())
	if err != nil {
		l.t.Fatalf("receive the answer to %s: %v", id, err)
	}
	if a.JobID != id {
		l.t.Fatalf("received the answer to %s, want %s", a.JobID, id)
	}
	return a.Failure
}

func (l *life) ack(id job.ID) {
	l.t.Helper()
	if err := l.conn.Ack(l.ctx(), id); err != nil {
		l.t.Fatalf("acknowledge %s: %v", id, err)
	}
}

// do runs a job, expects that it is done, and returns its output: the runner's random
// number and how many jobs it has processed.
func (l *life) do(script string) (who, jobs int) {
	l.t.Helper()
	id := l.prepare(script)
	l.send(id)
	if failure := l.recv(id); failure != nil {
		l.t.Fatalf("job %s failed: %v", id, failure)
	}
	l.ack(id)
	return l.output(id)
}

func (w *world) output(id job.ID) (who, jobs int) {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.h.DataRoot, string(id), job.OutputDir, job.DefaultOutput))
	if err != nil {
		w.t.Fatal(err)
	}
	first, second, _ := strings.Cut(string(data), " ")
	who, err1 := strconv.Atoi(first)
	jobs, err2 := strconv.Atoi(second)
	if err := errors.Join(err1, err2); err != nil {
		w.t.Fatalf("output %q: %v", data, err)
	}
	return who, jobs
}

// up loads the good model and starts a runner with it.
func (w *world) up() *life {
	w.t.Helper()
	w.h.AddModel(w.t, good, "")
	d := w.daemon()
	d.load(good)
	return d.run()
}

func wantLoadError(t *testing.T, err error, class error, message string) {
	t.Helper()
	var load *runtime.LoadError
	if !errors.As(err, &load) {
		t.Fatalf("got %T %v, want *runtime.LoadError", err, err)
	}
	if !errors.Is(err, class) {
		t.Errorf("class of %q is %v, want %v", err, load.Class, class)
	}
	if !strings.Contains(err.Error(), message) {
		t.Errorf("got %q, want it to say %q", err, message)
	}
}

func testMissingModel(t *testing.T, w *world) {
	d := w.daemon()
	defer d.close()
	err := d.sheep.Load(d.ctx(), job.Model{Name: "no-such-model", Version: "v9"}, runtime.Discard)
	wantLoadError(t, err, errdefs.ErrNotFound, "no-such-model:v9")
}

func testOutsideModel(t *testing.T, w *world) {
	d := w.daemon()
	defer d.close()
	for _, m := range []job.Model{{Name: "../outside", Version: "v1"}, {Name: "a", Version: "../../b"}, {}} {
		wantLoadError(t, d.sheep.Load(d.ctx(), m, runtime.Discard), errdefs.ErrInvalidArgument, m.Name)
	}
}

func testRunBeforeLoad(t *testing.T, w *world) {
	d := w.daemon()
	defer d.close()
	var load *runtime.LoadError
	if err := d.sheep.Run(d.ctx(), runtime.Discard); !errors.As(err, &load) {
		t.Errorf("got %v, want *runtime.LoadError", err)
	}
}

func testClose(t *testing.T, w *world) {
	d := w.daemon()
	d.sheep.Detach()
	d.close()
	d.sheep.Detach()
}
