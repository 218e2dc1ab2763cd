package memory

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// index is what finds records without a look at all of them. It is brought up to date with
// each change of a record.
type index struct {
	byID      map[job.ID]*record
	waiting   map[groupKey]*group
	held      map[*record]struct{}
	heldOf    map[heldKey]*heldSum
	after     map[job.ID][]*record // that are after the job, by Seq
	removable map[*record]struct{} // whose files are to be removed at some time
	timers    timers
	counts    ledger.Counts
	queued    map[string]int // by tenant
}

// indexed is how a record stands in the index.
type indexed struct {
	state   job.State
	waits   bool      // it is claimable
	listed  bool      // it is in its group's list
	held    heldKey   // where claimed is not zero
	claimed time.Time // by whoever holds it
	timer   time.Time // when something becomes due
}

// groupKey is what jobs have in common among which a slot takes the oldest.
type groupKey struct {
	priority int
	model    job.Model
	address  string
	tenant   string
}

// group is the claimable jobs with a key.
type group struct {
	jobs int
	list []*record // by Seq, with some that are claimable no more
}

type heldKey struct {
	tenant string
	model  job.Model
}

// heldSum is how many jobs are held, and the sum of their claims' times since the ledger's
// beginning.
type heldSum struct {
	jobs    int
	claimed time.Duration
}

func newIndex() index {
	return index{
		byID: make(map[job.ID]*record), waiting: make(map[groupKey]*group), held: make(map[*record]struct{}), heldOf: make(map[heldKey]*heldSum),
		after: make(map[job.ID][]*record), removable: make(map[*record]struct{}), counts: make(ledger.Counts), queued: make(map[string]int),
	}
}

func (r *record) group() groupKey { return groupKey{r.Priority, r.Model, r.Sheep, r.Tenant} }

// enter takes a new record in.
func (l *Ledger) enter(r *record) {
	l.index.byID[r.ID] = r
	for _, id := range r.After {
		l.index.after[id] = append(l.index.after[id], r)
	}
	l.update(r)
}

// leave forgets a record.
func (l *Ledger) leave(r *record) {
	x := &l.index
	if x.byID[r.ID] == r {
		delete(x.byID, r.ID)
	}
	x.count(r, "")
	delete(x.removable, r)
	r.at.timer = time.Time{}
}

// update takes over how a record is now.
func (l *Ledger) update(r *record) {
	x := &l.index
	x.count(r, r.State)
	if waits := r.Claimable(); waits != r.at.waits {
		x.wait(r, waits)
	}
	l.hold(r)
	if r.RemoveAge > 0 {
		x.removable[r] = struct{}{}
	} else {
		delete(x.removable, r)
	}
	if at := r.dueAt(); !at.Equal(r.at.timer) {
		if r.at.timer = at; !at.IsZero() {
			heap.Push(&x.timers, timer{at, r})
		}
	}
}

// count counts a record by its state; empty for one that is there no more.
func (x *index) count(r *record, state job.State) {
	was := r.at.state
	if was == state {
		return
	}
	if was != "" {
		x.counts[was]--
	}
	if was == job.Queued {
		x.queued[r.Tenant]--
	}
	if state != "" {
		x.counts[state]++
	}
	if state == job.Queued {
		x.queued[r.Tenant]++
	}
	r.at.state = state
}

// wait has a job be claimable, or not.
func (x *index) wait(r *record, waits bool) {
	r.at.waits = waits
	key := r.group()
	g := x.waiting[key]
	if !waits {
		if g.jobs--; g.jobs == 0 {
			for _, listed := range g.list {
				listed.at.listed = false
			}
			delete(x.waiting, key)
		}
		return
	}
	if g == nil {
		g = &group{}
		x.waiting[key] = g
	}
	g.jobs++
	if r.at.listed {
		return
	}
	r.at.listed = true
	i, _ := slices.BinarySearchFunc(g.list, r.Seq, func(other *record, seq int64) int { return cmp.Compare(other.Seq, seq) })
	g.list = slices.Insert(g.list, i, r)
}

// oldest is the first that is claimable; there is one.
func (g *group) oldest() *record {
	for !g.list[0].at.waits {
		g.list[0].at.listed = false
		g.list = g.list[1:]
	}
	return g.list[0]
}

// hold takes over who holds a job.
func (l *Ledger) hold(r *record) {
	x := &l.index
	var claimed time.Time
	if r.Token != 0 {
		claimed = r.ClaimedAt
	}
	if claimed.Equal(r.at.claimed) {
		return
	}
	if !r.at.claimed.IsZero() {
		sum := x.heldOf[r.at.held]
		sum.claimed -= r.at.claimed.Sub(l.began)
		if sum.jobs--; sum.jobs == 0 {
			delete(x.heldOf, r.at.held)
		}
		delete(x.held, r)
	}
	if r.at.claimed = claimed; claimed.IsZero() {
		return
	}
	x.held[r] = struct{}{}
	r.at.held = heldKey{r.Tenant, r.Model}
	sum := x.heldOf[r.at.held]
	if sum == nil {
		sum = &heldSum{}
		x.heldOf[r.at.held] = sum
	}
	sum.jobs++
	sum.claimed += claimed.Sub(l.began)
}

// dueAt is when the job becomes claimable, or is given up; zero for never.
func (r *record) dueAt() time.Time {
	at := r.GiveUpAt()
	if r.Delayed && !r.Blocked && (at.IsZero() || r.NotBefore.Before(at)) {
		at = r.NotBefore
	}
	return at
}

// timer is a time at which something becomes due, unless the record has another since.
type timer struct {
	at time.Time
	of *record
}

// timers are a heap by time.
type timers []timer

func (t timers) Len() int { return len(t) }
func (t timers) Less(i, k int) bool {
	return cmp.Or(t[i].at.Compare(t[k].at), cmp.Compare(t[i].of.Seq, t[k].of.Seq)) < 0
}
func (t timers) Swap(i, k int) { t[i], t[k] = t[k], t[i] }
func (t *timers) Push(x any)   { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	last := (*t)[len(*t)-1]
	(*t)[len(*t)-1] = timer{}
	*t = (*t)[:len(*t)-1]
	return last
}

// due takes the records out whose time has come, and is the next time; zero for none.
func (t *timers) due(now time.Time) (due []*record, next time.Time) {
	for len(*t) > 0 {
		first := (*t)[0]
		switch {
		case !first.at.Equal(first.of.at.timer): // it has another, or none
		case first.at.After(now):
			return due, first.at
		default:
			first.of.at.timer = time.Time{}
			due = append(due, first.of)
		}
		heap.Pop(t)
	}
	return due, time.Time{}
}
