package keeper_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/keeper"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage/embedded"
	"github.com/iterait/shepherd/storage/s3"
)

// The core takes a lease for a sheep's devices.
var _ shepherd.Devices = (*keeper.Lease)(nil)

// still is a driver that has nothing to tell.
type still struct{}

func (still) Inventory(context.Context) (*gpu.Inventory, error) {
	return &gpu.Inventory{Driver: "550.54.15"}, nil
}

func (still) Watch(ctx context.Context, _ gpu.Watch, _ func(gpu.Sample)) error {
	<-ctx.Done()
	return ctx.Err()
}

// floor is a GPU as the runners on it see it.
type floor struct {
	mu   sync.Mutex
	size int64
	on   map[string]int64
	most int
	bad  []string
}

func (f *floor) enter(sheep string, takes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on[sheep] = takes
	f.most = max(f.most, len(f.on))
	var sum int64
	for _, n := range f.on {
		sum += n
	}
	if sum > f.size {
		f.bad = append(f.bad, fmt.Sprintf("%v are on a GPU of %d", f.on, f.size))
	}
}

func (f *floor) leave(sheep string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.on, sheep)
}

// treading is a sheep whose runners are on the floor.
type treading struct {
	runtime.Sheep
	name  string
	takes int64
	floor *floor
}

func (s *treading) Run(ctx context.Context, observe runtime.Observer) error {
	s.floor.enter(s.name, s.takes)
	defer s.floor.leave(s.name)
	return s.Sheep.Run(ctx, observe)
}

// TestSheepShareAGPU has a core run many jobs, addressed to a sheep and not, in
// sheep that share a GPU on which not all of them fit: all jobs are done, and
// never is there more on the GPU than fits.
func TestSheepShareAGPU(t *testing.T) {
	const hang = 5 * time.Minute
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	server, err := embedded.Open(embedded.Config{Dir: dir + "/storage", Listen: "127.0.0.1:0", AccessKey: "access", SecretKey: "secret-key", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(context.Background()) })
	t.Cleanup(func() { server.Close(); serving.Wait() })
	store, err := s3.New(s3.Config{URL: "http://" + server.Addr(), AccessKey: "access", SecretKey: "secret-key", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	records, err := sqlite.Open(t.Context(), sqlite.Config{Path: dir + "/ledger.db", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { records.Close() })

	const gib = 1 << 30
	card := gpu.GPU{UUID: "GPU-aaaa", Name: "Test A100", Memory: 80 * gib}
	ground := &floor{size: 80, on: make(map[string]int64)}
	k := keeper.New(keeper.Config{Source: still{}, Turn: 10 * time.Millisecond, Linger: time.Millisecond, Log: log})
	t.Cleanup(k.Close)
	runners := fake.NewRunners()
	cfg := shepherd.Config{Node: "node", DataRoot: dir + "/data", Ledger: records, Store: store, StageAhead: 1, MaxAttempts: 3, Log: log}
	var mu sync.Mutex
	ran := make(map[string]int)
	budgets := map[string]int64{"a": 30, "b": 40, "c": 50, "whole": 0}
	for _, name := range []string{"a", "b", "c", "whole"} {
		driver := fake.New(fake.Config{Runners: runners, Handle: func(_ context.Context, _ job.Model, in messenger.Input) error {
			mu.Lock()
			ran[name]++
			mu.Unlock()
			return fake.WriteOutput(in, job.DefaultOutput, []byte("done"))
		}})
		sheep, err := driver.NewSheep(name, func(any) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		takes := budgets[name]
		if takes == 0 {
			takes = 80
		}
		cfg.Sheep = append(cfg.Sheep, shepherd.Member{
			Name: name, Type: "fake", Sheep: &treading{sheep, name, takes, ground},
			Devices: k.Lend(keeper.Share{
				Sheep: name, Shared: true, Memory: budgets[name] * gib,
				Devices: []gpu.Grant{{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "0"}, GPU: &card}},
			}),
		})
	}
	core, err := shepherd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := core.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), hang)
		defer cancel()
		core.Stop(ctx)
	})
	t.Cleanup(stop)

	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	var clients sync.WaitGroup
	for client := range 6 {
		choose := rand.New(rand.NewPCG(1, uint64(client)))
		clients.Go(func() {
			for n := range 20 {
				r := job.Request{
					ID:      job.ID(fmt.Sprintf("job-%d-%d", client, n)),
					Model:   job.Model{Name: []string{"red", "blue"}[choose.IntN(2)], Version: "v1"},
					Sheep:   []string{"", "a", "b", "c", "whole"}[choose.IntN(5)],
					Payload: []byte("x"),
				}
				if err := core.Submit(ctx, r); err != nil {
					t.Errorf("submit %s: %v", r.ID, err)
					return
				}
				if n%3 > 0 { // some wait, some pile up
					continue
				}
				if s, err := core.Wait(ctx, r.ID); err != nil || s.State != job.Done {
					t.Errorf("job %s for sheep %q is %s (%v), %v; the sheep: %+v", r.ID, r.Sheep, s.State, s.Failure, err, core.Sheep(ctx))
					return
				}
			}
		})
	}
	clients.Wait()
	for client := range 6 {
		for n := range 20 {
			id := job.ID(fmt.Sprintf("job-%d-%d", client, n))
			if s, err := core.Wait(ctx, id); err != nil || s.State != job.Done {
				t.Fatalf("job %s is %s (%v), %v; the sheep: %+v", id, s.State, s.Failure, err, core.Sheep(ctx))
			}
		}
	}
	stop()
	for _, text := range ground.bad {
		t.Error(text)
	}
	if ground.most < 2 {
		t.Error("sheep that fit were never on the GPU together")
	}
	for name := range budgets {
		if ran[name] == 0 {
			t.Errorf("sheep %s ran nothing", name)
		}
	}
	if len(ground.on) > 0 || runners.Alive() > 0 {
		t.Error("runners are left")
	}
}
