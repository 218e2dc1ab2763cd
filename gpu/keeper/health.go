package keeper

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/iterait/shepherd/gpu"
)

// gpuRecord is a GPU that the driver knows, or knew.
type gpuRecord struct {
	gpu.GPU
	seen    time.Time // when its state was told last
	vacated time.Time // when a runner on it ended last
	errors  *uint64   // uncorrectable ones that are known

	ours    map[int]string // processes of runners, with their sheep
	leaving map[int]string // those of runners that have ended
	foreign []gpu.Process
	told    map[int]bool // foreign ones that the log has

	out      string // why it is; empty when it is well
	untested string // why the last test of it could not be made
	since    time.Time
	retest   time.Time
	outs     int // in a row
	back     time.Time
}

// String is the GPU for people.
func (c *gpuRecord) String() string {
	if c.UUID == "" {
		return fmt.Sprintf("GPU %d (which does not answer)", c.Index)
	}
	return fmt.Sprintf("GPU %d (%s, %s)", c.Index, c.Name, c.UUID)
}

// reason is why the GPU is out, and why that could not be tested.
func (c *gpuRecord) reason() string {
	if c.untested == "" {
		return c.out
	}
	return c.out + "; it could not be tested: " + c.untested
}

func (c *gpuRecord) isForeign(pid int) bool {
	return slices.ContainsFunc(c.foreign, func(p gpu.Process) bool { return p.PID == pid })
}

// left notes that the sheep's runner has ended.
func (c *gpuRecord) left(l *Lease, now time.Time) {
	c.vacated = now
	for pid, sheep := range c.ours {
		if sheep == l.share.Sheep {
			c.leaving[pid] = sheep
			delete(c.ours, pid)
		}
	}
}

// unidentified is the key of a GPU that was lost before it said its UUID.
func unidentified(index int) string { return fmt.Sprint("index ", index) }

// register records what the driver says of a GPU, but for its state. One that
// does not say its UUID is the one that was at its index before, unless others,
// the UUIDs that the driver knows, has that.
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
		c = &gpuRecord{leaving: make(map[int]string), told: make(map[int]bool), ours: make(map[int]string)}
		m.gpus[key] = c
	}
	state := c.State
	c.GPU = g
	c.State = state
	return c
}

// find returns the GPU that a sample is about; nil where it is not known.
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

// faultOf is what is wrong with a GPU in this state; empty where nothing is.
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

// state takes in how a GPU fares.
func (k *Keeper) state(c *gpuRecord, s gpu.State, now time.Time) {
	if s.Lost { // what else is said is of before
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

// retire takes a GPU out.
func (k *Keeper) retire(c *gpuRecord, why string) {
	now := time.Now()
	if c.out != "" {
		c.out, c.untested = why, ""
		return
	}
	// One that goes out again soon after it came back is tested less often.
	const longest = 6
	if c.outs > 0 && now.Sub(c.back) > 10*k.cfg.Retest {
		c.outs = 0
	}
	c.out, c.since, c.retest = why, now, now.Add(k.cfg.Retest<<min(c.outs, longest))
	c.outs++
	k.report(c, "", why)
	k.log.Error("A GPU is out", "gpu", c.String(), "error", why, "retest", c.retest.UTC().Format(time.RFC3339))
	k.watcher.wakeTester()
}

// observe takes in what the watch tells.
func (k *Keeper) observe(s gpu.Sample) {
	k.change(func() {
		c := k.find(s)
		if c == nil {
			return
		}
		if s.State != nil {
			k.state(c, *s.State, time.Now())
		}
		if s.Xid != nil {
			k.xid(c, *s.Xid)
		}
	})
}

// xid does what the table says of an Xid.
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

// report tells the sheep on a GPU, or on one of its MIG instances, what became
// of it.
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

// watchable are the addresses of the GPUs to watch, none for all; any is false
// where there is nothing to watch. A GPU that is out is let go of, because the
// driver resets none that a process has open.
func (m *machine) watchable() (pci []string, any bool) {
	out := 0
	for _, c := range m.order() {
		switch {
		case c.PCI == "" && c.UUID != "":
			return nil, true // then they can only be watched all together
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

// applyInventory records what the driver says there is.
func (k *Keeper) applyInventory(inv *gpu.Inventory) {
	if k.trouble != nil {
		k.log.Info("The GPU driver answers again", "driver", inv.Driver)
	}
	k.driver, k.cuda, k.watching, k.trouble = inv.Driver, inv.CUDA, true, nil
	now := time.Now()
	seen := k.registerAll(inv)
	k.bind()
	for i, g := range inv.GPUs {
		k.state(seen[i], g.State, now)
	}
	for key, c := range k.gpus {
		switch {
		case slices.Contains(seen, c):
		case c.UUID == "":
			delete(k.gpus, key)
		default:
			k.retire(c, "the driver does not know it any more")
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

// lost notes that the driver does not answer.
func (k *Keeper) lost(err error) {
	k.change(func() {
		if k.trouble == nil || k.trouble.Error() != err.Error() {
			k.log.Warn("It is not known how the GPUs fare; sheep go on as if all were well", "error", err)
		}
		k.watching, k.trouble = false, err
		for _, l := range k.leases {
			l.closeAll()
		}
	})
}

// order is the GPUs by index.
func (m *machine) order() []*gpuRecord {
	return slices.SortedFunc(maps.Values(m.gpus), func(a, b *gpuRecord) int { return cmp.Compare(a.Index, b.Index) })
}
