package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
)

// witness writes down what it is told, a line each.
type witness struct {
	mu       sync.Mutex
	lines    []string
	passages []shepherd.PhaseResult
	told     chan struct{} // one for each line, for who waits
}

func newWitness() *witness { return &witness{told: make(chan struct{}, 1000)} }

func (w *witness) note(format string, args ...any) {
	w.mu.Lock()
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
	w.mu.Unlock()
	w.told <- struct{}{}
}

func (w *witness) PhaseEnded(p shepherd.PhaseResult) {
	w.mu.Lock()
	w.passages = append(w.passages, p)
	w.mu.Unlock()
	result := "ok"
	if p.Err != nil {
		result = "error"
	}
	w.note("%s %s %s %s", p.Phase, p.Job, p.Model, result)
}
func (w *witness) Ended(sheep string, s job.State)             { w.note("ended %s %s", sheep, s) }
func (w *witness) Returned(sheep string)                       { w.note("returned %s", sheep) }
func (w *witness) Runner(sheep string, e shepherd.RunnerEvent) { w.note("runner %s %s", sheep, e) }
func (w *witness) Waited(sheep string, gap time.Duration)      { w.note("waited %s %v", sheep, gap > 0) }

// count is how often the line was noted.
func (w *witness) count(line string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, l := range w.lines {
		if l == line {
			n++
		}
	}
	return n
}

// await waits until each line was noted.
func (w *witness) await(t *testing.T, lines ...string) {
	t.Helper()
	late := time.After(hang)
	for {
		missing := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return w.count(l) > 0 })
		if len(missing) == 0 {
			return
		}
		select {
		case <-w.told:
		case <-late:
			w.mu.Lock()
			defer w.mu.Unlock()
			t.Fatalf("never told of %q; told of\n%s", missing, strings.Join(w.lines, "\n"))
		}
	}
}

func TestObserver(t *testing.T) {
	p := newFixture(t)
	w := newWitness()
	p.config.Observer = shepherd.Observers{w}
	hangs := make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		switch in.JobID {
		case "fails":
			return errors.New("no")
		case "crashes":
			return &runtime.Exit{Code: 3}
		case "hangs":
			close(hangs)
			<-ctx.Done()
			return ctx.Err()
		}
		return echo(ctx, m, in)
	}
	p.load = func(_ context.Context, m job.Model) error {
		if m.Name == "missing" {
			return &runtime.LoadError{Message: "missing", Class: errors.New("not found")}
		}
		return nil
	}
	p.start()

	p.submit("first", "a", "x")
	p.await("first", job.Done)
	w.await(t, "queued first a:v1 ok", "stage first a:v1 ok", "pull first a:v1 ok", "load first a:v1 ok",
		"run first a:v1 ok", "collect first a:v1 ok", "ended sheep done", "runner sheep started")

	p.submit("other", "b", "x")
	p.await("other", job.Done)
	w.await(t, "runner sheep switched", "pull other b:v1 ok", "load other b:v1 ok", "collect other b:v1 ok")

	p.submit("fails", "b", "x")
	p.await("fails", job.Failed)
	w.await(t, "run fails b:v1 error", "ended sheep failed", "collect fails b:v1 ok")
	if n := w.count("pull fails b:v1 ok"); n != 0 {
		t.Error("told of a pull for a model that was loaded")
	}

	p.submit("crashes", "b", "x")
	p.await("crashes", job.Failed)
	w.await(t, "run crashes b:v1 error", "runner sheep crashed", "runner sheep revived", "pull  b:v1 ok", "load  b:v1 ok")

	p.submit("unloadable", "missing", "x")
	p.await("unloadable", job.Failed)
	w.await(t, "pull unloadable missing:v1 error")

	p.submit("hangs", "a", "x")
	w.await(t, "load hangs a:v1 ok")
	receive(t, hangs, "the job does not begin")
	if err := p.core.Cancel(t.Context(), "hangs"); err != nil {
		t.Fatal(err)
	}
	w.await(t, "ended sheep cancelled", "run hangs a:v1 error")

	p.stop()
	for _, passage := range w.passages {
		if passage.Began.IsZero() || passage.Ended.Before(passage.Began) || passage.Sheep != "sheep" {
			t.Errorf("%+v", passage)
		}
	}
}

