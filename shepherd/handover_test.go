package shepherd_test

import (
	"context"
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

// slowStart is a ledger in which a start takes a while.
type slowStart struct {
	ledger.Ledger
	timeline *timeline
	takes    time.Duration
}

func (l *slowStart) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	time.Sleep(l.takes)
	rec, err := l.Ledger.Start(ctx, id, token)
	l.timeline.reached("start", id)
	return rec, err
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
// jobs are named job-0, job-1 and so on.
func handoverCore(t *testing.T, start time.Duration, models ...string) *timeline {
	var line *timeline
	synctest.Test(t, func(t *testing.T) {
		line = newTimeline()
		cfg := shepherd.Config{
			Node: "node", DataRoot: t.TempDir(), StageAhead: 1, MaxAttempts: 3, Log: slog.New(slog.DiscardHandler),
			Ledger: &slowStart{Ledger: memory.New(memory.Config{}), timeline: line, takes: start},
			Store:  &timedStore{Store: new(memstore.Store), timeline: line},
		}
		sheep, err := fake.New(fake.Config{
			Runners: fake.NewRunners(),
			Load:    func(context.Context, job.Model) error { time.Sleep(10 * time.Second); return nil },
			Handle: func(_ context.Context, _ job.Model, in messenger.Input) error {
				time.Sleep(time.Second)
				line.reached("answer", in.JobID)
				return nil
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
			r := job.Request{ID: jobName(i), Model: job.Model{Name: name, Version: "v1"}}
			if err := cfg.Store.Init(t.Context(), r.ID, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := core.Submit(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		for i := range models {
			s, err := core.Wait(t.Context(), jobName(i))
			if err != nil || s.State != job.Done {
				t.Errorf("job %s: %+v, %v", jobName(i), s, err)
			}
		}
	})
	return line
}

func jobName(i int) job.ID { return job.ID("job-" + strconv.Itoa(i)) }

// The runner is idle between two jobs, so nothing competes with the start of the next one.
func TestHandoverComesFirst(t *testing.T) {
	const start = 20 * time.Millisecond
	line := handoverCore(t, start, "m", "m", "m")
	line.inOrder(t, "stage job-1", "answer job-0", "start job-1", "collect job-0", "answer job-1", "start job-2", "collect job-1", "answer job-2", "collect job-2")
	line.inOrder(t, "start job-1", "stage job-2", "answer job-1")
	if took := line.at["collect job-0"] - line.at["answer job-0"]; took != start {
		t.Errorf("the results were stored %s after the answer, want %s", took, start)
	}
}

func TestResultsDoNotWait(t *testing.T) {
	const start = 20 * time.Millisecond
	for name, test := range map[string]struct {
		takes  time.Duration
		models []string
		within time.Duration // from the answer
	}{
		"where no job waits":                 {start, []string{"m"}, 0},
		"while another model is loaded":      {start, []string{"m", "n"}, 0},
		"while the ledger takes a long time": {time.Minute, []string{"m", "m"}, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			line := handoverCore(t, test.takes, test.models...)
			if took := line.at["collect job-0"] - line.at["answer job-0"]; took != test.within {
				t.Errorf("the results were stored %s after the answer, want %s: %s", took, test.within, strings.Join(line.steps, ", "))
			}
		})
	}
}
