package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shepherd"
)

// client owns one job: it submits it until it is acknowledged, reads its state, may cancel it,
// and may run it again.
type client struct {
	*world
	id      job.ID
	request job.Request
	runs    int       // still to be submitted
	taken   bool      // the last one was acknowledged
	refused int       // how often its job was refused because of the jobs that it is after
	cancels bool      // the run is to be cancelled once
	robbed  bool      // another tenant submits a job with its id once
	next    time.Time // when it does something again
	busy    bool      // a request is under way
}

// newClients draws the requests of clients.
func (w *world) newClients() {
	number, spread := 3+w.dice.IntN(12), choose(w.dice, []time.Duration{time.Second, 30 * time.Second, 3 * time.Minute})
	if w.peaceful {
		number, spread = 20+w.dice.IntN(20), 3*time.Minute
	}
	for n := range number {
		c := &client{world: w, id: job.ID(fmt.Sprintf("job-%d", n)), runs: 1, next: time.Now().Add(w.dice.span(spread))}
		if w.peaceful {
			c.asksPeacefully()
		} else {
			c.asks()
		}
		w.clients = append(w.clients, c)
		w.oracle.jobs[c.id] = &known{request: c.request}
	}
}

// asksPeacefully draws a job among many that are done at the first try: of one
// model, mostly.
func (c *client) asksPeacefully() {
	model, run := "m0", time.Second+c.dice.span(maxRun/2)
	if c.dice.chance(8) {
		model = choose(c.dice, []string{"m1", "m2"})
	}
	c.request = c.requestOf(model, plan{Name: string(c.id), Run: run, Ends: []string{endsDone}})
}

// asks draws a job, the ends of its executions, and the requests of its client.
func (c *client) asks() {
	d := c.dice
	p := plan{Name: string(c.id), Run: d.span(maxRun)}
	hangs := false
	for range d.IntN(4) {
		ending := choose(d, []string{endsDone, endsError, endsDead, endsAfterAnswer, endsLost, endsNever, endsOutputs})
		hangs = hangs || ending == endsNever
		p.Ends = append(p.Ends, ending)
	}
	p.Ends = append(p.Ends, endsDone)
	c.request = c.requestOf(fmt.Sprintf("m%d", d.IntN(4)), p)
	limits := &c.request.Limits
	c.request.Priority = max(0, d.IntN(6)-3)
	c.request.Tenant = choose(d, []string{"", "", "wool", "milk"})
	if hangs {
		limits.RunTimeout = limit(maxRun + d.span(maxRun))
	}
	if d.chance(6) {
		limits.LoadTimeout = limit(maxLoad/2 + d.span(2*maxLoad))
	}
	if d.chance(8) {
		limits.WaitTimeout = limit(5*time.Second + d.span(2*time.Minute))
	}
	if d.chance(10) {
		c.request.Deadline = c.next.Add(5*time.Second + d.span(3*time.Minute))
	}
	if d.chance(5) {
		c.request.NotBefore = time.Now().Add(d.span(time.Minute))
	}
	if d.chance(4) {
		c.request.Sheep = choose(d, choose(d, c.nodes).sheep)
	}
	if d.chance(3) {
		c.runs = 2
	}
	if d.chance(4) {
		c.asksForOthers()
	}
	c.cancels, c.robbed = d.chance(4), d.chance(4)
}

// asksForOthers makes the job be after one or two that its tenant may use.
func (c *client) asksForOthers() {
	var others []job.ID
	for _, other := range c.clients {
		if c.request.Tenant == "" || c.request.Tenant == other.request.Tenant {
			others = append(others, other.id)
		}
	}
	for len(others) > 0 && len(c.request.After) < 2 {
		id := choose(c.dice, others)
		c.request.After = append(c.request.After, id)
		others = slices.DeleteFunc(others, func(other job.ID) bool { return other == id || c.dice.chance(2) })
	}
}

// mostRefusals is how often a job is refused because of the jobs that it is after before its
// client gives up.
const mostRefusals = 5

func limit(d time.Duration) *time.Duration { return &d }

func (c *client) requestOf(model string, p plan) job.Request {
	payload, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	retries, pause := c.dice.IntN(maxRetries+1), c.dice.span(10*time.Second)
	return job.Request{
		ID: c.id, Model: job.Model{Name: model, Version: "v1"}, Payload: payload,
		Limits: job.Limits{Retries: &retries, RetryPause: &pause},
	}
}

// finished reports whether the client has sent all its requests.
func (c *client) finished() bool { return c.runs == 0 && !c.busy }

// act sends the next request of a client, one at a time.
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
		case c.taken && c.robbed:
			ask = c.rob
		case c.taken:
			ask = c.wait
		}
		// A request ends with the daemon to which it was sent.
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
	var after *job.AfterError
	var invalid *job.Invalid
	return func() {
		c.note("%s is submitted: %v", c.id, err)
		switch {
		case err == nil, errors.Is(err, job.ErrSubmitted):
			c.taken = true
			c.oracle.accepts(c.id)
		case errors.As(err, &unknownSheep):
			if c.oracle.known(c.id).accepted > 0 {
				c.request.Sheep = "" // the sheep may be removed for good
			}
		case errors.As(err, &after), errors.As(err, &invalid) && invalid.Field == "after":
			c.oracle.refuses(c.request)
			if c.refused++; c.refused == mostRefusals {
				c.runs, c.refused = c.runs-1, 0
			}
		case errors.As(err, &unknownJob):
			c.oracle.fail("job %s was taken, and %v", c.id, err)
		}
	}
}

// rob submits a job with the client's id for another tenant, with or without a payload. It
// must be refused.
func (c *client) rob(core *shepherd.Shepherd) (done func()) {
	r := c.request
	r.Sheep, r.Tenant = "", "thief"
	if r.Payload = []byte("theft"); c.cancels {
		r.Payload = nil
	}
	err := core.Submit(context.Background(), r)
	return func() {
		c.note("%s is submitted by another tenant: %v", c.id, err)
		c.robbed = false
		if err == nil {
			c.oracle.fail("job %s of tenant %q was submitted by another, which was told that it is taken", c.id, c.request.Tenant)
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
