package postgres

import (
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// claims caches the rows of the jobs that are held by claims made here, as of the last change
// made here. Usually the database has the same version, so the next change needs no read.
// Otherwise (another node has requested a cancel, or taken the job back) the statement
// finds no row of that version, changes nothing, and the row is read.
type claims struct {
	mu   sync.Mutex
	rows map[job.ID]row
}

// put caches a row after a change that was made here, if a claim still holds the job.
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

// take removes and returns the row of the job; nil where none is cached for the claim.
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

// forget drops the row of the job.
func (c *claims) forget(id job.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.rows, id)
}

// clear drops all rows. It is called when the lease ends: other nodes take the jobs back.
func (c *claims) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.rows)
}

// momentKept is how long the server's time is extrapolated from the last read.
const momentKept = 5 * time.Second

// clock estimates the server's time: the moment that was read last plus the time that has
// passed since, by this machine's monotonic clock. It lags by at most the latency of that
// answer, and is never ahead unless the server's clock was set back since.
type clock struct {
	keep time.Duration // momentKept

	mu   sync.Mutex
	last lifecycle.Moment
	read time.Time
}

// set stores a moment that was read just now.
func (c *clock) set(m lifecycle.Moment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.read = m, time.Now()
}

// moment is the estimate; ok is false where no moment was read lately, or this machine was
// suspended since.
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
