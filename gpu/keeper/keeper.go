// Package keeper manages a machine's GPUs for its sheep: it schedules which sheep may use
// which GPU, monitors the GPUs' health, and accounts for the jobs' use of them.
//
// # Leases
//
// Each sheep with devices has a Lease of them. A GPU that is not shared has one
// lease. Of the sheep that share a GPU, as many may have a model on it at once as
// their memory budgets allow; a sheep without a budget takes the whole GPU.
//
// Requests are granted in order, and for all devices of a sheep at once, so no sheep
// holds one GPU while it waits for another. To grant the first request, the models of
// idle sheep are unloaded, least recently used first. A sheep that has one job after
// another keeps its devices for at least a turn, so that models do not change with every
// job; then its requests queue like the others'. No later request for a GPU is granted
// before the first.
//
// Without a driver, devices are distinguished by their names only.
//
// # Health
//
// A watch on the driver reports each GPU's state. A GPU that is lost, reports a fatal Xid
// or has an uncorrectable ECC error is out of service: its sheep take no jobs, its sheep's
// current job learns the cause, and the GPU is tested again from time to time until it is
// healthy. If the watch fails (no driver, a hung driver, a crash of the helper program)
// sheep continue, and the GPUs' health is unknown.
package keeper

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/iterait/shepherd/gpu"
)

// Source queries the driver; gpu.Helper implements it.
type Source interface {
	// Inventory returns the machine's GPUs.
	Inventory(ctx context.Context) (*gpu.Inventory, error)
	// Watch calls observe, from one goroutine at a time, with each GPU's state at every
	// interval and with Xid errors, until it fails or ctx ends.
	Watch(ctx context.Context, w gpu.Watch, observe func(gpu.Sample)) error
}

// Config configures a Keeper. Zero durations, except Turn, mean the defaults.
type Config struct {
	Source Source
	// Interval is the time between two reports of the GPUs' state.
	Interval time.Duration
	// Retest is the time until a GPU that is out of service is tested. It doubles each
	// time that the GPU goes out of service again soon after its return.
	Retest time.Duration
	// Turn is how long a sheep that has one job after another may keep a GPU for
	// which other sheep wait; 0 is for one job. A job is never interrupted.
	Turn time.Duration
	// Linger is how long a sheep keeps its devices after a job although other sheep
	// wait for them, in case its next job comes soon.
	Linger time.Duration
	// MemoryWait is how long the start of a model waits for GPU memory.
	MemoryWait time.Duration
	// Xids has the rule for each Xid error; nil means DefaultXids.
	Xids map[uint64]XidRule
	// Proc is the directory of the proc file system; empty means /proc.
	Proc string
	Log  *slog.Logger // nil discards
}

// The defaults of Config.
const (
	DefaultInterval   = time.Second
	DefaultRetest     = time.Minute
	DefaultLinger     = 250 * time.Millisecond
	DefaultMemoryWait = 30 * time.Second
)

// lateXid is how long after a failed job's end an Xid is still taken for its cause.
const lateXid = 300 * time.Millisecond

// Share is a sheep's share of the machine's devices.
type Share struct {
	Sheep   string
	Devices []gpu.Grant
	// Shared is true if other sheep may use the same devices.
	Shared bool
	// Memory is the sheep's budget on each of its devices, in bytes; 0 is all of it.
	Memory int64
}

// Keeper manages the GPUs. Its methods, and those of its leases, may be called from many
// goroutines.
type Keeper struct {
	cfg     Config
	log     *slog.Logger
	procs   processes
	watcher *watcher

	mu sync.Mutex // guards the fields below, and the leases
	machine
	schedule
	changed chan struct{} // closed and replaced with each change
	closed  bool          // Close was called
}

// machine is the known state of the machine's GPUs.
type machine struct {
	driver   string
	cuda     string
	gpus     map[string]*gpuRecord // by UUID; see unidentified
	watching bool                  // the driver answers
	trouble  error                 // why the driver does not answer
}

// New makes a Keeper. It does not query the driver before Start.
func New(cfg Config) *Keeper {
	cfg.Interval = cmp.Or(cfg.Interval, DefaultInterval)
	cfg.Retest = cmp.Or(cfg.Retest, DefaultRetest)
	cfg.Linger = cmp.Or(cfg.Linger, DefaultLinger)
	cfg.MemoryWait = cmp.Or(cfg.MemoryWait, DefaultMemoryWait)
	cfg.Proc = cmp.Or(cfg.Proc, "/proc")
	if cfg.Xids == nil {
		cfg.Xids = DefaultXids()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{
		cfg: cfg, log: cfg.Log, procs: processes{root: cfg.Proc},
		machine:  machine{gpus: make(map[string]*gpuRecord)},
		schedule: schedule{maxTurn: cfg.Turn, lingerTime: cfg.Linger},
		changed:  make(chan struct{}),
	}
	k.watcher = newWatcher(k)
	k.linger = time.AfterFunc(time.Hour, func() { k.change(func() { k.lingerAt = time.Time{} }) })
	k.linger.Stop()
	return k
}

// Start starts watching the driver, without waiting for it. It is called once.
func (k *Keeper) Start() { k.watcher.start() }

// Close ends the watch. It may be called before Start, and twice.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closed = true
	k.linger.Stop()
	for _, l := range k.leases {
		l.closeAll()
	}
	k.mu.Unlock()
	k.watcher.close()
}

