package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/fleet"
	"github.com/iterait/shepherd/job"
)

func (b *box) Models(context.Context) ([]job.KeptModel, error) { return b.models, b.ill }

func (b *box) PullModel(_ context.Context, m job.Model, sheep string, report func(job.PullProgress)) error {
	if b.ill != nil {
		return b.ill
	}
	if sheep != "" && !slices.ContainsFunc(b.sheep, func(s job.Sheep) bool { return s.Name == sheep }) {
		return &job.UnknownSheep{Name: sheep}
	}
	report(job.PullProgress{Text: "fetching", Done: 1, Total: 2, Rate: 3})
	b.changes = append(b.changes, strings.TrimSpace("pull "+m.String()+" "+sheep))
	return nil
}

func (b *box) RemoveModel(_ context.Context, m job.Model) error {
	if b.ill != nil {
		return b.ill
	}
	b.changes = append(b.changes, "remove "+m.String())
	return nil
}

// took returns what the machine has done with its models since it was asked last.
func (b *box) took() string {
	defer func() { b.changes = nil }()
	return strings.Join(b.changes, ", ")
}

// ranch is the view of node a on itself, on b and, where it is up, on c, which does not
// answer.
func ranch(t *testing.T, a, b *box, c bool) *fleet.View {
	return fleet.NewView(a, newFleet(t, secret,
		fleet.Node{Name: "a", Alive: true, Sheep: a.sheep},
		fleet.Node{Name: "b", Alive: true, Address: serve(t, fleet.Handler(b, secret, rest, discard)), Sheep: b.sheep, Labels: job.Labels{"gpu": "a100"}},
		fleet.Node{Name: "c", Alive: c, Address: gone(t), Sheep: []job.Sheep{{Name: "t"}}}), placement{})
}

// placement has the model "large" be for nodes with A100s, as b, and "huge" for none of them.
type placement struct{}

func (p placement) Here(m job.Model) error { return p.On(nil, m) }

func (placement) On(labels job.Labels, m job.Model) error {
	if m.Name == "huge" || m.Name == "large" && labels["gpu"] != "a100" {
		return fmt.Errorf("model `%s` is for others", m)
	}
	return nil
}

// A model that is pulled by all is pulled by those that it is for.
func TestPullPlaced(t *testing.T) {
	a, b := &box{}, &box{}
	v := ranch(t, a, b, true) // c, which does not answer, is not asked
	var told []string
	tell := func(p job.PullProgress) { told = append(told, p.Text) }
	large := job.Model{Name: "large"}
	if err := v.PullModel(t.Context(), job.PullOrder{Model: large}, tell); err != nil || a.took() != "" || b.took() != "pull large" {
		t.Errorf("it is pulled by others, or not at all: %v", err)
	}
	if want := []string{"fetching", "left out: a, c; model `large` is for others"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	if err := v.PullModel(t.Context(), job.PullOrder{Model: large, Node: "a"}, tell); err != nil || a.took() != "pull large" {
		t.Errorf("a node that is named does not pull it: %v", err)
	}
	err := v.PullModel(t.Context(), job.PullOrder{Model: job.Model{Name: "huge"}}, tell)
	var refused *job.ModelError
	if !errors.As(err, &refused) || !errdefs.IsFailedPrecondition(refused.Class) || !strings.Contains(refused.Problem, "for others, which no node that is up has") || a.took()+b.took() != "" {
		t.Errorf("a model that is for no node that is up: %v", err)
	}
}

func TestModels(t *testing.T) {
	digits, other := job.Model{Name: "digits", Version: "v1"}, job.Model{Name: "other"}
	a, b := &box{models: []job.KeptModel{{Model: digits, Size: 3}}}, &box{models: []job.KeptModel{{Model: other, InUse: true}, {Model: digits}}}
	v := ranch(t, a, b, true)
	all, err := v.Models(t.Context())
	want := job.KeptModels{
		Models:     []job.KeptModel{{Model: digits, Size: 3, Node: "a"}, {Model: digits, Node: "b"}, {Model: other, InUse: true, Node: "b"}},
		Unanswered: []job.UnansweredNode{{Name: "c", Problem: "does not answer"}},
	}
	if err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("Models = %+v, %v; want %+v", all, err, want)
	}
	// A node that cannot say what it has is unanswered, too, this one included.
	a.ill, b.ill = errors.New("a fault"), &job.ModelError{Problem: "containerd is away", Class: errdefs.ErrUnavailable}
	all, err = ranch(t, a, b, false).Models(t.Context())
	want = job.KeptModels{Unanswered: []job.UnansweredNode{{Name: "a", Problem: "could not do it; its log says why"}, {Name: "b", Problem: "containerd is away"}}}
	if err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("Models = %+v, %v; want %+v", all, err, want)
	}
	none := fleet.NewView(a, fleet.New(fleet.Config{Self: "a", Log: discard, Directory: func(context.Context) ([]fleet.Node, error) {
		return nil, errdefs.ErrUnavailable
	}}), placement{})
	if _, err := none.Models(t.Context()); !errors.As(err, new(*job.Unavailable)) {
		t.Errorf("without a ledger: %v", err)
	}
}

