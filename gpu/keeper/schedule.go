package keeper

import (
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
)

// schedule is which sheep has its devices when. The Keeper's lock is held by the callers
// of its methods.
type schedule struct {
	maxTurn time.Duration // Config.Turn
	moment  time.Duration // Config.Linger

	leases   []*Lease
	queue    []*request  // in the order of asking
	linger   *time.Timer // settles when a lingering sheep's time is up
	lingerAt time.Time
}

// settle grants what can be granted and asks those to yield that are in the way.
func (s *schedule) settle() {
	now := time.Now()
	blocked := make(map[*device]bool) // for all who wait behind
	for _, r := range slices.Clone(s.queue) {
		l := r.lease
		if why := l.out(); why != nil {
			s.drop(r)
			r.granted <- why
			continue
		}
		switch {
		case l.using > 0: // it waits for nobody but itself
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
	r.has = true
	r.granted <- nil
}

// drop takes the request off the queue, if it is there.
func (s *schedule) drop(r *request) {
	s.queue = slices.DeleteFunc(s.queue, func(other *request) bool { return other == r })
}

// end ends a request, granted or not.
func (s *schedule) end(r *request) {
	switch {
	case r.over:
	case r.has:
		r.lease.using--
		r.lease.used = time.Now()
	default:
		s.drop(r)
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
func (s *schedule) turnOver(l *Lease, now time.Time) bool { return now.Sub(l.turn) >= s.maxTurn }

// waits says whether the sheep has a request that is not granted.
func (s *schedule) waits(l *Lease) bool {
	return slices.ContainsFunc(s.queue, func(r *request) bool { return r.lease == l })
}

// yields says whether an idle sheep may be asked to, for another. One that has
// just become idle is given a moment to begin its next job, which spares two
// changes of models.
func (s *schedule) yields(l *Lease, now time.Time) bool {
	switch {
	case s.turnOver(l, now):
		return true
	case s.waits(l):
		return false
	}
	at := l.used.Add(s.moment)
	if now.Before(at) {
		if s.lingerAt.IsZero() || at.Before(s.lingerAt) {
			s.lingerAt = at
			s.linger.Reset(at.Sub(now))
		}
		return false
	}
	return true
}

// room says whether the sheep has room on its devices once the victims, idle
// sheep that yield, are gone. It is not ok, with no victims, where sheep that do
// not yield are in the way, or others that are going already.
func (s *schedule) room(l *Lease, yields func(*Lease) bool) (victims []*Lease, ok bool) {
	var there, staying []*Lease
	var idle []*Lease
	for _, other := range s.leases {
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
func (s *schedule) idle(l *Lease) bool {
	if l.out() != nil {
		return false
	}
	for _, r := range s.queue {
		if r.lease == l || r.lease.meets(l) {
			return false
		}
	}
	victims, ok := s.room(l, func(*Lease) bool { return false })
	return ok && len(victims) == 0
}

// admission says which jobs the sheep may claim. Jobs for any sheep are left to
// those that have the devices already, as long as they have work.
func (s *schedule) admission(l *Lease) job.Admission {
	switch {
	case l.out() != nil:
		return job.NoJobs
	case l.up && !l.yielding && !l.renew:
		return job.AnyNow
	}
	for _, r := range s.queue {
		if r.lease != l && r.lease.using == 0 && r.lease.meets(l) {
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
