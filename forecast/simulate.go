package forecast

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
)

// State is the state of the flock and its queue.
type State struct {
	Now   time.Time
	Sheep []Sheep
	// Jobs are the waiting jobs that no sheep has prepared, oldest first.
	Jobs []Job
	// Turn returns how long a sheep prefers a model that took load to be loaded, while
	// older jobs of other models wait.
	Turn func(load time.Duration) time.Duration
	// Ahead is set if sheep claim and prepare the next job while they run one.
	Ahead bool
}

// Job is a waiting job.
type Job struct {
	ID       job.ID
	Model    job.Model
	Priority int
	Address  string // the sheep that it is addressed to; empty for any
	// NotBefore is when it can be claimed; zero for now.
	NotBefore time.Time
}

// Sheep is a sheep and its current job.
type Sheep struct {
	Name string
	// Can reports whether the sheep can run a model at all.
	Can func(job.Model) bool
	// Model is the model that is loaded or being loaded; zero for none.
	Model job.Model
	// TurnLeft is the remaining time of Model's turn.
	TurnLeft time.Duration
	// After is how long the idle sheep takes no job, for example after a fault.
	After time.Duration
	// Closed is set if the sheep claims no more jobs.
	Closed bool
	// Current is the sheep's current job; nil for none.
	Current *Current
	// Next is the job that it has claimed to run after Current; nil for none.
	Next *Job
}

// Current is the current job of a sheep.
type Current struct {
	ID    job.ID
	Model job.Model
	// Running is set if the runner has the job. For is how long the runner has had it or,
	// if it has not, the sheep.
	Running bool
	For     time.Duration
	// Done is the progress that the runner reported, from 0 to 1; 0 for none.
	Done float64
}

// Limits of the work for one forecast.
const (
	minRounds = 5
	maxRounds = 100
	maxWork   = 1 << 19 // comparisons, about
)

// seed is the same for all forecasts, so that an estimate changes only when its input does.
const seed = 0x5EED

// spread is the uncertainty of a model's durations if one job is known, as the standard
// deviation of the logarithm of a factor. It shrinks with the square root of the number of
// jobs.
const spread = 0.5

// Simulate estimates when the jobs of the state start and end.
func Simulate(s State, h *History) *Forecast {
	p := plan(s, h)
	rounds := min(max(maxWork/((len(s.Jobs)+1)*(len(p.groups)+len(s.Sheep)+1)), minRounds), maxRounds)
	p.starts, p.ends = make([][]time.Duration, len(p.jobs)), make([][]time.Duration, len(p.jobs)+len(s.Sheep))
	random := rand.New(rand.NewPCG(seed, seed))
	for range rounds {
		p.play(random)
	}
	f := &Forecast{Starts: make(map[job.ID]job.Estimate), Ends: make(map[job.ID]job.Estimate), waiting: make(map[job.ID]bool, len(p.jobs)), at: s.Now}
	for i, one := range p.jobs {
		f.waiting[one.ID] = true
		if e, ok := estimate(s.Now, p.starts[i]); ok {
			f.Starts[one.ID] = e
			if e.Likely.After(f.last.Likely) {
				f.last = e
			}
		}
		if e, ok := estimate(s.Now, p.ends[i]); ok {
			f.Ends[one.ID] = e
		}
	}
	for i, sheep := range s.Sheep {
		if sheep.Current == nil {
			continue
		}
		if e, ok := estimate(s.Now, p.ends[len(p.jobs)+i]); ok {
			f.Ends[sheep.Current.ID] = e
		}
	}
	return f
}

// planned is a State in the form used by the simulation.
type planned struct {
	State
	jobs   []Job // the jobs that sheep have prepared come first
	models []modelPlan
	of     []int // the model of each job
	groups []group
	may    [][]int        // the groups of which each sheep may have jobs
	can    []map[int]bool // by sheep, the models that it was asked for
	// For each sheep: the loaded model, the model of its current job, and the index of its
	// prepared job; -1 for none.
	loaded, has, next []int

	starts, ends [][]time.Duration // outcomes by job; in ends, followed by the sheep's current jobs
}