// A model is fetched by all nodes, by the one that is named, or by those with the sheep.
func TestPull(t *testing.T) {
	digits := job.Model{Name: "digits", Version: "v1"}
	a, b := &box{sheep: []job.Sheep{{Name: "s"}, {Name: "z"}}}, &box{sheep: []job.Sheep{{Name: "s"}}}
	v := ranch(t, a, b, false)
	for _, c := range []struct {
		node, sheep string
		a, b        string // what they did
		told        int    // how often it was said how far they are
	}{
		{"", "", "pull digits:v1", "pull digits:v1", 2},
		{"a", "", "pull digits:v1", "", 1},
		{"b", "", "", "pull digits:v1", 1},
		{"", "s", "pull digits:v1 s", "pull digits:v1 s", 2},
		{"", "z", "pull digits:v1 z", "", 1},
		{"b", "s", "", "pull digits:v1 s", 1},
		{"", "b/s", "", "pull digits:v1 s", 1},
		{"b", "b/s", "", "pull digits:v1 s", 1},
	} {
		var told []job.PullProgress
		err := v.PullModel(t.Context(), job.PullOrder{Model: digits, Node: c.node, Sheep: c.sheep}, func(p job.PullProgress) { told = append(told, p) })
		if took, other := a.took(), b.took(); err != nil || took != c.a || other != c.b || len(told) != c.told {
			t.Errorf("%+v: %q and %q, told %+v, %v", c, took, other, told, err)
		}
		if last := told[len(told)-1]; c.told == 2 && (last.Done != 2 || last.Total != 4 || last.Rate != 6 || !strings.HasSuffix(last.Text, ": fetching")) {
			t.Errorf("%+v: together they are at %+v", c, last)
		}
	}
	for id, want := range map[string]string{"wolf": "wolf", "b/wolf": "b/wolf", "t": "t"} {
		var unknown *job.UnknownSheep
		if err := v.PullModel(t.Context(), job.PullOrder{Model: digits, Sheep: id}, nil); !errors.As(err, &unknown) || unknown.Name != want {
			t.Errorf("pull for %s: %v", id, err)
		}
	}
	if err := v.PullModel(t.Context(), job.PullOrder{Model: digits, Node: "a", Sheep: "b/s"}, nil); !errors.As(err, new(*job.UnknownSheep)) {
		t.Errorf("pull for another node's sheep: %v", err)
	}
	if err := v.PullModel(t.Context(), job.PullOrder{Model: digits, Node: "nobody"}, nil); !errors.As(err, new(*job.UnknownNode)) {
		t.Errorf("pull on a node that there is not: %v", err)
	}
}

