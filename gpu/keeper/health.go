package keeper

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/iterait/shepherd/gpu"
)

// gpuRecord is the state of a GPU that the driver lists or has listed.
type gpuRecord struct {
	gpu.GPU
	seen    time.Time // when the driver last reported its state
	vacated time.Time // when a runner on it last ended
	errors  *uint64   // the last count of uncorrectable ECC errors

	ours    map[int]string // sheep by the pids of their runners' processes on the GPU
	leaving map[int]string // the same for runners that have ended
	foreign []gpu.Process
	logged  map[int]bool // pids of foreign processes that were logged

	out      string // why the GPU is out of service; empty if it is healthy
	untested string // why the last retest failed
	since    time.Time
	retest   time.Time
	outs     int // how many times in a row it went out of service soon after its return
	back     time.Time
}

// String describes the GPU for people.
func (c *gpuRecord) String() string {
	if c.UUID == "" {
		return fmt.Sprintf("GPU %d (which does not answer)", c.Index)
	}
	return fmt.Sprintf("GPU %d (%s, %s)", c.Index, c.Name, c.UUID)
}

// short is String without the GPU's name and UUID.
func (c *gpuRecord) short() string {
	if c.UUID == "" {
		return c.String()
	}
	return fmt.Sprintf("GPU %d", c.Index)
}

// reason says why the GPU is out of service, and why a retest failed.
func (c *gpuRecord) reason() string {
	if c.untested == "" {
		return c.out
	}
	return c.out + "; it could not be tested: " + c.untested
}

func (c *gpuRecord) isForeign(pid int) bool {
	return slices.ContainsFunc(c.foreign, func(p gpu.Process) bool { return p.PID == pid })
}

// left records that the runner of a lease has ended.
func (c *gpuRecord) left(l *Lease, now time.Time) {
	c.vacated = now
	for pid, sheep := range c.ours {
		if sheep == l.share.Sheep {
			c.leaving[pid] = sheep
			delete(c.ours, pid)
		}
	}
}

// unidentified is the key of a GPU whose UUID was never read, because it does not answer.
func unidentified(index int) string { return fmt.Sprint("index ", index) }

// register records a GPU that the driver lists, without its State, and returns its
// record. A GPU without a UUID is the one that had its index before, unless others, the
// UUIDs that the driver lists, has that one's.
func (m *machine) register(g gpu.GPU, others ...string) *gpuRecord {
	key := g.UUID
	if key == "" {
		for _, c := range m.gpus {
			if c.UUID != "" && c.Index == g.Index && !slices.Contains(others, c.UUID) {
				return c
			}
		}
		key = unidentified(g.Index)
	} else {
		delete(m.gpus, unidentified(g.Index))
	}
	c := m.gpus[key]
	if c == nil {
		c = &gpuRecord{leaving: make(map[int]string), logged: make(map[int]bool), ours: make(map[int]string)}
		m.gpus[key] = c
	}
	state := c.State
	c.GPU = g
	c.State = state
	return c
}

// find returns the GPU of a sample, nil if it is not known.
func (m *machine) find(s gpu.Sample) *gpuRecord {
	if s.UUID != "" {
		return m.gpus[s.UUID]
	}
	for _, c := range m.gpus {
		if s.State != nil && c.Index == s.Index {
			return c
		}
	}
	return nil
}

// faultOf returns what is wrong with a GPU in this state, "" if nothing is.
func faultOf(s *gpu.State) string {
	switch {
	case s.Lost:
		return "it does not answer any more (it fell off the bus)"
	case s.ResetRequired:
		return "the driver says that it must be reset"
	case s.RowRemapFailed:
		return "the driver says that its memory must be repaired (a row could not be remapped)"
	}
	return ""
}

// setState records a GPU's state, and retires the GPU if the state has a fault or new
// uncorrectable errors.
func (k *Keeper) setState(c *gpuRecord, s gpu.State, now time.Time) {
	if s.Lost { // the other fields are not valid
		c.Lost = true
	} else {
		c.State = s
		c.seen = now
		k.attribute(c)
	}
	if why := faultOf(&s); why != "" {
		k.retire(c, why)
	}
	if s.Uncorrectable == nil {
		return
	}
	before := c.errors
	n := *s.Uncorrectable
	c.errors = &n
	if before != nil && n > *before {
		k.retire(c, fmt.Sprintf("it had %d uncorrectable ECC errors", n-*before))
	}
}

