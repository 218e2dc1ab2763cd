package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
)

// told is a shared ledger that notes what it is told of a node.
type told struct{ about []postgres.About }

func (r *told) Announce(_ context.Context, _ string, about postgres.About) error {
	r.about = append(r.about, about)
	return nil
}

func (*told) LateRenewals() int64 { return 0 }

func (*told) Nodes(context.Context) ([]postgres.Node, error) { return nil, nil }

// madeUpNodes is a shared ledger that looks after nodes.
type madeUpNodes struct {
	nodes []postgres.Node
	err   error
}

func (k madeUpNodes) Nodes(context.Context) ([]postgres.Node, error)  { return k.nodes, k.err }
func (k madeUpNodes) SetDraining(context.Context, string, bool) error { return k.err }
func (k madeUpNodes) Forget(context.Context, string) error            { return k.err }

// The API tells of nodes what the ledger knows, and of what cannot be done as of its own
// kinds of errors.
func TestNodesService(t *testing.T) {
	lost := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	about := postgres.About{Version: "v", Sheep: []postgres.Sheep{{Name: "s", Type: "bare", Model: job.Model{Name: "m"}}}}
	s := nodesService{madeUpNodes{nodes: []postgres.Node{
		{Name: "a", About: about, Joined: lost, Alive: true, Until: lost, Draining: true, Held: 2}, {Name: "b", About: about, Joined: lost, Until: lost}, {Name: "c", Joined: lost},
	}}}
	got, err := s.Nodes(t.Context())
	want := []job.Node{
		{Name: "a", State: job.NodeUp, Drained: true, Jobs: 2, Joined: lost, Version: "v", Sheep: []job.Sheep{{Name: "s", Type: "bare", Model: job.Model{Name: "m"}}}},
		{Name: "b", State: job.NodeLost, Lost: lost, Joined: lost, Version: "v", Sheep: []job.Sheep{{Name: "s", Type: "bare"}}},
		{Name: "c", State: job.NodeStopped, Joined: lost},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	none := nodesService{madeUpNodes{err: fmt.Errorf("there is no node x: %w", errdefs.ErrNotFound)}}
	var unknown *job.UnknownNode
	if err := none.DrainNode(t.Context(), "x", true); !errors.As(err, &unknown) || unknown.Name != "x" {
		t.Errorf("no such node: %v", err)
	}
	up := nodesService{madeUpNodes{err: fmt.Errorf("node a is up: stop it first: %w", errdefs.ErrFailedPrecondition)}}
	var used *job.NodeInUse
	if err := up.ForgetNode(t.Context(), "a"); !errors.As(err, &used) || used.Problem != "node a is up: stop it first" {
		t.Errorf("a node that is up: %v", err)
	}
}

// A node tells of its sheep and of the models on its disk when they change. The disk is
// looked at when a sheep has loaded another model, and else once a minute; where it cannot
// be, what was known stays.
func TestAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := job.Model{Name: "m", Version: "1"}, job.Model{Name: "m", Version: "2"}
		ledger, loaded, disk, lists := &told{}, job.Model{}, []job.KeptModel{{Model: one}}, 0
		var failing error
		a := &announcer{
			registry: ledger, node: "a", about: postgres.About{Version: "v"}, log: slog.New(slog.DiscardHandler),
			sheep: func(context.Context) []job.Sheep { return []job.Sheep{{Name: "s", Type: "bare", Model: loaded}} },
			models: func(context.Context) ([]job.KeptModel, error) {
				lists++
				return disk, failing
			},
		}
		expect := func(when string, tellings, looks int, models ...job.Model) {
			t.Helper()
			a.announce(t.Context())
			if len(ledger.about) != tellings || lists != looks {
				t.Errorf("%s it was told %d times and listed %d times, expected %d and %d", when, len(ledger.about), lists, tellings, looks)
			}
			last := ledger.about[len(ledger.about)-1]
			if !reflect.DeepEqual(last.Models, models) || last.Version != "v" || last.Sheep[0].Model != loaded {
				t.Errorf("%s it said %+v", when, last)
			}
		}
		expect("at first", 1, 1, one)
		expect("unchanged", 1, 1, one)
		loaded, disk = two, []job.KeptModel{{Model: one}, {Model: two}}
		expect("with another model", 2, 2, one, two)
		disk = nil
		expect("too soon", 2, 2, one, two)
		time.Sleep(time.Minute)
		failing = errors.New("containerd is away")
		expect("unknown", 2, 3, one, two)
		time.Sleep(time.Minute)
		failing = nil
		expect("after a minute", 3, 4)
	})
}