// Lend makes a lease of a sheep's share, whose devices may be empty until Assign.
func (k *Keeper) Lend(s Share) *Lease {
	l := &Lease{k: k, share: s, runner: runner{yield: make(chan struct{}, 1)}, outage: outage{fault: make(chan struct{})}, used: time.Now()}
	k.change(func() {
		k.leases = append(k.leases, l)
		k.assign(l, s.Devices)
		l.admitted = k.admission(l)
	})
	return l
}

// assign sets the lease's devices.
func (k *Keeper) assign(l *Lease, devices []gpu.Grant) {
	l.share.Devices = devices
	for _, g := range devices {
		if g.GPU != nil {
			k.register(*g.GPU)
		}
	}
	k.bind()
}

// change calls do with the lock held, reschedules, and notifies the leases whose
// admission has grown.
func (k *Keeper) change(do func()) {
	k.mu.Lock()
	do()
	k.settle()
	var notify []func()
	for _, l := range k.leases {
		now := k.admission(l)
		if now > l.admitted && l.notify != nil {
			notify = append(notify, l.notify)
		}
		l.admitted = now
	}
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	for _, f := range notify {
		f()
	}
}

// device is a GPU, or a MIG instance of one, in the share of a sheep.
type device struct {
	key      string     // the UUID or, if that is not known, the name
	name     string     // for people
	record   *gpuRecord // nil if the driver does not list it
	instance string     // the MIG instance's UUID
	capacity int64      // memory in bytes; 0 if it is not known
}

// bind resolves the devices of all leases by what is known of the GPUs now.
func (k *Keeper) bind() {
	known := make(map[string]*device)
	for _, l := range k.leases {
		devices := make([]*device, 0, len(l.share.Devices))
		for _, g := range l.share.Devices {
			d := k.resolve(g)
			if known[d.key] == nil {
				known[d.key] = d
			}
			d = known[d.key]
			if !slices.Contains(devices, d) {
				devices = append(devices, d)
			}
		}
		l.devices = devices
	}
}

// resolve returns the device of a grant.
func (m *machine) resolve(g gpu.Grant) *device {
	if g.GPU == nil && g.Device.Kind == gpu.NVIDIA && len(m.gpus) > 0 {
		inv := m.inventory()
		asked := []gpu.Request{{Devices: gpu.Devices{List: []gpu.Device{g.Device}}}}
		if found, wrong := gpu.Allot(asked, gpu.Machine{Inventory: &inv}); len(wrong) == 0 && len(found[""]) == 1 {
			g = found[""][0]
		}
	}
	switch {
	case g.GPU == nil:
		for _, c := range m.gpus { // a GPU that does not answer, and has no UUID yet
			if c.UUID == "" && g.Device.Kind == gpu.NVIDIA && g.Device.Name == strconv.Itoa(c.Index) {
				return &device{key: unidentified(c.Index), name: c.String(), record: c}
			}
		}
		d := g.Device
		d.Node = false // so that /dev/nvidia0 and nvidia.com/gpu=0 count as the same device
		return &device{key: d.String(), name: g.Device.String()}
	case g.Instance == nil:
		c := m.gpus[g.GPU.UUID]
		return &device{key: g.GPU.UUID, name: c.String(), record: c, capacity: int64(g.GPU.Memory)}
	}
	c := m.gpus[g.GPU.UUID]
	name := "MIG instance " + g.Instance.UUID + " of " + c.String()
	return &device{key: g.Instance.UUID, name: name, record: c, instance: g.Instance.UUID, capacity: int64(g.Instance.Memory)}
}

// inventory returns the known GPUs.
func (m *machine) inventory() gpu.Inventory {
	inv := gpu.Inventory{Driver: m.driver, CUDA: m.cuda}
	for _, c := range m.gpus {
		inv.GPUs = append(inv.GPUs, c.GPU)
	}
	slices.SortFunc(inv.GPUs, func(a, b gpu.GPU) int { return cmp.Compare(a.Index, b.Index) })
	return inv
}

// request is a sheep's request for its devices.
type request struct {
	lease   *Lease
	result  chan error // receives nil when the request is granted
	granted bool
	over    bool
}