// A runner that had its next job at hand is seen to wait between the two; one
// whose next job came later is not.
func TestObserverWaits(t *testing.T) {
	p := newFixture(t)
	w := newWitness()
	p.config.Observer = w
	begun, release := make(chan struct{}), make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "second" {
			close(begun)
			<-release
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("first", "m", "x")
	p.await("first", job.Done)
	p.submit("second", "m", "x")
	receive(t, begun, "the job does not begin")
	if n := w.count("waited sheep true"); n != 0 {
		t.Errorf("the runner had no job at hand, but is told to have waited %d times", n)
	}
	p.submit("third", "m", "x")
	w.await(t, "stage third m:v1 ok")
	close(release)
	p.await("third", job.Done)
	w.await(t, "waited sheep true")
	p.stop()
	w.await(t, "collect third m:v1 ok")
}

// The trace that a client sends is kept with the job and told to the runner, by
// the job's directory and by the context that the runner is started with.
func TestTraceIsHandedOn(t *testing.T) {
	p := newFixture(t)
	trace := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", State: "a=1"}
	var started []job.Trace
	p.wrap = func(s runtime.Sheep) runtime.Sheep { return startWatcher{s, &started} }
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		text, err := os.ReadFile(filepath.Join(in.IODataRoot, string(in.JobID), job.TraceFile))
		if in.JobID == "untraced" {
			if !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("a trace file is there: %s, %v", text, err)
			}
			return echo(ctx, m, in)
		}
		if err != nil {
			return err
		}
		return fakeOutput(in, text)
	}
	p.start()
	p.submit("traced", "m", "x", func(r *job.Request) { r.Trace = trace })
	p.await("traced", job.Done)
	if got := p.output("traced"); got != trace.Parent+"\na=1\n" {
		t.Errorf("the runner was told %q", got)
	}
	p.submit("untraced", "m", "x")
	p.await("untraced", job.Done)
	rec, err := p.ledger.Get(t.Context(), "traced")
	if err != nil || rec.Trace != trace {
		t.Errorf("kept %+v, %v", rec.Trace, err)
	}
	p.stop()
	if len(started) != 1 || started[0] != trace {
		t.Errorf("runners were started with %+v", started)
	}
}

type startWatcher struct {
	runtime.Sheep
	traces *[]job.Trace
}

func (s startWatcher) Run(ctx context.Context, observe runtime.Observer) error {
	*s.traces = append(*s.traces, runtime.TraceOf(ctx))
	return s.Sheep.Run(ctx, observe)
}

func fakeOutput(in messenger.Input, data []byte) error {
	return os.WriteFile(filepath.Join(in.IODataRoot, string(in.JobID), job.OutputDir, job.DefaultOutput), data, 0o644)
}

// Nobody looks: nothing is allocated for it.
func TestUnobservedIsFree(t *testing.T) {
	var o shepherd.Observer = shepherd.NopObserver{}
	var tr shepherd.Tracer = shepherd.NopTracer{}
	r := job.Request{ID: "x"}
	passage := shepherd.PhaseResult{Phase: shepherd.PhaseRun, Job: "x"}
	n := testing.AllocsPerRun(1000, func() {
		trace, done := tr.Submit(r)
		done(nil)
		_ = tr.Run("x", 1, 1, trace)
		o.PhaseEnded(passage)
		o.Ended("sheep", job.Done)
		o.Waited("sheep", time.Second)
	})
	if n != 0 {
		t.Errorf("%v allocations a job", n)
	}
}
