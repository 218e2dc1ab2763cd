package sqlite

import "time"

// timerBatch is how many jobs one transaction makes claimable, and how many it fails, at
// most.
const timerBatch = 64

// runTimers makes jobs claimable whose time has come, and fails those that waited too
// long. It reads nothing before the next timer is due.
func (t *tx) runTimers() error {
	if t.nextTimer.IsZero() || t.now.Before(t.nextTimer) {
		return nil
	}
	due, err := t.queryJobs(t.stmts.due, fromTime(t.now), timerBatch)
	if err != nil {
		return err
	}
	for _, r := range due {
		if err := t.writeChange(r, r.Due(t.moment())); err != nil {
			return err
		}
	}
	overdue, err := t.queryJobs(t.stmts.overdue, fromTime(t.now), timerBatch)
	if err != nil {
		return err
	}
	for _, r := range overdue {
		if err := t.writeChange(r, r.GiveUp(t.keep(), t.moment())); err != nil {
			return err
		}
	}
	var notBefore, giveUp int64
	if _, err := t.queryOne([]any{&notBefore, &giveUp}, t.stmts.nextTimer); err != nil {
		return err
	}
	t.nextTimer = time.Time{}
	for _, at := range []int64{notBefore, giveUp} {
		if at != 0 {
			t.setTimer(toTime(at))
		}
	}
	return nil
}
