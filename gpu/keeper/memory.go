package keeper

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/gpu"
)

// memoryError says why the memory for a model is not free.
type memoryError string

func (e memoryError) Error() string { return string(e) }
func (e memoryError) Unwrap() error { return errdefs.ErrUnavailable }

// Prepare waits until the memory that the sheep needs is free, by a report of the driver
// that is later than the last runner's end. While the driver does not answer it returns
// at once. The error is of class errdefs.ErrUnavailable after Config.MemoryWait, or ctx's.
func (l *Lease) Prepare(ctx context.Context) error {
	timeout := time.NewTimer(l.k.cfg.MemoryWait)
	defer timeout.Stop()
	defer func() {
		l.k.mu.Lock()
		defer l.k.mu.Unlock()
		l.waitingFor = ""
	}()
	for {
		var missing string
		l.k.mu.Lock()
		changed := l.k.changed
		for _, d := range l.devices {
			if missing = l.missing(d); missing != "" {
				l.evictIdle(d)
				break
			}
		}
		l.waitingFor = missing
		l.k.mu.Unlock()
		if missing == "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			return memoryError(missing)
		}
	}
}

// missing says why the memory that the sheep needs of a device is not free; "" if it is,
// or if that is not known.
func (l *Lease) missing(d *device) string {
	c := d.record
	if c == nil || !l.k.watching || !l.share.Shared && l.share.Memory == 0 {
		return ""
	}
	if c.seen.Before(c.vacated) {
		return fmt.Sprintf("the driver has not reported yet how much memory of %s is free, %s after a runner on it ended", d.name, time.Since(c.vacated).Round(time.Millisecond))
	}
	free := d.free()
	var have []string
	for _, p := range c.Processes {
		if d.instance != "" && p.MIG != d.instance {
			continue
		}
		had, leaving := c.leaving[p.PID]
		if l.share.Memory == 0 && !leaving {
			continue // other programs may stay; the sheep takes the rest
		}
		who := "which is not shepherd's"
		switch owner := l.k.owner(c, p.PID); {
		case leaving:
			who = "left by sheep " + had
		case owner != nil:
			who = "of sheep " + owner.share.Sheep
		}
		have = append(have, fmt.Sprintf("process %d (%s), %s, has %s", p.PID, l.k.procs.name(p.PID), who, amount(p.Used)))
	}
	has := strings.Join(have, "; ")
	switch {
	case l.share.Memory == 0 && has != "":
		return fmt.Sprintf("%s is not free yet: %s", d.name, has)
	case free < l.share.Memory:
		text := fmt.Sprintf("%s has %s of %s free, sheep %s needs %s (gpu_memory)", d.name, amount(free), amount(d.capacity), l.share.Sheep, amount(l.share.Memory))
		if has != "" {
			text += ": " + has
		}
		return text
	}
	return ""
}

// free returns how many bytes of the device's memory are free.
func (d *device) free() int64 {
	used := int64(d.record.Used)
	if d.instance != "" {
		used = 0
		for _, p := range d.record.Processes {
			if p.MIG == d.instance {
				used += int64(p.Used)
			}
		}
	}
	return max(d.capacity-used, 0)
}

// evictIdle asks the least recently used idle sheep on the device to unload its model,
// to free memory for this one.
func (l *Lease) evictIdle(d *device) {
	var idle *Lease
	for _, other := range l.k.leases {
		if other == l || !other.up || other.using > 0 || !slices.Contains(other.devices, d) {
			continue
		}
		if other.yielding {
			return
		}
		if idle == nil || other.used.Before(idle.used) {
			idle = other
		}
	}
	if idle != nil && !d.record.seen.Before(d.record.vacated) {
		idle.requestYield()
	}
}

// owner returns the lease of the sheep whose runner a process belongs to, nil if it
// belongs to none.
func (k *Keeper) owner(c *gpuRecord, pid int) *Lease {
	for _, l := range k.leases {
		if l.up && l.pid > 0 && l.on(c) && k.procs.belongs(pid, l.pid) {
			return l
		}
	}
	return nil
}

// on reports whether the lease has a device of the GPU.
func (l *Lease) on(c *gpuRecord) bool {
	return slices.ContainsFunc(l.devices, func(d *device) bool { return d.record == c })
}

// attribute assigns the processes on a GPU to sheep, and records the memory they use.
func (k *Keeper) attribute(c *gpuRecord) {
	used := make(map[*Lease]int64)
	ours := make(map[int]string)
	var foreign []gpu.Process
	certain := true
	for _, p := range c.Processes {
		switch owner := k.owner(c, p.PID); {
		case owner != nil:
			used[owner] += int64(p.Used)
			ours[p.PID] = owner.share.Sheep
		case c.leaving[p.PID] == "":
			foreign = append(foreign, p)
		}
	}
	for _, l := range k.leases {
		if !l.on(c) {
			continue
		}
		certain = certain && (!l.up || l.pid > 0)
		if l.memory == nil {
			l.memory = make(map[*gpuRecord]int64)
		}
		l.memory[c] = used[l]
		if l.account != nil {
			l.account.peak = max(l.account.peak, l.total())
		}
	}
	c.ours = ours
	for pid := range c.leaving {
		if !slices.ContainsFunc(c.Processes, func(p gpu.Process) bool { return p.PID == pid }) {
			delete(c.leaving, pid)
		}
	}
	if !certain { // a runner is up whose pid is not known yet
		foreign = nil
	}
	for _, p := range foreign {
		// A process that has just started may turn out to be a runner's, so it is logged
		// only when it is foreign twice in a row.
		if c.isForeign(p.PID) && !c.logged[p.PID] {
			c.logged[p.PID] = true
			k.log.Warn("A process that is not shepherd's uses a GPU", "gpu", c.String(), "pid", p.PID, "name", k.procs.name(p.PID), "memory", amount(p.Used))
		}
	}
	c.foreign = foreign
	for pid := range c.logged {
		if !c.isForeign(pid) {
			delete(c.logged, pid)
		}
	}
}

// amount formats a number of bytes for people.
func amount[T int64 | uint64](bytes T) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
}
