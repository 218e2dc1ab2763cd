// Package keeper keeps a machine's GPUs for its sheep: which sheep may use which
// GPU when, whether the GPUs are well, and what jobs take of them.
//
// # Leases
//
// Each sheep with devices has a Lease of them. A GPU that is not shared has one
// lease. Of those that share a GPU, as many may have a model on it at once as
// their memory budgets allow; a sheep without a budget takes the whole GPU.
//
// Who waits is served in the order of asking, all devices of a sheep at once or
// none, so nobody holds one GPU while it waits for another. What is in the way
// of the first who waits is unloaded when it is idle, least recently used first.
// A sheep that has one job after another keeps its devices for a turn at least,
// so that models do not change with every job; then it has to queue up as well.
// Nobody behind the first who waits for a GPU gets that GPU before it.
//
// Without a driver to ask, leases work by the names of devices alone.
//
// # Health
//
// A watch on the driver tells how each GPU fares. One that is lost, reports a
// fatal Xid or has an uncorrectable ECC error is out: its sheep take no jobs, the
// job under way is told, and the GPU is tested again from time to time until it
// is well. A watch that fails (no driver, a hung driver, a crash of its program)
// stops nothing: then it is not known how the GPUs fare.
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

// Source is the driver, as package gpu's Helper asks it.
type Source interface {
	// Inventory asks for the machine's GPUs.
	Inventory(ctx context.Context) (*gpu.Inventory, error)
	// Watch tells observe of each GPU's state at every interval, and of Xids, one
	// at a time, until it fails or ctx ends.
	Watch(ctx context.Context, w gpu.Watch, observe func(gpu.Sample)) error
}

// Config is what a Keeper is made of. Zero durations mean the defaults, but for
// Turn's.
type Config struct {
	Source Source
	// Interval is how often the driver tells how the GPUs fare.
	Interval time.Duration
	// Retest is how long a GPU that is out stays so before it is tested; longer
	// each time that it goes out again soon after.
	Retest time.Duration
	// Turn is how long a sheep that has one job after another may keep a GPU for
	// which others wait; 0 is for one job. A job that has begun is never
	// interrupted.
	Turn time.Duration
	// Linger is how long a sheep that has just become idle may be without a job
	// before its turn is over, where others wait.
	Linger time.Duration
	// MemoryWait bounds how long a model that is to be started waits for memory.
	MemoryWait time.Duration
	// Xids says what each Xid means; DefaultXids where nil.
	Xids map[uint64]XidRule
	// Proc is where the kernel tells of processes; /proc where empty.
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

// late is how long after a failed job's end an Xid may come that explains it.
const late = 300 * time.Millisecond

// Share is what a sheep has of the machine's devices.
type Share struct {
	Sheep   string
	Devices []gpu.Grant
	// Shared says that other sheep may have the same devices.
	Shared bool
	// Memory is how much the sheep may take on each of its devices, in bytes; 0
	// is all of it.
	Memory int64
}

// Keeper keeps the GPUs. Its methods, and those of its leases, may be called from
// many goroutines.
type Keeper struct {
	cfg     Config
	log     *slog.Logger
	procs   processes
	watcher *watcher

	mu sync.Mutex // guards what follows, and the leases
	machine
	schedule
	pulse  chan struct{} // closed and made again with each change
	closed bool          // Close was called
}

// machine is what is known of the machine's GPUs.
type machine struct {
	driver   string
	cuda     string
	gpus     map[string]*gpuRecord // by UUID; see unidentified
	watching bool                  // the driver answers
	trouble  error                 // why it does not
}

// New makes a Keeper. It asks nobody anything before Start.
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
		schedule: schedule{maxTurn: cfg.Turn, moment: cfg.Linger},
		pulse:    make(chan struct{}),
	}
	k.watcher = newWatcher(k)
	k.linger = time.AfterFunc(time.Hour, func() { k.change(func() { k.lingerAt = time.Time{} }) })
	k.linger.Stop()
	return k
}

// Start begins to watch the driver. It is called once; it does not wait for an
// answer.
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

// Lend makes a lease of a sheep's share, which may be empty until Assign. The
// lease's Close gives it back.
func (k *Keeper) Lend(s Share) *Lease {
	l := &Lease{k: k, share: s, runner: runner{yield: make(chan struct{}, 1)}, outage: outage{fault: make(chan struct{})}, used: time.Now()}
	k.change(func() {
		k.leases = append(k.leases, l)
		k.assign(l, s.Devices)
		l.told = k.admission(l)
	})
	return l
}

// assign makes these the lease's devices.
func (k *Keeper) assign(l *Lease, devices []gpu.Grant) {
	l.share.Devices = devices
	for _, g := range devices {
		if g.GPU != nil {
			k.register(*g.GPU)
		}
	}
	k.bind()
}

// change does something to what is known and settles what follows from it.
func (k *Keeper) change(do func()) {
	k.mu.Lock()
	do()
	k.settle()
	var told []func()
	for _, l := range k.leases {
		now := k.admission(l)
		if now > l.told && l.changed != nil {
			told = append(told, l.changed)
		}
		l.told = now
	}
	close(k.pulse)
	k.pulse = make(chan struct{})
	k.mu.Unlock()
	for _, tell := range told {
		tell()
	}
}

// device is a GPU, or a MIG instance of one, that sheep have a share of.
type device struct {
	key      string     // its UUID or, where that is not known, its name
	name     string     // for people
	record   *gpuRecord // nil where the driver does not tell of it
	instance string     // the MIG instance's UUID
	capacity int64      // bytes; 0 where it is not known
}

// bind finds out what the devices of leases are, as far as it is known now.
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

// resolve says which device is meant.
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
		for _, c := range m.gpus { // out, as long as it cannot be identified
			if c.UUID == "" && g.Device.Kind == gpu.NVIDIA && g.Device.Name == strconv.Itoa(c.Index) {
				return &device{key: unidentified(c.Index), name: c.String(), record: c}
			}
		}
		d := g.Device
		d.Node = false // /dev/nvidia0 and nvidia.com/gpu=0 are the same, as far as is known
		return &device{key: d.String(), name: g.Device.String()}
	case g.Instance == nil:
		c := m.gpus[g.GPU.UUID]
		return &device{key: g.GPU.UUID, name: c.String(), record: c, capacity: int64(g.GPU.Memory)}
	}
	c := m.gpus[g.GPU.UUID]
	name := "MIG instance " + g.Instance.UUID + " of " + c.String()
	return &device{key: g.Instance.UUID, name: name, record: c, instance: g.Instance.UUID, capacity: int64(g.Instance.Memory)}
}

// inventory is what is known of the GPUs.
func (m *machine) inventory() gpu.Inventory {
	inv := gpu.Inventory{Driver: m.driver, CUDA: m.cuda}
	for _, c := range m.gpus {
		inv.GPUs = append(inv.GPUs, c.GPU)
	}
	slices.SortFunc(inv.GPUs, func(a, b gpu.GPU) int { return cmp.Compare(a.Index, b.Index) })
	return inv
}

// request is a sheep's wish to have its devices.
type request struct {
	lease   *Lease
	granted chan error
	has     bool // it was granted
	over    bool
}
