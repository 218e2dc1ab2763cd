package shepherd_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/memory"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	storage "github.com/iterait/shepherd/storage/memory"
)

// distant is a Fleet that says how near all models are on the other node.
type distant struct {
	others
	near *atomic.Int64 // a job.Nearness
}

func (d distant) Nearest(context.Context, job.Model, job.Address) (job.Nearness, error) {
	return job.Nearness(d.near.Load()), nil
}

// fetching is a sheep that has the model `here` on its disk, and others once it has loaded
// them.
type fetching struct {
	runtime.Sheep
	has *sync.Map // of names
}

func (s fetching) Load(ctx context.Context, m job.Model, observe runtime.Observer) error {
	s.has.Store(m.Name, true)
	return s.Sheep.Load(ctx, m, observe)
}

func (s fetching) Owner(_ context.Context, m job.Model) (uid, gid int, err error) {
	if _, ok := s.has.Load(m.Name); !ok && m.Name != "here" {
		return 0, 0, errdefs.ErrNotFound
	}
	return os.Geteuid(), os.Getegid(), nil
}

// nearCore runs f with a core on virtual time, whose one sheep needs a second for a job, and
// which is told how near models are on another node.
func nearCore(t *testing.T, f func(t *testing.T, core *shepherd.Shepherd, elsewhere func(job.Nearness))) {
	synctest.Test(t, func(t *testing.T) {
		driver := fake.New(fake.Config{Runners: fake.NewRunners(), Handle: func(_ context.Context, _ job.Model, in messenger.Input) error {
			time.Sleep(time.Second)
			return fake.WriteOutput(in, job.DefaultOutput, nil)
		}})
		sheep, err := driver.NewSheep("sheep", func(any) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		near, kept := new(atomic.Int64), memory.New(memory.Config{})
		core, err := shepherd.New(shepherd.Config{
			Node: "node", DataRoot: t.TempDir(), Ledger: kept, Store: new(storage.Store), MaxAttempts: 3, Log: slog.New(slog.DiscardHandler),
			Peers: nodes{"node", "other"}, Fleet: distant{near: near}, Sheep: []shepherd.Member{{Name: "sheep", Type: "fake", Sheep: fetching{sheep, new(sync.Map)}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := core.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer kept.Close()
		defer core.Stop(context.Background())
		f(t, core, func(n job.Nearness) { near.Store(int64(n)) })
	})
}

// startOf waits for the end of a job, and is how long it waited for its start.
func startOf(t *testing.T, core *shepherd.Shepherd, id string) time.Duration {
	t.Helper()
	if s, err := core.Wait(t.Context(), job.ID(id)); err != nil || s.State != job.Done {
		t.Fatalf("%s is %s, %v", id, s.State, err)
	}
	v := viewOf(t, core, job.ID(id))
	return v.StartedAt.Sub(v.EnqueuedAt)
}

// A sheep leaves a job for five seconds to nodes that the model is nearer to than to itself,
// and to no others.
func TestNearerNode(t *testing.T) {
	for _, test := range []struct {
		model string
		near  job.Nearness
		waits bool
	}{
		{"absent", job.ModelAway, false},
		{"absent", job.ModelOnDisk, true},
		{"absent", job.ModelLoaded, true},
		{"here", job.ModelAway, false},
		{"here", job.ModelOnDisk, false},
		{"here", job.ModelLoaded, true},
	} {
		t.Run(fmt.Sprint(test.model, test.near), func(t *testing.T) {
			nearCore(t, func(t *testing.T, core *shepherd.Shepherd, elsewhere func(job.Nearness)) {
				elsewhere(test.near)
				submitFor(t, core, "first", test.model, 0)
				want := time.Duration(0)
				if test.waits {
					want = 5 * time.Second
				}
				if got := startOf(t, core, "first"); got.Round(time.Second) != want {
					t.Errorf("it waited for %v, expected %v", got, want)
				}
				submitFor(t, core, "second", test.model, 0) // it is loaded now
				if got := startOf(t, core, "second"); got.Round(time.Second) != 0 {
					t.Errorf("with the model loaded it waited for %v", got)
				}
			})
		})
	}
}

// A job is left for as long as nodes that are nearer have free sheep, and others are not
// left with it. What has waited for long is not left at all.
func TestLeftToNearer(t *testing.T) {
	nearCore(t, func(t *testing.T, core *shepherd.Shepherd, elsewhere func(job.Nearness)) {
		elsewhere(job.ModelOnDisk)
		submitFor(t, core, "left", "absent", 0)
		submitFor(t, core, "other", "here", 0)
		synctest.Wait()
		if e, err := core.Explain(t.Context(), "left", ""); err != nil || !strings.Contains(fmt.Sprint(e.Reasons), "leaves the job for 5s to another node") {
			t.Errorf("it waits because %q, %v", e.Reasons, err)
		}
		if got := startOf(t, core, "other"); got.Round(time.Second) != 0 {
			t.Errorf("behind one that is left it waited for %v", got)
		}
		elsewhere(job.ModelAway)
		if got := startOf(t, core, "left"); got < time.Second || got > 3*time.Second {
			t.Errorf("until the other nodes were busy it waited for %v", got)
		}
		elsewhere(job.ModelOnDisk)
		for i := range 10 { // more than another node gets through
			submitFor(t, core, fmt.Sprint("queue-", i), fmt.Sprint("absent-", i), 0)
		}
		for i := range 10 {
			want := time.Duration(5+i) * time.Second
			if got := startOf(t, core, fmt.Sprint("queue-", i)); got.Round(time.Second) != want {
				t.Errorf("number %d waited for %v, expected %v", i, got, want)
			}
		}
	})
}
