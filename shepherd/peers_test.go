package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime/fake"
)

// nodes are those that are alive.
type nodes []string

func (nodes) Draining(string) bool { return false }

func (n nodes) Peers(_ context.Context, node string) ([]string, error) {
	return slices.DeleteFunc(slices.Clone(n), func(name string) bool { return name == node }), nil
}

// Two nodes share a ledger, and have different models. Each job runs where its model is;
// one whose model is nowhere fails once both have said so.
func TestModelsOfAnotherNode(t *testing.T) {
	p := newFixture(t, "left")
	p.config.Peers = nodes{"node", "other"}
	p.find = func(sheep string, m job.Model) error {
		if m.Name != sheep {
			return fmt.Errorf("no model %s on sheep %s: %w", m, sheep, errdefs.ErrNotFound)
		}
		return nil
	}
	q := *p
	q.core, q.runners, q.sheep = nil, fake.NewRunners(), []string{"right"}
	q.config.Node, q.config.DataRoot = "other", p.dir+"/other"
	t.Cleanup(q.stop)
	p.start()
	q.start()
	for i := range 3 {
		p.submit(fmt.Sprint("left-", i), "left", "x")
		p.submit(fmt.Sprint("right-", i), "right", "x")
	}
	p.submit("nowhere", "nowhere", "x")
	for i := range 3 {
		p.await(fmt.Sprint("left-", i), job.Done)
		p.await(fmt.Sprint("right-", i), job.Done)
	}
	p.await("nowhere", job.Failed)
	attempts, err := p.ledger.Attempts(t.Context(), "nowhere")
	if err != nil || len(attempts) < 2 {
		t.Fatalf("attempts %+v, %v", attempts, err)
	}
	last, first := attempts[len(attempts)-1], attempts[0]
	if last.Node == first.Node || last.Cause != job.CauseNotHere || first.Cause != job.CauseNotHere {
		t.Errorf("attempts %+v", attempts)
	}
}

// A node that stops takes jobs in for others that are up, and none where there are none.
func TestSubmitForOthers(t *testing.T) {
	for _, test := range []struct {
		name  string
		alive nodes
		want  error
	}{
		{"another is up", nodes{"node", "other"}, nil},
		{"no other is up", nodes{"node"}, job.ErrDraining},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newFixture(t)
			p.config.Peers = test.alive
			p.start()
			p.core.Drain()
			r := job.Request{ID: "job", Model: job.Model{Name: "m", Version: "v1"}, Payload: []byte("x")}
			if err := p.core.Submit(t.Context(), r); !errors.Is(err, test.want) {
				t.Errorf("submitted while it stops: %v, expected %v", err, test.want)
			}
			_, err := p.ledger.Get(t.Context(), "job")
			if taken := test.want == nil; taken != (err == nil) {
				t.Errorf("the record: %v", err)
			}
		})
	}
}
