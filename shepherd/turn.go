package shepherd

import (
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// How long a turn lasts: so many times what it cost to load the model, within
// bounds. At most about a tenth of a sheep's time goes into loading, then, while
// every model gets its turn.
const (
	turnsPerLoad   = 10
	minTurn        = 5 * time.Second
	defaultMaxTurn = 10 * time.Minute
)

// turns decides for one sheep whether it goes on with the model that it has
// loaded, or runs the oldest job there is whatever its model. It remembers what
// loading each model took.
type turns struct {
	max time.Duration

	mu    sync.Mutex
	costs map[job.Model]time.Duration
	model job.Model // whose turn it is
	ends  time.Time
}

func newTurns(longest time.Duration) *turns {
	return &turns{max: longest, costs: make(map[job.Model]time.Duration)}
}

// loaded notes that the model was loaded, which took so long: its turn begins. A
// runner that was found alive took nothing.
func (t *turns) loaded(m job.Model, took time.Duration, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if took > 0 {
		t.costs[m] = took
	}
	t.begin(m, now)
}

func (t *turns) begin(m job.Model, now time.Time) {
	t.model = m
	t.ends = now.Add(turnAfter(t.costs[m], t.max))
}

// turnAfter is how long the turn of a model lasts that took so long to load.
func turnAfter(load, longest time.Duration) time.Duration {
	if longest <= 0 {
		longest = defaultMaxTurn
	}
	return min(max(turnsPerLoad*load, minTurn), max(longest, minTurn))
}

// prefer says which model's jobs come first on a sheep that will have m loaded:
// m, until its turn is over. The turn of a model that is still to be loaded has
// not begun.
func (t *turns) prefer(m job.Model, now time.Time) job.Model {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m == t.model && !now.Before(t.ends) {
		return job.Model{}
	}
	return m
}

// claimed notes that a job of the model was claimed as the oldest there is. Where
// that is the model whose turn has ended, it has another.
func (t *turns) claimed(m job.Model, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m == t.model && !now.Before(t.ends) {
		t.begin(m, now)
	}
}

// turn is the model whose turn it is or was last, and when that ends.
func (t *turns) turn() (m job.Model, ends time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.model, t.ends
}
