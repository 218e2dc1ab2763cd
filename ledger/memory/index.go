package memory

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// index finds records without reading all of them. Each change of a record updates it.
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

// indexed is the state of a record in the index.
type indexed struct {
	state   job.State
	waits   bool      // claimable
	listed  bool      // in its group's list
	held    heldKey   // where claimed is not zero
	claimed time.Time // by whoever holds it
	timer   time.Time // when the record is due
}

// groupKey is the key of jobs of which a slot takes the oldest first.
type groupKey struct {
	priority int
	model    job.Model
	address  string
	tenant   string
}

// group is the claimable jobs with a key.
type group struct {
	jobs int
	list []*record // by Seq, including some that are no longer claimable
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

// enter adds a new record to the index.
func (d *database) enter(r *record) {
	d.index.byID[r.ID] = r
	for _, id := range r.After {
		d.index.after[id] = append(d.index.after[id], r)
	}
	d.update(r)
}

// leave removes a record from the index.
func (d *database) leave(r *record) {
	x := &d.index
	if x.byID[r.ID] == r {
		delete(x.byID, r.ID)
	}
	x.count(r, "")
	delete(x.removable, r)
	r.at.timer = time.Time{}
}

// update updates the index after a change of a record.
func (d *database) update(r *record) {
	x := &d.index
	x.count(r, r.State)
	if waits := r.Claimable(); waits != r.at.waits {
		x.wait(r, waits)
	}
	d.hold(r)
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

// count counts a record by its state, which is empty for a removed record.
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

// wait adds a job to the claimable ones, or removes it.
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

// oldest returns the first claimable job. The group has one.
func (g *group) oldest() *record {
	for !g.list[0].at.waits {
		g.list[0].at.listed = false
		g.list = g.list[1:]
	}
	return g.list[0]
}

// hold updates the sums of held jobs.
func (d *database) hold(r *record) {
	x := &d.index
	var claimed time.Time
	if r.Token != 0 {
		claimed = r.ClaimedAt
	}
	if claimed.Equal(r.at.claimed) {
		return
	}
	if !r.at.claimed.IsZero() {
		sum := x.heldOf[r.at.held]
		sum.claimed -= r.at.claimed.Sub(d.clock.began)
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
	sum.claimed += claimed.Sub(d.clock.began)
}

// dueAt is when the job becomes claimable or fails; zero for never.
func (r *record) dueAt() time.Time {
	at := r.GiveUpAt()
	if r.Delayed && !r.Blocked && (at.IsZero() || r.NotBefore.Before(at)) {
		at = r.NotBefore
	}
	return at
}

// timer is the time at which a record is due, unless the record has another by now.
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

// due removes and returns the records whose time has come, and returns the next time; zero
// for none.
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
