package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/gpu"
)

// card is a GPU that the driver knows, or knew.
type card struct {
	gpu.GPU
	seen    time.Time // when its state was told last
	vacated time.Time // when a runner on it ended last
	errors  *uint64   // uncorrectable ones that are known

	ours    map[int]string // processes of runners, with their sheep
	leaving map[int]string // those of runners that have ended
	foreign []gpu.Process
	told    map[int]bool // foreign ones that the log has

	out    string // why it is; empty when it is well
	since  time.Time
	retest time.Time
	outs   int // in a row
	back   time.Time
}

// String is the card for people.
func (c *card) String() string { return fmt.Sprintf("GPU %d (%s, %s)", c.Index, c.Name, c.UUID) }

func (c *card) isForeign(pid int) bool {
	return slices.ContainsFunc(c.foreign, func(p gpu.Process) bool { return p.PID == pid })
}

// left notes that the sheep's runner has ended.
func (c *card) left(l *Lease, now time.Time) {
	c.vacated = now
	for pid, sheep := range c.ours {
		if sheep == l.share.Sheep {
			c.leaving[pid] = sheep
			delete(c.ours, pid)
		}
	}
}

// know takes in what the driver says of a GPU.
func (k *Keeper) know(g gpu.GPU) *card {
	c := k.cards[g.UUID]
	if c == nil {
		c = &card{leaving: make(map[int]string), told: make(map[int]bool), ours: make(map[int]string)}
		k.cards[g.UUID] = c
	}
	state := c.State
	c.GPU = g
	c.State = state
	return c
}

// ill is what is wrong with a GPU in this state; empty where nothing is.
func ill(s *gpu.State) string {
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

// state takes in how a card fares.
func (k *Keeper) state(c *card, s gpu.State, now time.Time) {
	if s.Lost { // what else is said is of before
		c.Lost = true
	} else {
		c.State = s
		c.seen = now
		k.attribute(c)
	}
	if why := ill(&s); why != "" {
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

// retire takes a card out.
func (k *Keeper) retire(c *card, why string) {
	now := time.Now()
	if c.out != "" {
		c.out = why
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
	k.look()
}

// look has run look at what is out.
func (k *Keeper) look() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// observe takes in what the watch tells.
func (k *Keeper) observe(s gpu.Sample) {
	k.change(func() {
		c := k.cards[s.UUID]
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
func (k *Keeper) xid(c *card, x gpu.Xid) {
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

// report tells the sheep on a card, or on one of its MIG instances, what became
// of it.
func (k *Keeper) report(c *card, instance, what string) {
	for _, l := range k.leases {
		for _, d := range l.devices {
			if d.card == c && (instance == "" || d.instance == "" || d.instance == instance) {
				l.report(c.String() + ": " + what)
				break
			}
		}
	}
}

// How long the keeper waits before it asks a driver again that did not answer.
const (
	firstPause = 5 * time.Second
	lastPause  = time.Minute
)

// watch asks the driver what there is and watches it, again and again.
func (k *Keeper) watch() {
	pause := firstPause
	for k.ctx.Err() == nil {
		began := time.Now()
		err := k.session()
		if k.ctx.Err() != nil {
			return
		}
		k.lost(err)
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		if errdefs.IsNotFound(err) { // no driver: it will not be there soon
			pause = lastPause
		}
		select {
		case <-k.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// session asks what there is, watches it and tests what is out until the watch
// fails.
func (k *Keeper) session() error {
	inv, err := k.cfg.Source.Inventory(k.ctx)
	if err != nil {
		return err
	}
	k.change(func() { k.take(inv) })
	ctx, cancel := context.WithCancel(k.ctx)
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		err := k.cfg.Source.Watch(ctx, k.cfg.Interval, k.observe)
		if err == nil {
			err = errors.New("the watch on the GPUs ended")
		}
		ended <- err
	}()
	k.test(ctx)
	cancel()
	return <-ended
}

// take takes in an inventory.
func (k *Keeper) take(inv *gpu.Inventory) {
	if k.trouble != nil {
		k.log.Info("The GPU driver answers again", "driver", inv.Driver)
	}
	k.driver, k.cuda, k.watching, k.trouble = inv.Driver, inv.CUDA, true, nil
	now := time.Now()
	for _, g := range inv.GPUs {
		k.know(g)
	}
	k.bind()
	for _, g := range inv.GPUs {
		k.state(k.cards[g.UUID], g.State, now)
	}
	for uuid, c := range k.cards {
		if !slices.ContainsFunc(inv.GPUs, func(g gpu.GPU) bool { return g.UUID == uuid }) {
			k.retire(c, "the driver does not know it any more")
		}
	}
}

// lost notes that the driver does not answer.
func (k *Keeper) lost(err error) {
	k.change(func() {
		if k.trouble == nil || k.trouble.Error() != err.Error() {
			k.log.Warn("It is not known how the GPUs fare; sheep go on as if all were well", "error", err)
		}
		k.watching, k.trouble = false, err
		for _, l := range k.leases {
			l.tellAll()
		}
	})
}

// test tests what is out when its time has come, until ctx ends.
func (k *Keeper) test(ctx context.Context) {
	for ctx.Err() == nil { // what is due is so until it was tested
		var next <-chan time.Time
		due := false
		k.mu.Lock()
		for _, c := range k.cards {
			if c.out == "" {
				continue
			}
			wait := time.Until(c.retest)
			due = due || wait <= 0
			if next == nil && wait > 0 {
				next = time.After(wait)
			}
		}
		k.mu.Unlock()
		if due {
			k.retest(ctx)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-next:
		}
	}
}

// retest asks the driver for the cards that are out.
func (k *Keeper) retest(ctx context.Context) {
	inv, err := k.cfg.Source.Inventory(ctx)
	if ctx.Err() != nil {
		return
	}
	k.change(func() {
		now := time.Now()
		for _, c := range k.cards {
			if c.out == "" || now.Before(c.retest) {
				continue
			}
			why := ""
			if err == nil {
				i := slices.IndexFunc(inv.GPUs, func(g gpu.GPU) bool { return g.UUID == c.UUID })
				if i >= 0 {
					why = ill(&inv.GPUs[i].State)
				} else {
					why = "the driver does not know it any more"
				}
				if i >= 0 && why == "" {
					c.back, c.out, c.Lost = now, "", false
					c.errors = inv.GPUs[i].Uncorrectable
					k.state(c, inv.GPUs[i].State, now)
					k.log.Info("A GPU is back", "gpu", c.String(), "after", now.Sub(c.since).Round(time.Second))
					continue
				}
			} else {
				why = fmt.Sprintf("%s; it could not be tested: %v", c.out, err)
			}
			c.out, c.retest = why, now.Add(k.cfg.Retest)
		}
	})
}

// order is the cards by index.
func (k *Keeper) order() []*card {
	return slices.SortedFunc(maps.Values(k.cards), func(a, b *card) int { return cmp.Compare(a.Index, b.Index) })
}
