package shepherd

import (
	"errors"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Inputs that are fetched again, because storage was away, take their part of the budget once.
func TestBudgetOfRepeatedFetch(t *testing.T) {
	l := &lane{services: &services{budget: &budget{limit: 100}}}
	a := newAttempt(ledger.Claim{Record: job.Record{State: job.Queued}}, limits{})
	for _, size := range []int64{60, 60, 70} {
		if err := l.admit(a, size); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if used, _ := l.budget.state(); used != size || a.reserved.Load() != size {
			t.Errorf("%d bytes take %d of the budget, and the attempt has %d", size, used, a.reserved.Load())
		}
	}
	if err := l.admit(a, 101); !errors.Is(err, errBudget) {
		t.Errorf("got %v", err)
	}
	if used, _ := l.budget.state(); used != 0 || a.reserved.Load() != 0 {
		t.Errorf("%d bytes are taken after a refusal, and the attempt has %d", used, a.reserved.Load())
	}
}
