package keeper

import (
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
)

// settle grants what can be granted and asks those to yield that are in the way.
func (k *Keeper) settle() {
	now := time.Now()
	blocked := make(map[*device]bool) // for all who wait behind
	for _, r := range slices.Clone(k.queue) {
		l := r.lease
		if why := l.out(); why != nil {
			k.drop(r)
			r.granted <- why
			continue
		}
		switch {
		case l.using > 0: // it waits for nobody but itself
			continue
		case l.up && !l.yielding && !l.renew && !(k.turnOver(l, now) && blocks(blocked, l)):
			k.grant(r)
			continue
		case !l.up && !blocks(blocked, l):
			victims, ok := k.room(l, func(v *Lease) bool { return k.yields(v, now) })
			if ok && len(victims) == 0 {
				k.grant(r)
				continue
			}
			for _, v := range victims {
				v.requestYield()
			}
		}
		block(blocked, l)
	}
	for _, l := range k.leases {
		if l.up && l.using == 0 && (l.renew || l.out() != nil) {
			l.requestYield()
		}
		if out := l.out() != nil; out != l.down {
			if l.down = out; out {
				close(l.fault)
			} else {
				l.fault = make(chan struct{})
			}
		}
	}
}

func block(blocked map[*device]bool, l *Lease) {
	for _, d := range l.devices {
		blocked[d] = true
	}
}

func blocks(blocked map[*device]bool, l *Lease) bool {
	return slices.ContainsFunc(l.devices, func(d *device) bool { return blocked[d] })
}

// grant gives the sheep its devices.
func (k *Keeper) grant(r *request) {
	l := r.lease
	if !l.occupies() {
		l.turn = time.Now()
	}
	l.using++
	k.drop(r)
	r.has = true
	r.granted <- nil
}

// drop takes the request off the queue, if it is there.
func (k *Keeper) drop(r *request) {
	k.queue = slices.DeleteFunc(k.queue, func(other *request) bool { return other == r })
}

// end ends a request, granted or not.
func (k *Keeper) end(r *request) {
	switch {
	case r.over:
	case r.has:
		r.lease.using--
		r.lease.used = time.Now()
	default:
		k.drop(r)
	}
	r.over = true
}

// occupies says whether the sheep has something on its devices, or may have.
func (l *Lease) occupies() bool { return l.using > 0 || l.up }

// meets says whether two leases have a device in common.
func (l *Lease) meets(other *Lease) bool {
	return slices.ContainsFunc(l.devices, func(d *device) bool { return slices.Contains(other.devices, d) })
}

// turnOver says whether the sheep has to give way to those who wait.
func (k *Keeper) turnOver(l *Lease, now time.Time) bool { return now.Sub(l.turn) >= k.cfg.Turn }

// waits says whether the sheep has a request that is not granted.
func (k *Keeper) waits(l *Lease) bool {
	return slices.ContainsFunc(k.queue, func(r *request) bool { return r.lease == l })
}

// yields says whether an idle sheep may be asked to, for another. One that has
// just become idle is given a moment to begin its next job, which spares two
// changes of models.
func (k *Keeper) yields(l *Lease, now time.Time) bool {
	switch {
	case k.turnOver(l, now):
		return true
	case k.waits(l):
		return false
	}
	at := l.used.Add(k.cfg.Linger)
	if now.Before(at) {
		if k.lingerAt.IsZero() || at.Before(k.lingerAt) {
			k.lingerAt = at
			k.linger.Reset(at.Sub(now))
		}
		return false
	}
	return true
}

// room says whether the sheep has room on its devices once the victims, idle
// sheep that yield, are gone. It is not ok, with no victims, where sheep that do
// not yield are in the way, or others that are going already.
func (k *Keeper) room(l *Lease, yields func(*Lease) bool) (victims []*Lease, ok bool) {
	var there, staying []*Lease
	var idle []*Lease
	for _, other := range k.leases {
		if other == l || !other.occupies() || !other.meets(l) {
			continue
		}
		there = append(there, other)
		switch {
		case other.yielding:
		case other.using == 0 && yields(other):
			idle = append(idle, other)
		default:
			staying = append(staying, other)
		}
	}
	if fits(l, there) {
		return nil, true
	}
	if !fits(l, staying) {
		return nil, false
	}
	// Those that are used least recently go, but no more than have to.
	slices.SortStableFunc(idle, func(a, b *Lease) int {
		if wa, wb := k.waits(a), k.waits(b); wa != wb {
			if wb {
				return -1
			}
			return 1
		}
		return a.used.Compare(b.used)
	})
	for i := len(idle) - 1; i >= 0; i-- {
		if with := append(slices.Clone(staying), idle[i]); fits(l, with) {
			staying = with
		} else {
			victims = append(victims, idle[i])
		}
	}
	if len(victims) == 0 {
		return nil, false // room there is when those who are going are gone
	}
	return victims, true
}

// fits says whether the sheep can be on its devices together with others.
func fits(l *Lease, others []*Lease) bool {
	for _, d := range l.devices {
		sum := l.share.Memory
		for _, other := range others {
			if !slices.Contains(other.devices, d) {
				continue
			}
			if d.capacity == 0 || l.share.Memory == 0 || other.share.Memory == 0 {
				return false
			}
			if sum += other.share.Memory; sum > d.capacity {
				return false
			}
		}
	}
	return true
}

// idle says whether the sheep may have its devices at once, with nobody waiting
// for them.
func (k *Keeper) idle(l *Lease) bool {
	if l.out() != nil {
		return false
	}
	for _, r := range k.queue {
		if r.lease == l || r.lease.meets(l) {
			return false
		}
	}
	victims, ok := k.room(l, func(*Lease) bool { return false })
	return ok && len(victims) == 0
}

// admission says which jobs the sheep may claim. Jobs for any sheep are left to
// those that have the devices already, as long as they have work.
func (k *Keeper) admission(l *Lease) job.Admission {
	switch {
	case l.out() != nil:
		return job.NoJobs
	case l.up && !l.yielding && !l.renew:
		return job.AnyNow
	}
	for _, r := range k.queue {
		if r.lease != l && r.lease.using == 0 && r.lease.meets(l) {
			return job.OwnJobs
		}
	}
	victims, ok := k.room(l, func(v *Lease) bool { return !k.waits(v) })
	switch {
	case ok && len(victims) == 0:
		return job.AnyNow
	case ok:
		return job.AnyJobs
	}
	return job.OwnJobs
}
