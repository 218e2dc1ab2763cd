package shepherd_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/memory"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
	memstore "github.com/iterait/shepherd/storage/memory"
)

// timeline has the steps of jobs and the time of each since its start.
type timeline struct {
	mu    sync.Mutex
	began time.Time
	steps []string
	at    map[string]time.Duration
}

func newTimeline() *timeline {
	return &timeline{began: time.Now(), at: make(map[string]time.Duration)}
}

func (l *timeline) reached(step string, id job.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	step += " " + string(id)
	l.steps = append(l.steps, step)
	l.at[step] = time.Since(l.began)
}

// inOrder fails the test unless the steps were reached in that order.
func (l *timeline) inOrder(t *testing.T, steps ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.steps
	for _, step := range steps {
		for len(rest) > 0 && rest[0] != step {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			t.Errorf("the steps were %s, want %s in this order", strings.Join(l.steps, ", "), strings.Join(steps, ", "))
			return
		}
	}
}

// count returns how often the step was reached.
func (l *timeline) count(step string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, reached := range l.steps {
		if reached == step {
			n++
		}
	}
	return n
}

// slowStart is a ledger in which a start takes a while. Before it happens, before is called.
type slowStart struct {
	ledger.Ledger
	timeline *timeline
	takes    time.Duration
	before   func(ctx context.Context, l ledger.Ledger, id job.ID, token ledger.Token) error
}

func (l *slowStart) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	time.Sleep(l.takes)
	if l.before != nil {
		if err := l.before(ctx, l.Ledger, id, token); err != nil {
			return job.Record{}, err
		}
	}
	rec, err := l.Ledger.Start(ctx, id, token)
	l.timeline.reached("start", id)
	return rec, err
}

func (l *slowStart) Finish(ctx context.Context, id job.ID, token ledger.Token, outcome ledger.Outcome) (job.Record, error) {
	l.timeline.reached("finish", id)
	return l.Ledger.Finish(ctx, id, token, outcome)
}

type timedStore struct {
	storage.Store
	timeline *timeline
}

func (s *timedStore) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (storage.Staged, error) {
	s.timeline.reached("stage", id)
	return s.Store.Stage(ctx, id, dir, how)
}

func (s *timedStore) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	s.timeline.reached("collect", id)
	return s.Store.Collect(ctx, id, dir, replace)
}

// handoverCore runs jobs of a second, one after another, of these models on one sheep on
// virtual time. A model takes 10 s to load; a start in the ledger takes the given time. The
// jobs are named job-0, job-1 and so on. With again the first answer to job-0 is a failure,
// and it is tried once more.
func handoverCore(t *testing.T, start time.Duration, again bool, models ...string) *timeline {
	t.Helper()
	line, ends := slowStartCore(t, slowStart{takes: start}, again, models...)
	for i, end := range ends {
		if end != job.Done {
			t.Errorf("%s ends as %s", jobName(i), end)
		}
	}
	return line
}

