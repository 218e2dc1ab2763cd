package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hang = 2 * time.Minute
	gib  = 1 << 30
)

// driver is a Source that tells what the test says.
type driver struct {
	mu   sync.Mutex
	inv  gpu.Inventory
	err  error // of Inventory
	asks int

	samples chan gpu.Sample
	fail    chan error // ends the watch
	watches [][]string // the PCI addresses of each
	held    []string   // those of the present one
}

func newDriver(gpus ...gpu.GPU) *driver {
	return &driver{
		inv:     gpu.Inventory{Driver: "550.54.15", CUDA: "12.4", GPUs: gpus},
		samples: make(chan gpu.Sample), fail: make(chan error),
	}
}

func (d *driver) Inventory(ctx context.Context) (*gpu.Inventory, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asks++
	if d.err != nil {
		return nil, d.err
	}
	inv := d.inv
	inv.GPUs = append([]gpu.GPU(nil), d.inv.GPUs...)
	return &inv, ctx.Err()
}

func (d *driver) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *driver) Watch(ctx context.Context, w gpu.Watch, observe func(gpu.Sample)) error {
	d.set(func() { d.watches, d.held = append(d.watches, w.PCI), w.PCI })
	defer d.set(func() { d.held = nil })
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-d.fail:
			return err
		case s := <-d.samples:
			observe(s)
		}
	}
}

// say has the watch tell; when it returns the one before has been taken in.
func (d *driver) say(samples ...gpu.Sample) {
	for _, s := range samples {
		s.Time = time.Now()
		d.samples <- s
	}
	d.samples <- gpu.Sample{UUID: "nobody's"}
}

func state(g gpu.GPU, change func(*gpu.State)) gpu.Sample {
	s := g.State
	change(&s)
	return gpu.Sample{UUID: g.UUID, State: &s}
}

func xid(g gpu.GPU, code uint64) gpu.Sample {
	return gpu.Sample{UUID: g.UUID, Xid: &gpu.Xid{Code: code}}
}

// card0 and card1 are GPUs of 80 GiB.
var (
	card0 = gpu.GPU{Index: 0, UUID: "GPU-aaaa", Name: "Test A100", Memory: 80 * gib}
	card1 = gpu.GPU{Index: 1, Minor: 1, UUID: "GPU-bbbb", Name: "Test A100", Memory: 80 * gib}
)

// grants are whole GPUs.
func grants(cards ...gpu.GPU) []gpu.Grant {
	var all []gpu.Grant
	for _, c := range cards {
		all = append(all, gpu.Grant{Device: gpu.Device{Kind: gpu.NVIDIA, Name: c.UUID}, GPU: &c})
	}
	return all
}

func open(t *testing.T, cfg Config) *Keeper {
	t.Helper()
	if cfg.Source == nil {
		cfg.Source = newDriver(card0, card1)
	}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	k := New(cfg)
	t.Cleanup(k.Close)
	return k
}

// watched is a keeper whose driver has answered.
func watched(t *testing.T, cfg Config) *Keeper {
	t.Helper()
	k := open(t, cfg)
	k.Start()
	k.await(t, "the driver answers", func() bool { return k.watching })
	return k
}

// await waits until something is so, with the keeper's lock held.
func (k *Keeper) await(t *testing.T, what string, so func() bool) {
	t.Helper()
	timeout := time.After(hang)
	for {
		k.mu.Lock()
		done, pulse := so(), k.changed
		k.mu.Unlock()
		if done {
			return
		}
		select {
		case <-pulse:
		case <-timeout:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// granted says whether a request is, now.
func granted(ch <-chan error) bool { return len(ch) > 0 }

// take has the sheep get its devices at once.
func take(t *testing.T, l *Lease) (done func()) {
	t.Helper()
	ch, done := l.Request()
	if !granted(ch) {
		t.Fatalf("sheep %s does not get its devices: %s", l.share.Sheep, l.State())
	}
	if err := <-ch; err != nil {
		t.Fatalf("sheep %s: %v", l.share.Sheep, err)
	}
	return done
}

// run is take, with a runner started.
func run(t *testing.T, l *Lease, model string, pid int) (done func()) {
	t.Helper()
	done = take(t, l)
	l.Started(job.Model{Name: model}, pid)
	return done
}

func asked(l *Lease) bool { return len(l.yield) > 0 }

// procFolder makes a folder such as /proc: of each process its parent and its control
// group.
func procFolder(t *testing.T, of map[int][2]string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(pid, name, text string) {
		if err := os.MkdirAll(filepath.Join(dir, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, pid, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("self", "cgroup", "1:memory:/daemon\n0::/daemon\n")
	for pid, p := range of {
		name := strconv.Itoa(pid)
		write(name, "stat", fmt.Sprintf("%d (a) odd (name) S %s 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 1234 0 0", pid, p[0]))
		write(name, "comm", "python3\n")
		write(name, "cgroup", "1:memory:/daemon\n0::"+p[1]+"\n")
	}
	return dir
}

var errBroken = errors.New("shepherd-gpu crashed")
