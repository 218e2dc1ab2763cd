package postgres

import (
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// claims are the rows of the jobs that are held by claims made here, as they were after the
// last change made here. Such a row is as a rule what the database has, so that the next
// change is made without reading it first. Where it is not (another node asked for the job
// to be cancelled, or took it back), the version differs, the statement changes nothing,
// and the row is read.
type claims struct {
	mu   sync.Mutex
	rows map[job.ID]row
}

// put keeps a row as it is after a change that was made here, while a claim holds the job.
func (c *claims) put(r *row) {
	if r.Token == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rows == nil {
		c.rows = map[job.ID]row{}
	}
	kept := *r
	kept.Limits, kept.Labels, kept.After = r.Limits.Clone(), r.Labels.Clone(), slices.Clone(r.After) // the caller gets the others
	c.rows[r.ID] = kept
}

// take returns the row of the job, which is not known here any more; nil where it is not
// known to be held by the claim.
func (c *claims) take(id job.ID, token ledger.Token) *row {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.rows[id]
	if !ok || r.Token != token {
		return nil
	}
	delete(c.rows, id)
	return &r
}

// forget forgets the row of the job.
func (c *claims) forget(id job.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.rows, id)
}

// clear forgets all rows: those of a node whose lease has ended are taken back by others.
func (c *claims) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.rows)
}

// momentKept is for how long after it was read a moment tells what time it is now.
const momentKept = 5 * time.Second

// clock tells the server's time from the moment that was read last and the time that has
// passed since, by this machine's clock. It is behind by the time that the answer took; it
// is never ahead, unless the server's clock was set back since.
type clock struct {
	keep time.Duration // momentKept

	mu   sync.Mutex
	last lifecycle.Moment
	read time.Time
}

// set notes a moment that was read just now.
func (c *clock) set(m lifecycle.Moment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.read = m, time.Now()
}

// moment is what the moment is now; ok is false where none was read lately, or this machine
// was suspended since.
func (c *clock) moment() (m lifecycle.Moment, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	elapsed, byWall := now.Sub(c.read), now.Round(0).Sub(c.read.Round(0))
	if elapsed > c.keep || (byWall-elapsed).Abs() > c.keep {
		return lifecycle.Moment{}, false
	}
	return lifecycle.Moment{Now: lifecycle.KeptTime(c.last.Now.Add(elapsed)), Age: c.last.Age + elapsed.Microseconds()}, true
}
