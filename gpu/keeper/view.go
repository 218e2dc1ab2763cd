package keeper

import (
	"context"
	"slices"

	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/job"
)

// GPUs returns the state of the machine's GPUs and of the sheep that use them. If the
// driver is not watched (before Start, or because no sheep has devices), GPUs queries it,
// until ctx ends.
func (k *Keeper) GPUs(ctx context.Context) job.GPUs {
	k.mu.Lock()
	ask := !k.watching && k.trouble == nil
	k.mu.Unlock()
	if ask {
		inv, err := k.cfg.Source.Inventory(ctx)
		k.change(func() {
			switch {
			case k.watching: // the watch has started meanwhile
			case err != nil:
				return
			default:
				for _, g := range inv.GPUs {
					k.register(g).State = g.State
				}
				k.driver, k.cuda = inv.Driver, inv.CUDA
				k.bind()
			}
		})
		if err != nil {
			seen := k.Known()
			if seen.Trouble == "" {
				seen.Trouble = errtext.Of(err)
			}
			return seen
		}
	}
	return k.Known()
}

// Known is GPUs without a query.
func (k *Keeper) Known() job.GPUs {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := job.GPUs{Driver: k.driver, CUDA: k.cuda, GPUs: []job.GPU{}}
	if k.trouble != nil {
		all.Trouble = errtext.Of(k.trouble)
	}
	for _, c := range k.order() {
		g := job.GPU{
			Index: c.Index, UUID: c.UUID, Name: c.Name, Memory: int64(c.Memory), Used: int64(c.Used),
			Utilization: c.Utilization, Power: c.Power, Temperature: c.Temperature, ECC: c.Uncorrectable,
			Health: job.Well, Sheep: k.users(func(d *device) bool { return d.record == c }),
		}
		switch {
		case c.out != "":
			g.Health, g.Detail, g.Since, g.Retest = job.Out, c.reason(), c.since, c.retest
		case k.trouble != nil:
			g.Health, g.Detail = job.Unknown, all.Trouble
		}
		for _, p := range c.foreign {
			g.Foreign = append(g.Foreign, job.Process{PID: p.PID, Name: k.procs.name(p.PID), Used: int64(p.Used)})
		}
		all.GPUs = append(all.GPUs, g)
	}
	var seen []*device
	for _, l := range k.leases {
		for _, d := range l.devices {
			if d.record == nil && !slices.Contains(seen, d) {
				seen = append(seen, d)
				all.Others = append(all.Others, job.Device{Name: d.name, Sheep: k.users(func(other *device) bool { return other == d })})
			}
		}
	}
	return all
}

// users lists the sheep that have a share of a device.
func (k *Keeper) users(is func(*device) bool) []job.DeviceUser {
	var users []job.DeviceUser
	for _, l := range k.leases {
		for _, d := range l.devices {
			if !is(d) {
				continue
			}
			u := job.DeviceUser{Sheep: l.share.Sheep, Device: d.instance, Shared: l.share.Shared, Budget: l.share.Memory, Model: l.model}
			if l.account != nil {
				u.Job = l.account.job
			}
			if d.record != nil {
				u.Used = l.memory[d.record]
			}
			users = append(users, u)
		}
	}
	return users
}