// modelPlan is what is known about a model.
type modelPlan struct {
	model       job.Model
	runs, loads []time.Duration
	off         float64 // see spread
	pace        time.Duration
	paceOff     float64 // as off
}

// group is jobs with the same model, address and earliest start, in scheduling order.
type group struct {
	model int
	ready time.Duration
	jobs  []int
}

func plan(s State, h *History) *planned {
	p := &planned{State: s}
	indexes := make(map[job.Model]int)
	var pooledRuns, pooledLoads []time.Duration
	index := func(m job.Model) int {
		if i, ok := indexes[m]; ok {
			return i
		}
		one := modelPlan{model: m}
		one.runs, one.loads = h.sorted(m)
		if pooledRuns == nil && (len(one.runs) == 0 || len(one.loads) == 0) {
			pooledRuns, pooledLoads = h.pool()
		}
		one.off = spread / math.Sqrt(float64(max(len(one.runs), 1)))
		if len(one.runs) == 0 {
			one.runs, one.off = pooledRuns, 2*spread
		}
		if len(one.loads) == 0 {
			one.loads = pooledLoads
		}
		pace, of := h.pace(m, s.Now)
		one.pace, one.paceOff = pace, spread/math.Sqrt(float64(max(of, 1)))
		indexes[m] = len(p.models)
		p.models = append(p.models, one)
		return indexes[m]
	}
	add := func(j Job) int {
		p.jobs, p.of = append(p.jobs, j), append(p.of, index(j.Model))
		return len(p.jobs) - 1
	}
	for _, sheep := range s.Sheep {
		loaded, has, next := -1, -1, -1
		if !sheep.Model.IsZero() {
			loaded = index(sheep.Model)
		}
		if sheep.Current != nil {
			has = index(sheep.Current.Model)
		}
		if sheep.Next != nil {
			next = add(*sheep.Next)
		}
		p.loaded, p.has, p.next = append(p.loaded, loaded), append(p.has, has), append(p.next, next)
	}
	type key struct {
		model   int
		address string
		ready   time.Duration
	}
	places := make(map[key]int)
	var addresses []string // of the groups
	for _, one := range s.Jobs {
		i := add(one)
		k := key{p.of[i], one.Address, 0}
		if one.NotBefore.After(s.Now) {
			k.ready = one.NotBefore.Sub(s.Now)
		}
		place, ok := places[k]
		if !ok {
			place = len(p.groups)
			places[k] = place
			p.groups, addresses = append(p.groups, group{model: k.model, ready: k.ready}), append(addresses, k.address)
		}
		p.groups[place].jobs = append(p.groups[place].jobs, i)
	}
	for _, g := range p.groups {
		slices.SortStableFunc(g.jobs, func(a, b int) int { return cmp.Compare(p.jobs[b].Priority, p.jobs[a].Priority) })
	}
	p.can = make([]map[int]bool, len(s.Sheep))
	for i, sheep := range s.Sheep {
		p.can[i] = make(map[int]bool, len(p.models))
		var may []int
		for g, address := range addresses {
			if !sheep.Closed && (address == sheep.Name || address == "" && p.able(i, p.groups[g].model)) {
				may = append(may, g)
			}
		}
		p.may = append(p.may, may)
	}
	return p
}

// able reports whether the sheep can run the model.
func (p *planned) able(i, m int) bool {
	able, asked := p.can[i][m]
	if !asked {
		able = p.Sheep[i].Can(p.models[m].model)
		p.can[i][m] = able
	}
	return able
}

// actor is a sheep during one simulation.
type actor struct {
	free     time.Duration // when it can take a job
	model    int
	turnEnds time.Duration
	next     int
}

