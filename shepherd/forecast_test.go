package shepherd_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/forecast"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/memory"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	storage "github.com/iterait/shepherd/storage/memory"
)

// traceModel is a model of the trace: how long it takes to load, and the median and the
// spread (of the logarithm) of its jobs' durations.
type traceModel struct {
	name   string
	load   time.Duration
	median time.Duration
	spread float64
	share  float64 // of the jobs
}

var traceModels = []traceModel{
	{"caption", 4 * time.Second, 3 * time.Second, 0.3, 0.35},
	{"segment", 12 * time.Second, 20 * time.Second, 0.5, 0.3},
	{"transcribe", 30 * time.Second, 60 * time.Second, 0.7, 0.2},
	{"train", 20 * time.Second, 300 * time.Second, 0.4, 0.05},
	{"report", time.Second, 2 * time.Second, 0.6, 0.1},
}

// traceCore runs f with a core on virtual time: fake sheep whose jobs take what their input
// says, and whose models load as long as the trace says.
func traceCore(t *testing.T, sheep int, f func(t *testing.T, core *shepherd.Shepherd, l *countingLedger)) {
	synctest.Test(t, func(t *testing.T) {
		runners := fake.NewRunners()
		l := &countingLedger{Ledger: memory.New(memory.Config{})}
		cfg := shepherd.Config{
			Node: "node", DataRoot: t.TempDir(), Ledger: l, Store: new(storage.Store), StageAhead: 1, MaxAttempts: 3,
			Log: slog.New(slog.DiscardHandler),
		}
		driver := fake.New(fake.Config{
			Runners: runners,
			Load: func(ctx context.Context, m job.Model) error {
				for _, known := range traceModels {
					if known.name == m.Name {
						time.Sleep(known.load)
					}
				}
				return ctx.Err()
			},
			Handle: func(ctx context.Context, _ job.Model, in messenger.Input) error {
				text, err := fake.ReadInput(in, job.DefaultInput)
				if err != nil {
					return err
				}
				d, err := time.ParseDuration(string(text))
				time.Sleep(d)
				return err
			},
		})
		for i := range sheep {
			name := fmt.Sprintf("sheep-%d", i)
			one, err := driver.NewSheep(name, func(any) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			cfg.Sheep = append(cfg.Sheep, shepherd.Member{Name: name, Type: "fake", Sheep: one})
		}
		core, err := shepherd.New(cfg)
		if err == nil {
			err = core.Start(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		defer core.Stop(context.Background())
		f(t, core, l)
	})
}

// countingLedger counts what is read of it.
type countingLedger struct {
	ledger.Ledger
	lists, attempts atomic.Int64
}

func (l *countingLedger) List(ctx context.Context, f ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error) {
	l.lists.Add(1)
	return l.Ledger.List(ctx, f, cursor, limit)
}

func (l *countingLedger) Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error) {
	l.attempts.Add(1)
	return l.Ledger.Attempts(ctx, id)
}

// submitFor submits a job that runs for d.
func submitFor(t *testing.T, core *shepherd.Shepherd, id, model string, d time.Duration, more ...func(*job.Request)) {
	t.Helper()
	r := job.Request{ID: job.ID(id), Model: job.Model{Name: model, Version: "v1"}, Payload: []byte(d.String())}
	for _, f := range more {
		f(&r)
	}
	if err := core.Submit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func viewOf(t *testing.T, core *shepherd.Shepherd, id job.ID) job.View {
	t.Helper()
	v, err := core.View(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The expected start of each job, as it is told when the job is submitted, is compared with
// when it did start: of traces in which a model's jobs take about the same, and of some whose
// jobs differ so much that a third of a wait is chance. How much is chance is seen beside it,
// by the same forecast made with the distributions that the durations are drawn from.
func TestExpectedStartOfATrace(t *testing.T) {
	for _, c := range []struct {
		name   string
		spread float64 // of all models, as a part of their own
		median float64 // error that is allowed
	}{{"alike", 0.3, 0.25}, {"various", 1, 0.4}} {
		t.Run(c.name, func(t *testing.T) {
			var all outcome
			for seed := range uint64(3) {
				traceStarts(t, seed+1, c.spread, &all)
			}
			if len(all.errors) < traceJobs {
				t.Fatalf("only %d of %d jobs waited and had an expected start", len(all.errors), 3*traceJobs)
			}
			slices.Sort(all.errors)
			slices.Sort(all.knowing)
			median, least := all.errors[len(all.errors)/2], all.knowing[len(all.knowing)/2]
			share := float64(all.within) / float64(len(all.errors))
			t.Logf("of %d jobs that waited: the median error of the expected start is %.0f %% of the wait, nine in ten are below %.0f %%; %.0f %% started within the range; with the distributions known the median error is %.0f %%",
				len(all.errors), 100*median, 100*all.errors[len(all.errors)*9/10], 100*share, 100*least)
			if median >= c.median || median >= 1.2*least {
				t.Errorf("the median error is %.0f %%, not below %.0f %% and a fifth more than with the distributions known", 100*median, 100*c.median)
			}
			if share < 0.5 {
				t.Errorf("only %.0f %% started within the range that was told", 100*share)
			}
		})
	}
}

const traceJobs = 300

// outcome is how good the expected starts of traces were: the errors as parts of the wait,
// sorted or not, those of a forecast that knows the distributions, and how many jobs started
// within the range.
type outcome struct {
	errors, knowing []float64
	within          int
}

// distributions is a history as long as there is one, of a trace's durations without chance.
func distributions(spread float64) *forecast.History {
	h := new(forecast.History)
	for _, m := range traceModels {
		for i := range forecast.Kept {
			q := (float64(i) + 0.5) / forecast.Kept
			deviation := math.Sqrt2 * math.Erfinv(2*q-1)
			h.Add(job.Model{Name: m.name, Version: "v1"}, time.Duration(float64(m.median)*math.Exp(spread*m.spread*deviation)), m.load)
		}
	}
	return h
}

// traceStarts plays a trace and adds its outcome.
func traceStarts(t *testing.T, seed uint64, spread float64, out *outcome) {
	const learning, sheep = 60, 4
	type told struct {
		at            time.Time
		start, knower job.Estimate
	}
	traceCore(t, sheep, func(t *testing.T, core *shepherd.Shepherd, _ *countingLedger) {
		random := rand.New(rand.NewPCG(seed, 2))
		known := distributions(spread)
		expected := make(map[job.ID]told)
		for i := range traceJobs {
			// Bursts, with pauses in which the queue becomes shorter.
			pause := time.Duration(random.ExpFloat64() * float64(8*time.Second))
			if i%70 == 69 {
				pause += 6 * time.Minute
			}
			time.Sleep(pause)
			at, m := random.Float64(), 0
			for ; at > traceModels[m].share; m++ {
				at -= traceModels[m].share
			}
			model := traceModels[m]
			id := fmt.Sprintf("job-%d", i)
			submitFor(t, core, id, model.name, time.Duration(float64(model.median)*math.Exp(spread*model.spread*random.NormFloat64())), func(r *job.Request) {
				if random.IntN(20) == 0 {
					r.Priority = 1
				}
			})
			known.Arrived(job.Model{Name: model.name, Version: "v1"}, time.Now())
			time.Sleep(time.Millisecond)
			synctest.Wait()
			v := viewOf(t, core, job.ID(id))
			if by, ok := core.ForecastBy(known).Starts[v.ID]; v.ExpectedStart != nil && ok && i >= learning {
				expected[v.ID] = told{time.Now(), *v.ExpectedStart, by}
			}
		}
		for i := range traceJobs {
			id := job.ID(fmt.Sprintf("job-%d", i))
			if _, err := core.Wait(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			e, ok := expected[id]
			rec := viewOf(t, core, id)
			waited := rec.StartedAt.Sub(e.at)
			if !ok || waited < 10*time.Second { // it starts at once, so to speak
				continue
			}
			off := func(e job.Estimate) float64 {
				return math.Abs(float64(e.Likely.Sub(rec.StartedAt))) / float64(waited)
			}
			out.errors, out.knowing = append(out.errors, off(e.start)), append(out.knowing, off(e.knower))
			if !rec.StartedAt.Before(e.start.Earliest) && !rec.StartedAt.After(e.start.Latest) {
				out.within++
			}
		}
	})
}

// Nothing is read of the ledger while nobody asks, nor for asking again while nothing
// changes; a core that was started again knows from the ledger what jobs took.
func TestForecastReadsLittle(t *testing.T) {
	traceCore(t, 1, func(t *testing.T, core *shepherd.Shepherd, l *countingLedger) {
		for i := range 40 {
			submitFor(t, core, fmt.Sprintf("past-%d", i), "segment", 20*time.Second)
		}
		for i := range 40 {
			if _, err := core.Wait(t.Context(), job.ID(fmt.Sprintf("past-%d", i))); err != nil {
				t.Fatal(err)
			}
		}
		if n := l.lists.Load(); n != 0 {
			t.Errorf("the ledger was listed %d times though nobody asked", n)
		}
		submitFor(t, core, "running", "segment", 20*time.Second)
		submitFor(t, core, "waiting", "segment", 20*time.Second)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		v := viewOf(t, core, "waiting")
		if v.ExpectedStart == nil {
			t.Fatal("no start is expected")
		}
		if in := time.Until(v.ExpectedStart.Likely); in < 12*time.Second || in > 18*time.Second {
			t.Errorf("it is expected to start in %v, not in about 15 s", in)
		}
		e, err := core.Explain(t.Context(), "waiting", "")
		if err != nil || !strings.Contains(e.String(), "expected to start in about 15s") && !strings.Contains(e.String(), "expected to start in about 14s") {
			t.Errorf("the explanation is %v, %v", e, err)
		}
		lists := l.lists.Load()
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			viewOf(t, core, "waiting")
		}
		if n := l.lists.Load(); n != lists {
			t.Errorf("the ledger was listed %d times more though nothing changed", n-lists)
		}
		if v := viewOf(t, core, "running"); v.ExpectedEnd == nil || time.Until(v.ExpectedEnd.Likely) > 10*time.Second {
			t.Errorf("the job that runs is expected to end at %+v", v.ExpectedEnd)
		}
		another, err := shepherd.New(shepherd.Config{Node: "other", DataRoot: t.TempDir(), Ledger: l, Store: new(storage.Store), MaxAttempts: 3, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		attempts := l.attempts.Load()
		usual, ok, err := another.Usual(t.Context(), job.Model{Name: "segment", Version: "v1"})
		if err != nil || !ok || usual.Jobs != 16 || usual.Likely != 20*time.Second {
			t.Errorf("another core knows %+v, %v, %v", usual, ok, err)
		}
		if n := l.attempts.Load() - attempts; n > 16 {
			t.Errorf("the attempts of %d jobs were read", n)
		}
	})
}

// What is known of a job's model decides what is said of it.
func TestExpectedStartIsUnknown(t *testing.T) {
	traceCore(t, 1, func(t *testing.T, core *shepherd.Shepherd, _ *countingLedger) {
		submitFor(t, core, "first", "segment", time.Minute)
		submitFor(t, core, "second", "segment", time.Minute)
		submitFor(t, core, "third", "segment", time.Minute, func(r *job.Request) { r.NotBefore = time.Now().Add(time.Hour).UTC() })
		synctest.Wait()
		for _, id := range []job.ID{"first", "second", "third"} {
			if v := viewOf(t, core, id); v.ExpectedStart != nil || v.ExpectedEnd != nil {
				t.Errorf("%s is expected to start %+v and end %+v though nothing is known", id, v.ExpectedStart, v.ExpectedEnd)
			}
		}
		if _, err := core.Wait(t.Context(), "second"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		v := viewOf(t, core, "third")
		if v.ExpectedStart == nil || !v.ExpectedStart.Likely.Equal(v.NotBefore) {
			t.Errorf("a job that may not start before %v is expected to start %+v", v.NotBefore, v.ExpectedStart)
		}
		if err := core.Cancel(t.Context(), "third"); err != nil {
			t.Fatal(err)
		}
		if v := viewOf(t, core, "third"); v.ExpectedStart != nil {
			t.Error("a cancelled job is expected to start")
		}
	})
}

// A job of high priority is expected before older ones, one of the loaded model while its
// turn lasts, and one that no sheep can run not at all.
func TestExpectedStartByOrder(t *testing.T) {
	traceCore(t, 1, func(t *testing.T, core *shepherd.Shepherd, _ *countingLedger) {
		for _, model := range []string{"segment", "caption"} {
			submitFor(t, core, "past-"+model, model, 20*time.Second)
			if _, err := core.Wait(t.Context(), job.ID("past-"+model)); err != nil {
				t.Fatal(err)
			}
		}
		submitFor(t, core, "running", "caption", 20*time.Second)
		synctest.Wait()
		submitFor(t, core, "prepared", "caption", 20*time.Second)
		synctest.Wait()
		submitFor(t, core, "old", "segment", 20*time.Second)
		submitFor(t, core, "loaded", "caption", 20*time.Second)
		submitFor(t, core, "urgent", "segment", 20*time.Second, func(r *job.Request) { r.Priority = 5 })
		time.Sleep(time.Second)
		synctest.Wait()
		ids := []job.ID{"old", "loaded", "urgent", "prepared"}
		starts := make(map[job.ID]time.Time)
		for _, id := range ids {
			v := viewOf(t, core, id)
			if v.ExpectedStart == nil {
				t.Fatalf("%s is not expected to start", id)
			}
			starts[id] = v.ExpectedStart.Likely
		}
		slices.SortFunc(ids, func(a, b job.ID) int { return cmp.Compare(starts[a].UnixNano(), starts[b].UnixNano()) })
		got := slices.Clone(ids)
		for _, id := range ids {
			if _, err := core.Wait(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		slices.SortFunc(ids, func(a, b job.ID) int {
			return viewOf(t, core, a).StartedAt.Compare(viewOf(t, core, b).StartedAt)
		})
		if !slices.Equal(got, ids) {
			t.Errorf("the order expected was %v, and they started in the order %v", got, ids)
		}
	})
}