// retire takes a GPU out of service, and schedules its retest.
func (k *Keeper) retire(c *gpuRecord, why string) {
	now := time.Now()
	if c.out != "" {
		c.out, c.untested = why, ""
		return
	}
	// The wait doubles, up to maxDoublings times, each time that the GPU goes out of
	// service again soon after it came back.
	const maxDoublings = 6
	if c.outs > 0 && now.Sub(c.back) > 10*k.cfg.Retest {
		c.outs = 0
	}
	c.out, c.since, c.retest = why, now, now.Add(k.cfg.Retest<<min(c.outs, maxDoublings))
	c.outs++
	k.report(c, "", why)
	k.log.Error("A GPU is out of service", "gpu", c.String(), "error", why, "retest", c.retest.UTC().Format(time.RFC3339))
	k.watcher.wakeTester()
}

// observe handles a sample of the watch.
func (k *Keeper) observe(s gpu.Sample) {
	k.change(func() {
		c := k.find(s)
		if c == nil {
			return
		}
		if s.State != nil {
			k.setState(c, *s.State, time.Now())
		}
		if s.Xid != nil {
			k.xid(c, *s.Xid)
		}
	})
}

// xid applies the rule for an Xid error.
func (k *Keeper) xid(c *gpuRecord, x gpu.Xid) {
	rule, known := k.cfg.Xids[x.Code]
	if !known {
		rule = XidRule{Action: FailJob, Text: "see NVIDIA's list of Xid errors"}
	}
	text := fmt.Sprintf("Xid %d, %s", x.Code, rule.Text)
	switch rule.Action {
	case Ignore:
		k.log.Debug("A GPU reported an Xid", "gpu", c.String(), "xid", x.Code, "text", rule.Text)
	case Retire:
		k.retire(c, "it reported "+text)
	default:
		k.log.Warn("A GPU reported an Xid", "gpu", c.String(), "xid", x.Code, "text", rule.Text)
		k.report(c, x.MIG, "it reported "+text)
	}
}

// report reports an event of a GPU, or of one of its MIG instances, to the leases of it.
func (s *schedule) report(c *gpuRecord, instance, what string) {
	for _, l := range s.leases {
		for _, d := range l.devices {
			if d.record == c && (instance == "" || d.instance == "" || d.instance == instance) {
				l.report(c.String() + ": " + what)
				break
			}
		}
	}
}

// watchable returns the PCI addresses of the GPUs to watch; nil with any set means all.
// any is false if there is none to watch. A GPU that is out of service is not watched,
// because the driver cannot reset a GPU that a process has open.
func (m *machine) watchable() (pci []string, any bool) {
	out := 0
	for _, c := range m.order() {
		switch {
		case c.PCI == "" && c.UUID != "":
			return nil, true // without its address only all GPUs can be watched
		case c.out != "":
			out++
		default:
			pci = append(pci, c.PCI)
		}
	}
	if out == 0 {
		return nil, true
	}
	return pci, len(pci) > 0
}

// applyInventory records the driver's list of GPUs, and retires those that are missing.
func (k *Keeper) applyInventory(inv *gpu.Inventory) {
	if k.trouble != nil {
		k.log.Info("The GPU driver answers again", "driver", inv.Driver)
	}
	k.driver, k.cuda, k.watching, k.trouble = inv.Driver, inv.CUDA, true, nil
	now := time.Now()
	seen := k.registerAll(inv)
	k.bind()
	for i, g := range inv.GPUs {
		k.setState(seen[i], g.State, now)
	}
	for key, c := range k.gpus {
		switch {
		case slices.Contains(seen, c):
		case c.UUID == "":
			delete(k.gpus, key)
		default:
			k.retire(c, "the driver does not list it any more")
		}
	}
}

// registerAll registers the GPUs of an inventory and returns them in its order.
func (m *machine) registerAll(inv *gpu.Inventory) []*gpuRecord {
	uuids := make([]string, len(inv.GPUs))
	for i, g := range inv.GPUs {
		uuids[i] = g.UUID
	}
	list := make([]*gpuRecord, len(inv.GPUs))
	for i, g := range inv.GPUs {
		list[i] = m.register(g, uuids...)
	}
	return list
}

// lost records that the watch has failed.
func (k *Keeper) lost(err error) {
	k.change(func() {
		if k.trouble == nil || k.trouble.Error() != err.Error() {
			k.log.Warn("The health of the GPUs is not known; sheep continue as if they were healthy", "error", err)
		}
		k.watching, k.trouble = false, err
		for _, l := range k.leases {
			l.closeAll()
		}
	})
}

// order returns the GPUs, sorted by index.
func (m *machine) order() []*gpuRecord {
	return slices.SortedFunc(maps.Values(m.gpus), func(a, b *gpuRecord) int { return cmp.Compare(a.Index, b.Index) })
}