// arrivals are future submissions of one model. They queue behind the waiting jobs, but a
// sheep with the model loaded may prefer them.
type arrivals struct {
	pace time.Duration
	next time.Duration // when the next one comes
	wait int           // how many have come and were not claimed
}

// round is one simulation.
type round struct {
	*planned
	random *rand.Rand
	factor []float64 // by model, of all its durations
	heads  []int     // how many jobs of each group have been claimed
	left   int       // jobs that wait
	coming []arrivals
	actors []actor
}

// play runs one simulation and adds its outcomes.
func (p *planned) play(random *rand.Rand) {
	r := &round{planned: p, random: random, heads: make([]int, len(p.groups)), left: len(p.jobs), actors: make([]actor, len(p.Sheep))}
	for _, m := range p.models {
		r.factor = append(r.factor, math.Exp(m.off*random.NormFloat64()))
		a := arrivals{pace: never, next: never}
		if m.pace != never {
			a.pace = time.Duration(float64(m.pace) * math.Exp(m.paceOff*random.NormFloat64()))
			a.next = time.Duration(float64(a.pace) * random.ExpFloat64())
		}
		r.coming = append(r.coming, a)
	}
	started := make([]bool, len(p.jobs))
	for i, sheep := range p.Sheep {
		a := actor{model: p.loaded[i], turnEnds: sheep.TurnLeft, next: p.next[i], free: sheep.After}
		if p.has[i] >= 0 {
			a.model = p.has[i]
			r.goOn(i, &a)
			p.ends[len(p.jobs)+i] = append(p.ends[len(p.jobs)+i], a.free)
		}
		r.actors[i] = a
	}
	for {
		i := r.first()
		if i < 0 || r.left == 0 {
			break
		}
		a := &r.actors[i]
		now, j := a.free, a.next
		a.next = none
		if j == none {
			j = r.choose(i, now)
		}
		if j == another {
			a.free = r.run(a, a.model, now)
			a.next = r.ahead(i, now)
			continue
		}
		if j == none {
			j = r.takeOver(i, now)
		}
		if j == none {
			a.free = r.idleUntil(i, now)
			continue
		}
		started[j] = true
		r.left--
		p.starts[j] = append(p.starts[j], now)
		m := p.of[j]
		a.free = r.run(a, m, now)
		p.ends[j] = append(p.ends[j], a.free)
		a.next = r.ahead(i, now)
	}
	for j, was := range started {
		if !was {
			p.starts[j], p.ends[j] = append(p.starts[j], never), append(p.ends[j], never)
		}
	}
}

// Results of choose besides the index of a job.
const (
	none    = -1 // no job
	another = -2 // a future job of the loaded model, see arrivals
)

// ahead returns the job that the sheep prepares after it has started one.
func (r *round) ahead(i int, now time.Duration) int {
	if !r.Ahead || r.actors[i].free == never {
		return none
	}
	return r.choose(i, now)
}

// comes reports whether a future job of the model has been submitted by now, and claims it.
func (r *round) comes(m int, now time.Duration) bool {
	c := &r.coming[m]
	for c.next <= now {
		c.wait++
		c.next += time.Duration(float64(c.pace)*r.random.ExpFloat64()) + 1
	}
	if c.wait == 0 {
		return false
	}
	c.wait--
	return true
}

// first returns the sheep that is free first; -1 if none ever is.
func (r *round) first() int {
	best, at := -1, never
	for i := range r.actors {
		if free := r.actors[i].free; free < at {
			best, at = i, free
		}
	}
	return best
}

// run simulates a job of the model on the sheep and returns its end.
func (r *round) run(a *actor, m int, now time.Duration) time.Duration {
	load := time.Duration(0)
	if a.model != m {
		load = r.draw(m, r.models[m].loads)
		a.model, a.turnEnds = m, now+load+r.Turn(load)
	}
	run := r.draw(m, r.models[m].runs)
	if run == 0 { // nothing is known of any job
		return never
	}
	return now + load + run
}

