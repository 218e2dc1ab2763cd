package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage/memory"
)

// trace is a set of jobs that are all submitted before the sheep start. Their models are mixed,
// so that a sheep that runs them by age loads a model for each.
type trace struct {
	jobs, models, sheep int
	load, run           time.Duration
}

// designed is the trace for which the design gives the effect of turns.
var designed = trace{jobs: 5000, models: 20, sheep: 4, load: 30 * time.Second, run: 2 * time.Second}

// outcome is the result of a policy for a trace.
type outcome struct {
	makespan, longestWait time.Duration
	loads                 int
}

// bound is the minimum time of any policy: all sheep run jobs all the time.
func (tr trace) bound() time.Duration {
	return time.Duration(tr.jobs) * tr.run / time.Duration(tr.sheep)
}

// order returns the models of the jobs, oldest first.
func (tr trace) order() []int {
	random := rand.New(rand.NewPCG(1, 2))
	order := make([]int, tr.jobs)
	for i := range order {
		order[i] = random.IntN(tr.models)
	}
	return order
}

// firstInFirstOut returns the outcome of always running the oldest job.
func (tr trace) firstInFirstOut() outcome {
	var out outcome
	free, loaded := make([]time.Duration, tr.sheep), make([]int, tr.sheep)
	for i := range loaded {
		loaded[i] = -1
	}
	for _, model := range tr.order() {
		next := 0
		for i := range free {
			if free[i] < free[next] {
				next = i
			}
		}
		out.longestWait = max(out.longestWait, free[next])
		if loaded[next] != model {
			free[next] += tr.load
			loaded[next] = model
			out.loads++
		}
		free[next] += tr.run
		out.makespan = max(out.makespan, free[next])
	}
	return out
}

// play runs the trace with the real core and the real ledger on virtual time.
func (tr trace) play(t testing.TB) outcome {
	t.Helper()
	var out outcome
	dir := tempDir(t)
	bubble(t, func() {
		led, err := sqlite.Open(context.Background(), sqlite.Config{Path: dir + "/ledger.db"})
		check(t, err)
		store := new(memory.Store)
		runners := fake.NewRunners()
		driver := fake.New(fake.Config{
			Runners: runners,
			Load:    func(ctx context.Context, _ job.Model) error { return rest(ctx, tr.load) },
			Handle:  func(ctx context.Context, _ job.Model, _ messenger.Input) error { return rest(ctx, tr.run) },
		})
		cfg := shepherd.Config{
			Node: "node", DataRoot: dir + "/data", Ledger: led, Store: store, StageAhead: 1, MaxAttempts: 3,
			Log: slog.New(slog.DiscardHandler),
		}
		for i := range tr.sheep {
			name := fmt.Sprintf("sheep-%d", i)
			sheep, err := driver.NewSheep(name, func(any) error { return nil })
			check(t, err)
			cfg.Sheep = append(cfg.Sheep, shepherd.Member{Name: name, Type: "fake", Sheep: sheep})
		}
		order := tr.order()
		for from := 0; from < len(order); from += 250 { // together, so that they share commits
			var creating sync.WaitGroup
			for i := from; i < min(from+250, len(order)); i++ {
				id := job.ID(fmt.Sprintf("job-%d", i))
				check(t, store.Init(context.Background(), id, []byte("x")))
				creating.Go(func() {
					_, err := led.Create(context.Background(), job.Record{ID: id, Model: job.Model{Name: fmt.Sprintf("m%d", order[i]), Version: "v1"}})
					if err != nil {
						t.Error(err)
					}
				})
			}
			creating.Wait()
		}
		core, err := shepherd.New(cfg)
		check(t, err)
		began := time.Now()
		check(t, core.Start(context.Background()))
		for i := range order {
			status, err := core.Wait(context.Background(), job.ID(fmt.Sprintf("job-%d", i)))
			check(t, err)
			if status.State != job.Done {
				t.Errorf("job %d is %s: %v", i, status.State, status.Failure)
			}
			out.makespan = max(out.makespan, status.FinishedAt.Sub(began))
			out.longestWait = max(out.longestWait, status.StartedAt.Sub(began))
		}
		for _, m := range cfg.Sheep {
			out.loads += runners.Starts(m.Name)
		}
		core.Stop(context.Background())
		check(t, led.Close())
	})
	return out
}

// TestTurns plays the trace of the design: the makespan is at most 1.25 times the minimum of any
// policy, and no job waits longer than the longest wait with first-in-first-out.
func TestTurns(t *testing.T) {
	tr := designed
	if raceEnabled {
		tr.jobs = 1000
	}
	got, fifo := tr.play(t), tr.firstInFirstOut()
	ratio := float64(got.makespan) / float64(tr.bound())
	t.Logf("%d jobs: makespan %s, %.3f of the bound, %d loads, longest wait %s; first-in-first-out: %s, %d loads, %s",
		tr.jobs, got.makespan.Round(time.Second), ratio, got.loads, got.longestWait.Round(time.Second), fifo.makespan, fifo.loads, fifo.longestWait)
	if limit := 1.25; ratio > limit && !raceEnabled {
		t.Errorf("the makespan is %.3f times the bound, more than %.2f", ratio, limit)
	}
	if got.longestWait > fifo.longestWait || got.makespan > fifo.makespan {
		t.Error("first-in-first-out does better")
	}
}

// BenchmarkTurns reports the values that TestTurns checks.
func BenchmarkTurns(b *testing.B) {
	for b.Loop() {
		got, fifo := designed.play(b), designed.firstInFirstOut()
		b.ReportMetric(float64(got.makespan)/float64(designed.bound()), "makespan/bound")
		b.ReportMetric(float64(fifo.makespan)/float64(designed.bound()), "fifo-makespan/bound")
		b.ReportMetric(float64(got.loads), "loads")
		b.ReportMetric(got.longestWait.Seconds(), "longest-wait-s")
		b.ReportMetric(fifo.longestWait.Seconds(), "fifo-longest-wait-s")
	}
}
