package shepherd_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
)

// Jobs of a model that is for nodes with certain labels wait until such a
// node is there, and run on it alone; others run meanwhile.
func TestPlacement(t *testing.T) {
	rule := func(pattern string, labels job.Labels) shepherd.PlacementRule {
		models, err := job.ParseRule(pattern)
		if err != nil {
			t.Fatal(err)
		}
		return shepherd.PlacementRule{Models: models, Labels: labels}
	}
	rules := []shepherd.PlacementRule{
		rule("big-spare", nil),
		rule("big-*", job.Labels{"gpu": "a100", "region": "eu"}),
	}
	p := newFixture(t, "small")
	p.config.Peers = nodes{"node", "other"}
	p.config.Placement = shepherd.Placement{Labels: job.Labels{"gpu": "t4", "region": "eu"}, Rules: rules}
	q := *p
	q.core, q.runners, q.sheep = nil, fake.NewRunners(), []string{"large"}
	q.config.Node, q.config.DataRoot = "other", p.dir+"/other"
	q.config.Placement.Labels = job.Labels{"gpu": "a100", "region": "eu", "rack": "7"}
	t.Cleanup(q.stop)
	p.start()
	for i := range 3 {
		p.submit(fmt.Sprint("big-", i), "big-model", "x")
	}
	p.submit("spare", "big-spare", "x")
	p.submit("any", "any", "x")
	p.await("spare", job.Done)
	p.await("any", job.Done)
	why, err := p.core.Explain(t.Context(), "big-0", "")
	if err != nil || !strings.Contains(fmt.Sprint(why), "for nodes with gpu=a100") {
		t.Errorf("Explain = %+v, %v", why, err)
	}
	q.start()
	for i := range 3 {
		id := fmt.Sprint("big-", i)
		p.await(id, job.Done)
		attempts, err := p.ledger.Attempts(t.Context(), job.ID(id))
		if err != nil || len(attempts) == 0 || attempts[len(attempts)-1].Node != "other" {
			t.Fatalf("attempts %+v, %v", attempts, err)
		}
		for _, a := range attempts {
			if a.Node == "node" && !a.Started.IsZero() && a.Cause != job.CauseNotHere {
				t.Errorf("the node without the label had %s: %+v", id, a)
			}
		}
	}

	// One that is addressed to a sheep there fails, and says why.
	p.submit("wrong", "big-model", "x", func(r *job.Request) { r.Sheep = "small" })
	if s := p.await("wrong", job.Failed); !strings.Contains(s.Failure.Message, "is for nodes with gpu=a100: this node has other labels") {
		t.Errorf("it failed with %q", s.Failure.Message)
	}
}
