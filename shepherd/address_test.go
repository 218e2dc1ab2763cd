package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
)

// others answers for one other node, of which nothing else is known.
type others struct {
	node, sheep string
	labels      job.Labels
}

func (o others) Answering(_ context.Context, to job.Address) ([]string, error) {
	if to.Fits(o.node, o.sheep, o.labels) {
		return []string{o.node}, nil
	}
	return nil, nil
}

func (others) Nearest(context.Context, job.Model, job.Address) (job.Nearness, error) {
	return job.ModelAway, nil
}

func (others) Sheep(context.Context, string) ([]job.Sheep, error) { return nil, nil }

func (others) AttemptLog(context.Context, string, job.ID, int, int, job.LogQuery) (io.ReadCloser, error) {
	return nil, job.ErrNoJobLog
}

func onNodeWith(labels job.Labels) func(*job.Request) {
	return func(r *job.Request) { r.NodeLabels = labels }
}

// A node alone runs what names it or its labels, and refuses what names another.
func TestAddressesOfOneNode(t *testing.T) {
	p := newFixture(t)
	p.config.Placement = shepherd.Placement{Labels: job.Labels{"gpu": "a100", "region": "eu"}}
	p.start()
	p.submit("labels", "m", "x", onNodeWith(job.Labels{"gpu": "a100"}))
	p.submit("mine", "m", "x", to("node/sheep"))
	p.submit("both", "m", "x", to("sheep"), onNodeWith(job.Labels{"region": "eu"}))
	for _, id := range []string{"labels", "mine", "both"} {
		p.await(id, job.Done)
	}
	request := func(change func(*job.Request)) error {
		r := job.Request{ID: "refused", Model: job.Model{Name: "m", Version: "v1"}, Payload: []byte("x")}
		change(&r)
		return p.core.Submit(t.Context(), r)
	}
	var invalid *job.Invalid
	if err := request(onNodeWith(job.Labels{"gpu": "h100", "region": "eu"})); !errors.As(err, &invalid) || invalid.Field != "node_labels" || !strings.Contains(invalid.Problem, "gpu=h100, region=eu") {
		t.Errorf("another's labels: %v", err)
	}
	if err := request(onNodeWith(job.Labels{"": "x"})); !errors.As(err, &invalid) || invalid.Field != "node_labels" {
		t.Errorf("no label: %v", err)
	}
	for _, name := range []string{"other/sheep", "node/wolf", "wolf", "@gpu=a100", "sheep@gpu=a100", "node/"} {
		var unknown *job.UnknownSheep
		if err := request(to(name)); !errors.As(err, &unknown) || unknown.Name != name {
			t.Errorf("sheep %q: %v", name, err)
		}
	}
}

// In a fleet each job runs on the node that it names, or whose labels it asks for, also
// where sheep of two nodes have the same name; the others leave it alone.
func TestAddressesOfFleet(t *testing.T) {
	p := newFixture(t, "sheep")
	p.config.Peers = nodes{"node", "other"}
	p.config.Placement = shepherd.Placement{Labels: job.Labels{"gpu": "t4"}}
	p.config.Fleet = others{"other", "sheep", job.Labels{"gpu": "a100"}}
	q := *p
	q.core, q.runners = nil, fake.NewRunners()
	q.config.Node, q.config.DataRoot = "other", p.dir+"/other"
	q.config.Placement.Labels, q.config.Fleet = job.Labels{"gpu": "a100"}, others{"node", "sheep", job.Labels{"gpu": "t4"}}
	t.Cleanup(q.stop)
	p.start()
	want := map[string]string{}
	for i := range 3 {
		for kind, with := range map[string]func(*job.Request){
			"other-labels": onNodeWith(job.Labels{"gpu": "a100"}), "other-sheep": to("other/sheep"), "node-labels": onNodeWith(job.Labels{"gpu": "t4"}), "node-sheep": to("node/sheep"),
		} {
			id := fmt.Sprint(kind, i)
			p.submit(id, "m", "x", with)
			want[id], _, _ = strings.Cut(kind, "-")
		}
	}
	for id, node := range want {
		if node == "node" {
			p.await(id, job.Done)
		}
	}
	if e, err := p.core.Explain(t.Context(), "other-labels0", ""); err != nil || !strings.Contains(e.Summary, "gpu=a100") {
		t.Errorf("Explain = %+v, %v", e, err)
	}
	if e, err := p.core.Explain(t.Context(), "other-sheep0", ""); err != nil || !strings.Contains(e.Summary, "node `other`") {
		t.Errorf("Explain = %+v, %v", e, err)
	}
	q.start()
	for id, node := range want {
		p.await(id, job.Done)
		attempts, err := p.ledger.Attempts(t.Context(), job.ID(id))
		if err != nil || len(attempts) == 0 || slices.ContainsFunc(attempts, func(a job.Attempt) bool { return a.Node != node }) {
			t.Errorf("job %s ran as %+v, %v", id, attempts, err)
		}
	}
	// Run again, it keeps its labels.
	rec, err := p.ledger.Get(t.Context(), "other-labels0")
	if err != nil || rec.Sheep != "@gpu=a100" {
		t.Errorf("the record is %+v, %v", rec, err)
	}
}
