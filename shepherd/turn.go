package shepherd

import (
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// Length of a turn: a multiple of the time it took to load the model, within bounds. So a
// sheep spends at most about a tenth of its time on loading, while every model gets its
// turn.
const (
	turnsPerLoad   = 10
	minTurn        = 5 * time.Second
	defaultMaxTurn = 10 * time.Minute
)

// turns decides whether a sheep continues with the model that it has loaded, or runs the
// oldest job whatever its model. It remembers how long each model took to load.
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

// loaded records that the model was loaded and how long that took, 0 for an adopted runner.
// The model's turn begins.
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

// turnAfter returns the length of a turn of a model that took load to be loaded.
func turnAfter(load, longest time.Duration) time.Duration {
	if longest <= 0 {
		longest = defaultMaxTurn
	}
	return min(max(turnsPerLoad*load, minTurn), max(longest, minTurn))
}

// prefer returns the model whose jobs take precedence on a sheep that will have m loaded: m
// until its turn is over, then none. The turn of a model that is not loaded yet has not
// begun.
func (t *turns) prefer(m job.Model, now time.Time) job.Model {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m == t.model && !now.Before(t.ends) {
		return job.Model{}
	}
	return m
}

// claimed records that the oldest job was claimed. If its model is the one whose turn has
// ended, the model gets another turn.
func (t *turns) claimed(m job.Model, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m == t.model && !now.Before(t.ends) {
		t.begin(m, now)
	}
}

// turn returns the model that has or had the last turn, and when the turn ends.
func (t *turns) turn() (m job.Model, ends time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.model, t.ends
}
