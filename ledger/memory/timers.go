package memory

import "time"

// runTimers makes jobs claimable whose time has come, fails those that waited too long,
// and sets the timer for the next.
func (d *database) runTimers() {
	if d.closed {
		return
	}
	m := d.moment()
	due, next := d.index.timers.due(m.Now)
	for _, r := range due {
		if change := r.Due(m); change.Made { // applied before GiveUp, which may end the job
			d.applied(r, change)
		}
		if change := r.GiveUp(d.cfg.Retention, m); change.Made {
			d.applied(r, change)
		}
	}
	if len(due) > 0 { // the changes may have set new timers
		_, next = d.index.timers.due(time.Time{})
	}
	d.arm(next, m.Now)
}

// arm sets the timer to a time of the ledger's clock; zero for never.
func (d *database) arm(next, now time.Time) {
	if next.IsZero() {
		if d.timer != nil {
			d.timer.Stop()
			d.timer = nil
		}
		return
	}
	const clockJumps = time.Hour // the clock may jump, so it is read again after this
	wait := min(next.Sub(now), clockJumps)
	at := time.Now().Add(wait)
	if d.timer != nil && at.Equal(d.armed) {
		return
	}
	if d.timer != nil {
		d.timer.Stop()
	}
	d.armed = at
	d.timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.runTimers()
	})
}
