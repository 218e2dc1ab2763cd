package shepherd

import (
	"errors"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// An attempt is lost to a later one, and not to one of an earlier run, whatever its
// number: a daemon that starts reads such events again.
func TestAttemptFencedByEvents(t *testing.T) {
	for name, c := range map[string]struct {
		event job.Event
		want  error
	}{
		"later attempt":     {job.Event{Run: 2, Attempt: 3, Kind: job.EventStarted}, errFenced},
		"later run":         {job.Event{Run: 3, Attempt: 1, Kind: job.EventStarted}, errFenced},
		"itself returned":   {job.Event{Run: 2, Attempt: 2, Kind: job.EventReturned}, errFenced},
		"itself ended":      {job.Event{Run: 2, Attempt: 2, Kind: job.EventEnded}, errFenced},
		"itself started":    {job.Event{Run: 2, Attempt: 2, Kind: job.EventStarted}, nil},
		"cancel":            {job.Event{Run: 2, Attempt: 2, Kind: job.EventCancelled}, errCancelled},
		"earlier attempt":   {job.Event{Run: 2, Attempt: 1, Kind: job.EventReturned}, nil},
		"earlier run":       {job.Event{Run: 1, Attempt: 7, Kind: job.EventEnded}, nil},
		"cancel of the run": {job.Event{Run: 1, Attempt: 2, Kind: job.EventCancelled}, nil},
	} {
		a := newAttempt(ledger.Claim{Record: job.Record{Run: 2, Attempt: 2}}, limits{})
		a.onEvent(c.event)
		if got := a.stopper.stopped(); !errors.Is(got, c.want) || (c.want == nil) != (got == nil) {
			t.Errorf("%s: the attempt is stopped by %v, want %v", name, got, c.want)
		}
	}
}