// draw returns a random duration, scaled by the model's factor in this simulation; 0 if
// there is none.
func (r *round) draw(m int, of []time.Duration) time.Duration {
	if len(of) == 0 {
		return 0
	}
	return time.Duration(float64(of[r.random.IntN(len(of))]) * r.factor[m])
}

// goOn simulates the rest of the sheep's current job.
func (r *round) goOn(i int, a *actor) {
	c, known := r.Sheep[i].Current, r.models[a.model]
	const enough = 0.05 // of a job, for its progress to tell how long it takes
	switch {
	case c.Running && c.Done >= enough:
		rest := float64(c.For) * (1 - min(c.Done, 1)) / c.Done
		a.free = time.Duration(rest * math.Exp(0.15*r.random.NormFloat64()))
	case c.Running:
		a.free = r.rest(a.model, known.runs, c.For)
	default:
		loaded := time.Duration(0)
		if len(known.loads) > 0 {
			loaded = r.rest(a.model, known.loads, c.For)
		}
		a.turnEnds = loaded + r.Turn(c.For+loaded)
		if a.free = never; len(known.runs) > 0 {
			a.free = loaded + r.draw(a.model, known.runs)
		}
	}
}

// rest returns the remaining time of something that has taken took already: drawn from the
// longer durations or, if took exceeds all of them, about a quarter of took.
func (r *round) rest(m int, of []time.Duration, took time.Duration) time.Duration {
	if len(of) == 0 {
		return never
	}
	least := time.Duration(float64(took) / r.factor[m])
	from, _ := slices.BinarySearch(of, least+1)
	if from == len(of) {
		return time.Duration(float64(took) * (0.05 + 0.4*r.random.Float64()))
	}
	drawn := of[from+r.random.IntN(len(of)-from)]
	return time.Duration(float64(drawn)*r.factor[m]) - took
}

// choose claims the next job for the sheep in scheduling order.
func (r *round) choose(i int, now time.Duration) int {
	a := &r.actors[i]
	before := func(j, other int) bool {
		if p, q := r.jobs[j].Priority, r.jobs[other].Priority; p != q {
			return p > q
		}
		return j < other
	}
	first, of, preferred, preferredOf := -1, -1, -1, -1
	for _, g := range r.may[i] {
		group := &r.groups[g]
		if r.heads[g] == len(group.jobs) || group.ready > now {
			continue
		}
		j := group.jobs[r.heads[g]]
		if first < 0 || before(j, first) {
			first, of = j, g
		}
		if group.model == a.model && (preferred < 0 || before(j, preferred)) {
			preferred, preferredOf = j, g
		}
	}
	if first < 0 {
		return none
	}
	turn := now < a.turnEnds
	switch {
	case turn && preferred < 0 && a.model >= 0 && r.jobs[first].Priority == 0 && r.comes(a.model, now):
		return another
	case preferred >= 0 && turn && r.jobs[preferred].Priority == r.jobs[first].Priority:
		first, of = preferred, preferredOf
	case !turn && r.of[first] == a.model: // it has another turn
		a.turnEnds = now + r.Turn(r.draw(a.model, r.models[a.model].loads))
	}
	r.heads[of]++
	return first
}

// takeOver takes a job that a busy sheep has only prepared.
func (r *round) takeOver(i int, now time.Duration) int {
	if r.Sheep[i].Closed {
		return none
	}
	for k := range r.actors {
		other := &r.actors[k]
		if other.next < 0 || k == i || other.free <= now {
			continue
		}
		if r.jobs[other.next].Address == "" && r.able(i, r.of[other.next]) {
			j := other.next
			other.next = none
			return j
		}
	}
	return none
}

// idleUntil returns when a job may become available for an idle sheep.
func (r *round) idleUntil(i int, now time.Duration) time.Duration {
	until := never
	for _, g := range r.may[i] {
		if group := &r.groups[g]; r.heads[g] < len(group.jobs) && group.ready > now {
			until = min(until, group.ready)
		}
	}
	return until
}
