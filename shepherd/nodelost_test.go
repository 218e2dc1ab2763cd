package shepherd_test

import (
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// A job that was running each time that its node was lost is not tried for ever. One
// that was only prepared then, or was lost less often, runs.
func TestNodeLostTooOften(t *testing.T) {
	p := newFixture(t)
	model := job.Model{Name: "m", Version: "1"}
	for id, spent := range map[job.ID][]bool{"worn": {true, true, true}, "twice": {true, true}, "prepared": {false, false, false, false}} {
		if err := p.store.Init(t.Context(), id, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := p.ledger.Create(t.Context(), job.Record{ID: id, Model: model}); err != nil {
			t.Fatal(err)
		}
		for _, spent := range spent {
			c, err := p.ledger.Claim(t.Context(), ledger.Slot{Node: "another", Sheep: "sheep", Only: id, Ahead: !spent})
			if err != nil || c == nil {
				t.Fatalf("Claim = %v, %v", c, err)
			}
			if _, err := p.ledger.Release(t.Context(), id, c.Token, ledger.Return{Cause: job.CauseNodeLost, Spent: spent}); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.start()
	for id, want := range map[job.ID]job.State{"worn": job.Failed, "twice": job.Done, "prepared": job.Done} {
		status, err := p.core.Wait(t.Context(), id)
		if err != nil || status.State != want {
			t.Errorf("%s is %s, %v, want %s", id, status.State, err, want)
		}
		if want == job.Failed && !strings.Contains(status.Failure.Message, "lost, 3 times") {
			t.Errorf("%s failed with %q", id, status.Failure.Message)
		}
	}
}
