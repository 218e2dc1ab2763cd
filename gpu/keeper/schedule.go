package keeper

import (
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
)

// schedule decides which sheep has its devices when. Callers of its methods hold
// Keeper.mu.
type schedule struct {
	maxTurn    time.Duration // Config.Turn
	lingerTime time.Duration // Config.Linger

	leases   []*Lease
	queue    []*request  // in the order of the calls of Request
	linger   *time.Timer // calls settle when a sheep's lingerTime has passed
	lingerAt time.Time
}

// settle grants the requests that can be granted, and asks idle sheep to yield that are
// in the way of others.
func (s *schedule) settle() {
	now := time.Now()
	blocked := make(map[*device]bool) // devices that later requests may not get
	for _, r := range slices.Clone(s.queue) {
		l := r.lease
		if why := l.out(); why != nil {
			s.drop(r)
			r.result <- why
			continue
		}
		switch {
		case l.using > 0: // it waits for the sheep's own earlier request
			continue
		case l.up && !l.yielding && !l.renew && !(s.turnOver(l, now) && blocks(blocked, l)):
			s.grant(r)
			continue
		case !l.up && !blocks(blocked, l):
			victims, ok := s.room(l, func(v *Lease) bool { return s.yields(v, now) })
			if ok && len(victims) == 0 {
				s.grant(r)
				continue
			}
			for _, v := range victims {
				v.requestYield()
			}
		}
		block(blocked, l)
	}
	for _, l := range s.leases {
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
func (s *schedule) grant(r *request) {
	l := r.lease
	if !l.occupies() {
		l.turn = time.Now()
	}
	l.using++
	s.drop(r)
	r.granted = true
	r.result <- nil
}

// drop removes the request from the queue, if it is in it.
func (s *schedule) drop(r *request) {
	s.queue = slices.DeleteFunc(s.queue, func(other *request) bool { return other == r })
}

// end ends a request, granted or not.
func (s *schedule) end(r *request) {
	switch {
	case r.over:
	case r.granted:
		r.lease.using--
		r.lease.used = time.Now()
	default:
		s.drop(r)
	}
	r.over = true
}

// occupies reports whether the sheep has a runner on its devices, or may start one.
func (l *Lease) occupies() bool { return l.using > 0 || l.up }

// overlaps reports whether two leases have a device in common.
func (l *Lease) overlaps(other *Lease) bool {
	return slices.ContainsFunc(l.devices, func(d *device) bool { return slices.Contains(other.devices, d) })
}

// turnOver reports whether the sheep's turn is over.
func (s *schedule) turnOver(l *Lease, now time.Time) bool { return now.Sub(l.turn) >= s.maxTurn }

// waits reports whether the sheep has a request that is not granted yet.
func (s *schedule) waits(l *Lease) bool {
	return slices.ContainsFunc(s.queue, func(r *request) bool { return r.lease == l })
}

// yields reports whether an idle sheep may be asked to yield to another. One that has
// just become idle keeps its devices for lingerTime, because its next job may come soon;
// that avoids unloading and loading its model.
func (s *schedule) yields(l *Lease, now time.Time) bool {
	switch {
	case s.turnOver(l, now):
		return true
	case s.waits(l):
		return false
	}
	at := l.used.Add(s.lingerTime)
	if now.Before(at) {
		if s.lingerAt.IsZero() || at.Before(s.lingerAt) {
			s.lingerAt = at
			s.linger.Reset(at.Sub(now))
		}
		return false
	}
	return true
}

// room returns the idle sheep, victims, that must yield so that the sheep fits on its
// devices; none if it fits now. It is not ok if sheep that do not yield are in the way,
// or if it fits when those that are yielding already have stopped.
func (s *schedule) room(l *Lease, yields func(*Lease) bool) (victims []*Lease, ok bool) {
	var present, staying []*Lease
	var idle []*Lease
	for _, other := range s.leases {
		if other == l || !other.occupies() || !other.overlaps(l) {
			continue
		}
		present = append(present, other)
		switch {
		case other.yielding:
		case other.using == 0 && yields(other):
			idle = append(idle, other)
		default:
			staying = append(staying, other)
		}
	}
	if fits(l, present) {
		return nil, true
	}
	if !fits(l, staying) {
		return nil, false
	}
	// The least recently used ones yield first, and no more of them than necessary.
	slices.SortStableFunc(idle, func(a, b *Lease) int {
		if wa, wb := s.waits(a), s.waits(b); wa != wb {
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
		return nil, false // it fits when the sheep that are yielding have stopped
	}
	return victims, true
}

// fits reports whether the sheep can use its devices together with the others.
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

// idle reports whether the sheep's devices are available at once and no other sheep waits
// for them.
func (s *schedule) idle(l *Lease) bool {
	if l.out() != nil {
		return false
	}
	for _, r := range s.queue {
		if r.lease == l || r.lease.overlaps(l) {
			return false
		}
	}
	victims, ok := s.room(l, func(*Lease) bool { return false })
	return ok && len(victims) == 0
}

// admission returns which jobs the sheep may claim. A sheep does not claim jobs that any
// sheep can run while others that occupy its devices can claim them.
func (s *schedule) admission(l *Lease) job.Admission {
	switch {
	case l.out() != nil:
		return job.NoJobs
	case l.up && !l.yielding && !l.renew:
		return job.AnyNow
	}
	for _, r := range s.queue {
		if r.lease != l && r.lease.using == 0 && r.lease.overlaps(l) {
			return job.OwnJobs
		}
	}
	victims, ok := s.room(l, func(v *Lease) bool { return !s.waits(v) })
	switch {
	case ok && len(victims) == 0:
		return job.AnyNow
	case ok:
		return job.AnyJobs
	}
	return job.OwnJobs
}
