package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/memory"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
	storagememory "github.com/iterait/shepherd/storage/memory"
)

// outage is how long storage or a registry is away.
const outage = 10 * time.Minute

// maxLoads is how often models may be loaded during an outage: by two sheep, each at last every
// 30 seconds for the job that it claims and for the one that it has prepared meanwhile.
const maxLoads = 130

// outageCore is a core with the sheep one and two, on virtual time.
type outageCore struct {
	core     *shepherd.Shepherd
	runners  *fake.Runners
	store    *awayStore
	registry atomic.Bool // it is away
	loads    atomic.Int32
}

// awayStore is a storage that can be away.
type awayStore struct {
	storagememory.Store
	away  atomic.Bool
	calls atomic.Int32 // while it was away
}

func (s *awayStore) reach() error {
	if !s.away.Load() {
		return nil
	}
	s.calls.Add(1)
	return fmt.Errorf("storage is away: %w", errdefs.ErrUnavailable)
}

func (s *awayStore) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (storage.Staged, error) {
	if err := s.reach(); err != nil {
		return storage.Staged{}, err
	}
	return s.Store.Stage(ctx, id, dir, how)
}

func (s *awayStore) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	if err := s.reach(); err != nil {
		return storage.Collected{}, err
	}
	return s.Store.Collect(ctx, id, dir, replace)
}

func (s *awayStore) Init(ctx context.Context, id job.ID, payload []byte) error {
	if err := s.reach(); err != nil {
		return err
	}
	return s.Store.Init(ctx, id, payload)
}

func (s *awayStore) Reserve(ctx context.Context, id job.ID, status job.Status) error {
	if err := s.reach(); err != nil {
		return err
	}
	return s.Store.Reserve(ctx, id, status)
}

func (s *awayStore) Status(ctx context.Context, id job.ID) (job.Status, error) {
	if err := s.reach(); err != nil {
		return job.Status{}, err
	}
	return s.Store.Status(ctx, id)
}

func (s *awayStore) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	if err := s.reach(); err != nil {
		return err
	}
	return s.Store.SetStatus(ctx, id, status)
}

// duringOutage runs f in a bubble with a core that has started.
func duringOutage(t *testing.T, f func(o *outageCore)) {
	dir := tempDir(t)
	bubble(t, func() {
		o := &outageCore{runners: fake.NewRunners(), store: new(awayStore)}
		driver := fake.New(fake.Config{
			Runners: o.runners,
			Load: func(ctx context.Context, m job.Model) error {
				if o.loads.Add(1) > maxLoads { // a sheep that never waits would run for ever at one instant
					return errors.New("the model is loaded again and again")
				}
				if o.registry.Load() && m.Name == "b" {
					return &runtime.LoadError{Message: "the registry is away", Class: errdefs.ErrUnavailable}
				}
				return rest(ctx, 5*time.Second)
			},
			Handle: func(ctx context.Context, _ job.Model, in messenger.Input) error {
				if err := rest(ctx, 20*time.Second); err != nil {
					return err
				}
				return fake.WriteOutput(in, job.DefaultOutput, []byte(in.JobID))
			},
		})
		var members []shepherd.Member
		for _, name := range []string{"one", "two"} {
			sheep, err := driver.NewSheep(name, func(any) error { return nil })
			check(t, err)
			members = append(members, shepherd.Member{Name: name, Type: "fake", Sheep: sheep})
		}
		patience := 30 * time.Minute
		ledger := memory.New(memory.Config{})
		core, err := shepherd.New(shepherd.Config{
			Node: "node", DataRoot: filepath.Join(dir, "data"), Ledger: ledger, Store: o.store, Sheep: members,
			StageAhead: 1, MaxAttempts: 3, MaxTurn: time.Minute, Limits: shepherd.LimitDefaults{All: job.Limits{LoadTimeout: &patience}},
			Log: slog.New(slog.DiscardHandler),
		})
		check(t, err)
		o.core = core
		check(t, core.Start(context.Background()))
		f(o)
		core.Stop(context.Background())
		check(t, ledger.Close())
	})
}

func (o *outageCore) submit(t *testing.T, model string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		check(t, o.core.Submit(context.Background(), job.Request{ID: job.ID(id), Model: job.Model{Name: model, Version: "v1"}, Payload: []byte(id)}))
	}
}

// await waits for jobs and returns how long that took.
func (o *outageCore) await(t *testing.T, ids ...string) time.Duration {
	t.Helper()
	began := time.Now()
	for _, id := range ids {
		s, err := o.core.Wait(context.Background(), job.ID(id))
		check(t, err)
		if s.State != job.Done {
			t.Errorf("job %s is %s: %+v", id, s.State, s.Failure)
		}
	}
	return time.Since(began)
}

// TestStorageAwayForLong: runners keep their models, their answers are kept, requests to storage
// become rarer, and jobs continue when it is back.
func TestStorageAwayForLong(t *testing.T) {
	duringOutage(t, func(o *outageCore) {
		ids := []string{"job-1", "job-2", "job-3", "job-4", "job-5", "job-6"}
		o.submit(t, "a", ids...)
		time.Sleep(10 * time.Second) // two run, two are prepared
		starts := o.runners.Starts("one") + o.runners.Starts("two")
		o.store.away.Store(true)
		time.Sleep(outage)
		if err := o.core.Submit(context.Background(), job.Request{ID: "late", Model: job.Model{Name: "a", Version: "v1"}, Payload: []byte("x")}); !errdefs.IsUnavailable(err) {
			t.Errorf("a job that cannot be stored: %v", err)
		}
		calls := o.store.calls.Load()
		if calls > 10*int32(outage/(5*time.Second)) { // two jobs' results, two jobs' inputs and six states, each at last once in five seconds
			t.Errorf("storage is asked %d times in %s", calls, outage)
		}
		o.store.away.Store(false)
		if took := o.await(t, ids...); took > 2*time.Minute {
			t.Errorf("the jobs take %s once storage is back", took)
		}
		if n := o.runners.Starts("one") + o.runners.Starts("two"); n != starts || n != 2 {
			t.Errorf("runners were started %d times before and %d after, want 2", starts, n)
		}
		t.Logf("storage was asked %d times in %s", calls, outage)
	})
}

// TestRegistryAwayForLong: a model that cannot be pulled delays only its own jobs, and pulls
// become rarer.
func TestRegistryAwayForLong(t *testing.T) {
	duringOutage(t, func(o *outageCore) {
		o.registry.Store(true)
		o.submit(t, "b", "b-1", "b-2")
		var others []string
		for n := range 10 {
			others = append(others, fmt.Sprint("a-", n))
		}
		o.submit(t, "a", others...)
		if took := o.await(t, others...); took > 3*time.Minute { // 100 s if nothing were in the way
			t.Errorf("the jobs of the model that is there take %s", took)
		}
		time.Sleep(outage)
		if loads := o.loads.Load(); loads > maxLoads {
			t.Errorf("models are loaded %d times", loads)
		}
		o.registry.Store(false)
		if took := o.await(t, "b-1", "b-2"); took > 2*time.Minute {
			t.Errorf("the jobs take %s once the registry is back", took)
		}
		t.Logf("models were loaded %d times", o.loads.Load())
	})
}
