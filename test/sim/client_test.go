package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shepherd"
)

// client owns one job: it submits it until it is taken, asks how it stands, may
// cancel it, and may have it run again.
type client struct {
	*world
	id      job.ID
	request job.Request
	runs    int       // still to be asked for
	taken   bool      // the last of them is
	cancels bool      // the run is to be cancelled once
	next    time.Time // when it does something again
	busy    bool      // a question of its is on the way
}

// newClients draws what clients will ask for.
func (w *world) newClients() {
	spread := choose(w.dice, []time.Duration{time.Second, 30 * time.Second, 3 * time.Minute})
	for n := range 3 + w.dice.IntN(12) {
		c := &client{world: w, id: job.ID(fmt.Sprintf("job-%d", n)), runs: 1, next: time.Now().Add(w.dice.span(spread))}
		p := plan{Name: string(c.id), Run: w.dice.span(maxRun)}
		hangs := false
		for range w.dice.IntN(4) {
			fate := choose(w.dice, []string{fateDone, fateError, fateDies, fateLast, fateLost, fateHangs})
			hangs = hangs || fate == fateHangs
			p.Fates = append(p.Fates, fate)
		}
		p.Fates = append(p.Fates, fateDone)
		payload, err := json.Marshal(p)
		if err != nil {
			panic(err)
		}
		retries, pause := w.dice.IntN(maxRetries+1), w.dice.span(10*time.Second)
		c.request = job.Request{
			ID: c.id, Model: job.Model{Name: fmt.Sprintf("m%d", w.dice.IntN(4)), Version: "v1"}, Payload: payload,
			Priority: max(0, w.dice.IntN(6)-3), Limits: job.Limits{Retries: &retries, RetryPause: &pause},
		}
		if hangs {
			limit := maxRun + w.dice.span(maxRun)
			c.request.Limits.RunTimeout = &limit
		}
		if w.dice.chance(5) {
			c.request.NotBefore = time.Now().Add(w.dice.span(time.Minute))
		}
		if w.dice.chance(4) {
			c.request.Sheep = choose(w.dice, choose(w.dice, w.nodes).sheep)
		}
		if w.dice.chance(3) {
			c.runs = 2
		}
		c.cancels = w.dice.chance(4)
		w.clients = append(w.clients, c)
		w.oracle.jobs[c.id] = &known{request: c.request}
	}
}

// finished says that the client has nothing more to ask.
func (c *client) finished() bool { return c.runs == 0 && !c.busy }

// act has a client ask what it wants to, one at a time.
func (w *world) act() {
	up := w.up()
	from := w.dice.IntN(max(len(w.clients), 1))
	for k := range w.clients {
		c := w.clients[(from+k)%len(w.clients)]
		if c.finished() || c.busy || time.Now().Before(c.next) || len(up) == 0 {
			continue
		}
		n := choose(w.dice, up)
		if c.request.Sheep != "" && !c.taken { // only its own node knows a sheep
			n = nil
			for _, other := range up {
				for _, name := range other.sheep {
					if name == c.request.Sheep {
						n = other
					}
				}
			}
			if n == nil {
				continue
			}
		}
		i := n.now
		c.busy = true
		ask, pause := c.submit, w.dice.span(20*time.Second)
		switch {
		case c.taken && c.cancels && w.dice.chance(2):
			ask = c.cancel
		case c.taken:
			ask = c.wait
		}
		// A question ends with the daemon that it was put to.
		i.ends.Go(func() {
			done := ask(i.core)
			c.later(func() {
				c.busy, c.next = false, time.Now().Add(pause)
				done()
			})
		})
		return
	}
}

func (c *client) submit(core *shepherd.Shepherd) (done func()) {
	r := c.request
	if c.oracle.known(c.id).accepted > 0 {
		r.Payload = nil
	}
	err := core.Submit(context.Background(), r)
	var unknownSheep *job.UnknownSheep
	var unknownJob *job.UnknownJob
	return func() {
		c.note("%s is submitted: %v", c.id, err)
		switch {
		case err == nil, errors.Is(err, job.ErrSubmitted):
			c.taken = true
			c.oracle.accepts(c.id)
		case errors.As(err, &unknownSheep):
			if c.oracle.known(c.id).accepted > 0 {
				c.request.Sheep = "" // it may be gone for good
			}
		case errors.As(err, &unknownJob):
			c.oracle.fail("job %s was taken, and %v", c.id, err)
		}
	}
}

func (c *client) wait(core *shepherd.Shepherd) (done func()) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	status, err := core.Wait(ctx, c.id)
	var unknown *job.UnknownJob
	return func() {
		c.note("%s is %s: %v", c.id, status.State, err)
		switch {
		case errors.As(err, &unknown):
			c.oracle.fail("job %s was taken, and %v", c.id, err)
		case err == nil && !status.State.Final():
			c.oracle.fail("the wait for job %s ends while it is %s", c.id, status.State)
		case err == nil:
			c.oracle.tells(c.id, status)
			c.runs--
			c.taken = false
		}
	}
}

func (c *client) cancel(core *shepherd.Shepherd) (done func()) {
	err := core.Cancel(context.Background(), c.id)
	var unknown *job.UnknownJob
	return func() {
		c.note("%s is cancelled: %v", c.id, err)
		switch {
		case err == nil:
			c.cancels = false
			c.oracle.cancels(c.id)
		case errors.Is(err, job.ErrEnded):
			c.cancels = false
		case errors.As(err, &unknown):
			c.oracle.fail("job %s was taken, and %v", c.id, err)
		}
	}
}