// Where a node cannot, the others do, and the error says which could not.
func TestSomeCannot(t *testing.T) {
	digits := job.Model{Name: "digits", Version: "v1"}
	absent := &job.ModelError{Problem: "it is not here", Class: errdefs.ErrNotFound}
	full := &job.ModelError{Problem: "the disk is full", Class: errdefs.ErrResourceExhausted}
	for _, c := range []struct {
		name         string
		a, b         error
		c            bool  // node c is up
		pull, remove error // what the error is; nil for none
	}{
		{name: "well"},
		{name: "one has no models", b: job.ErrNoModels},
		{name: "none has models", a: job.ErrNoModels, b: job.ErrNoModels, pull: job.ErrNoModels, remove: job.ErrNoModels},
		{name: "one has it not", a: absent, pull: &job.ModelError{Problem: "node a: it is not here", Class: errdefs.ErrNotFound}},
		{name: "one is full", b: full, pull: &job.ModelError{Problem: "node b: the disk is full", Class: errdefs.ErrResourceExhausted}, remove: &job.ModelError{Problem: "node b: the disk is full", Class: errdefs.ErrResourceExhausted}},
		{name: "one needs it", b: &job.ModelNeeded{Model: digits, Sheep: "s"}, pull: &job.ModelNeeded{Model: digits, Sheep: "s"}, remove: &job.ModelNeeded{Model: digits, Sheep: "b/s"}},
		{name: "a job needs it", b: &job.ModelNeeded{Model: digits, Job: "j"}, pull: &job.ModelNeeded{Model: digits, Job: "j"}, remove: &job.ModelNeeded{Model: digits, Job: "j"}},
		{
			name: "two of three", b: full, c: true,
			pull: &job.ModelError{Problem: "node b: the disk is full; node c: does not answer", Class: errdefs.ErrResourceExhausted}, remove: &job.ModelError{Problem: "node b: the disk is full; node c: does not answer", Class: errdefs.ErrResourceExhausted},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := &box{ill: c.a}, &box{ill: c.b}
			v := ranch(t, a, b, c.c)
			if err := v.PullModel(t.Context(), job.PullOrder{Model: digits}, func(job.PullProgress) {}); !reflect.DeepEqual(err, c.pull) {
				t.Errorf("pull: %#v, want %#v", err, c.pull)
			}
			if err := v.RemoveModel(t.Context(), digits, ""); !reflect.DeepEqual(err, c.remove) {
				t.Errorf("remove: %#v, want %#v", err, c.remove)
			}
			if took := a.took(); c.a == nil && took != "pull digits:v1, remove digits:v1" {
				t.Errorf("node a did %q", took)
			}
		})
	}
	var away *job.Unavailable
	if err := ranch(t, new(box), new(box), true).RemoveModel(t.Context(), digits, ""); !errors.As(err, &away) || away.Service != "node c" {
		t.Errorf("remove from one that does not answer: %v", err)
	}
	v := ranch(t, new(box), new(box), false)
	if err := v.RemoveModel(t.Context(), digits, "nobody"); !errors.As(err, new(*job.UnknownNode)) {
		t.Errorf("remove from a node that there is not: %v", err)
	}
	ctx, leave := context.WithCancelCause(t.Context())
	left := errors.New("the client has left")
	leave(left)
	if err := v.PullModel(ctx, job.PullOrder{Model: digits}, func(job.PullProgress) {}); !errors.Is(err, left) {
		t.Errorf("a pull that was given up: %v", err)
	}
}

// A node of an earlier version has no answer about models.
func TestEarlierNode(t *testing.T) {
	earlier := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }))
	v := fleet.NewView(new(box), newFleet(t, secret, fleet.Node{Name: "a", Alive: true}, fleet.Node{Name: "b", Alive: true, Address: earlier}), placement{})
	all, err := v.Models(t.Context())
	if want := []job.UnansweredNode{{Name: "b", Problem: "answers with status 404"}}; err != nil || !reflect.DeepEqual(all.Unanswered, want) {
		t.Errorf("Models = %+v, %v", all, err)
	}
}