// slowStartCore is handoverCore with this ledger. It returns the final states, too.
func slowStartCore(t *testing.T, slow slowStart, again bool, models ...string) (line *timeline, ends []job.State) {
	var once sync.Once
	synctest.Test(t, func(t *testing.T) {
		line = newTimeline()
		slow.Ledger, slow.timeline = memory.New(memory.Config{}), line
		cfg := shepherd.Config{
			Node: "node", DataRoot: t.TempDir(), StageAhead: 1, MaxAttempts: 3, Log: slog.New(slog.DiscardHandler),
			Ledger: &slow,
			Store:  &timedStore{Store: new(memstore.Store), timeline: line},
		}
		sheep, err := fake.New(fake.Config{
			Runners: fake.NewRunners(),
			Load:    func(context.Context, job.Model) error { time.Sleep(10 * time.Second); return nil },
			Handle: func(_ context.Context, _ job.Model, in messenger.Input) error {
				line.reached("given", in.JobID)
				time.Sleep(time.Second)
				line.reached("answer", in.JobID)
				var err error
				if again && in.JobID == jobName(0) {
					once.Do(func() { err = errors.New("not yet") })
				}
				return err
			},
		}).NewSheep("sheep", func(any) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		cfg.Sheep = []shepherd.Member{{Name: "sheep", Type: "fake", Sheep: sheep}}
		core, err := shepherd.New(cfg)
		if err == nil {
			err = core.Start(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		defer cfg.Ledger.Close()
		defer core.Stop(context.Background())
		for i, name := range models {
			retries := 1
			r := job.Request{ID: jobName(i), Model: job.Model{Name: name, Version: "v1"}, Limits: job.Limits{Retries: &retries}}
			if err := cfg.Store.Init(t.Context(), r.ID, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := core.Submit(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		for i := range models {
			s, err := core.Wait(t.Context(), jobName(i))
			if err != nil {
				t.Errorf("job %s: %+v, %v", jobName(i), s, err)
			}
			ends = append(ends, s.State)
		}
	})
	return line, ends
}

func jobName(i int) job.ID { return job.ID("job-" + strconv.Itoa(i)) }

// A runner with the model of the next job gets it at once: the start is recorded behind it, and
// before its end.
func TestStartDoesNotDelayTheRunner(t *testing.T) {
	line := handoverCore(t, time.Minute, false, "m", "m")
	line.inOrder(t, "answer job-0", "given job-1", "answer job-1", "collect job-1", "start job-1", "finish job-1")
	if took := line.at["given job-1"] - line.at["answer job-0"]; took != 0 {
		t.Errorf("the runner had its next job after %s", took)
	}
}

// A runner that has a job whose start the ledger refuses is stopped: the job is not this
// sheep's any more, or was cancelled.
func TestRefusedStartStopsTheRunner(t *testing.T) {
	for name, test := range map[string]struct {
		before func(ctx context.Context, l ledger.Ledger, id job.ID, token ledger.Token) error
		given  int
		end    job.State
	}{
		"fenced": {func(ctx context.Context, l ledger.Ledger, id job.ID, token ledger.Token) error {
			_, err := l.Release(ctx, id, token, ledger.Return{Cause: job.CauseTakenOver})
			return err
		}, 2, job.Done},
		"cancelled": {func(ctx context.Context, l ledger.Ledger, id job.ID, _ ledger.Token) error {
			_, err := l.Cancel(ctx, id)
			return err
		}, 1, job.Cancelled},
	} {
		t.Run(name, func(t *testing.T) {
			var once sync.Once
			line, ends := slowStartCore(t, slowStart{takes: time.Millisecond, before: func(ctx context.Context, l ledger.Ledger, id job.ID, token ledger.Token) (err error) {
				if id == jobName(1) {
					once.Do(func() { err = test.before(ctx, l, id, token) })
				}
				return err
			}}, false, "m", "m")
			line.inOrder(t, "given job-1", "start job-1")
			if given := line.count("given job-1"); ends[1] != test.end || given != test.given {
				t.Errorf("the job ends as %s, want %s, and was given %d times, want %d: %s", ends[1], test.end, given, test.given, strings.Join(line.steps, ", "))
			}
		})
	}
}

// A job that is tried again, or whose model takes time to load, starts in the ledger first.
// The runner is idle meanwhile, so nothing competes with that.
func TestHandoverComesFirst(t *testing.T) {
	const start = 20 * time.Millisecond
	line := handoverCore(t, start, true, "m", "m")
	line.inOrder(t, "answer job-1", "start job-0", "given job-0", "answer job-0")
	line.inOrder(t, "answer job-1", "start job-0", "collect job-1", "answer job-0")
	if took := line.at["collect job-1"] - line.at["answer job-1"]; took != start {
		t.Errorf("the results were stored %s after the answer, want %s", took, start)
	}
	handoverCore(t, start, false, "m", "n").inOrder(t, "answer job-0", "start job-1", "given job-1")
}

func TestResultsDoNotWait(t *testing.T) {
	const start = 20 * time.Millisecond
	for name, test := range map[string]struct {
		takes  time.Duration
		again  bool
		models []string
		job    string
		within time.Duration // from the answer
	}{
		"where no job waits":                 {start, false, []string{"m"}, "job-0", 0},
		"while another model is loaded":      {start, false, []string{"m", "n"}, "job-0", 0},
		"while the ledger takes a long time": {time.Minute, true, []string{"m", "m"}, "job-1", time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			line := handoverCore(t, test.takes, test.again, test.models...)
			if took := line.at["collect "+test.job] - line.at["answer "+test.job]; took != test.within {
				t.Errorf("the results were stored %s after the answer, want %s: %s", took, test.within, strings.Join(line.steps, ", "))
			}
		})
	}
}
