package sqlite

import "time"

// timerBatch is how many jobs whose time has come one transaction changes at
// most, of each kind.
const timerBatch = 64

// runTimers makes jobs claimable whose time has come, and fails those that
// waited for too long, where some are due.
func (t *tx) runTimers() error {
	if t.nextTimer.IsZero() || t.now.Before(t.nextTimer) {
		return nil
	}
	due, err := t.queryJobs(t.do.due, fromTime(t.now), timerBatch)
	if err != nil {
		return err
	}
	for _, r := range due {
		if err := t.made(r, r.Due(t.moment())); err != nil {
			return err
		}
	}
	overdue, err := t.queryJobs(t.do.overdue, fromTime(t.now), timerBatch)
	if err != nil {
		return err
	}
	for _, r := range overdue {
		if err := t.made(r, r.GiveUp(t.keep(), t.moment())); err != nil {
			return err
		}
	}
	var notBefore, giveUp int64
	if _, err := t.queryOne([]any{&notBefore, &giveUp}, t.do.nextTimer); err != nil {
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

// untilTimer is how long the writer can rest before a timer is due.
func (w *writer) untilTimer() time.Duration {
	const never = time.Hour
	if w.nextTimer.IsZero() {
		return never
	}
	return min(max(w.nextTimer.Sub(w.now()), 0), never)
}
