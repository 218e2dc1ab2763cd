package fleet

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/iterait/shepherd/job"
)

// Placement returns why this node, or one with the labels, may not run a model; nil if it
// may. All nodes have the same rules.
type Placement interface {
	Here(m job.Model) error
	On(labels job.Labels, m job.Model) error
}

// View provides the sheep, GPUs and models of all nodes.
type View struct {
	local     Local
	fleet     *Fleet
	placement Placement
}

// NewView makes a View of this node and the others.
func NewView(local Local, fleet *Fleet, placement Placement) *View {
	return &View{local, fleet, placement}
}

// Sheep returns the sheep of all live nodes, as NODE/SHEEP. Those of a node that cannot be
// reached are as it has announced them, and their Detail says why.
func (v *View) Sheep(ctx context.Context) []job.Sheep {
	all := renamed(v.fleet.self, v.local.Sheep(ctx))
	peers, err := v.fleet.Peers(ctx)
	if err != nil {
		v.fleet.log.Warn("The sheep of other nodes are not known", "error", err)
		return all
	}
	asked := make([][]job.Sheep, len(peers))
	var asking sync.WaitGroup
	for i, peer := range peers {
		asking.Go(func() {
			sheep, err := v.fleet.Sheep(ctx, peer.Name)
			if err != nil {
				sheep = slices.Clone(peer.Sheep)
				for i := range sheep {
					sheep[i].Detail = problem(err)
				}
			}
			asked[i] = renamed(peer.Name, sheep)
		})
	}
	asking.Wait()
	all = append(all, slices.Concat(asked...)...)
	slices.SortFunc(all, func(a, b job.Sheep) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// problem describes why a node cannot be reached.
func problem(err error) string {
	var away *job.Unavailable
	if errors.As(err, &away) {
		return away.Service + " " + away.Problem
	}
	return "its node cannot be asked"
}

// renamed returns sheep with their names in the fleet.
func renamed(node string, sheep []job.Sheep) []job.Sheep {
	sheep = slices.Clone(sheep)
	for i := range sheep {
		sheep[i].Node, sheep[i].Name = node, ID(node, sheep[i].Name)
	}
	return sheep
}

// Logs opens the log of a sheep: SHEEP of this node, or NODE/SHEEP.
func (v *View) Logs(ctx context.Context, id string, q job.LogQuery) (io.ReadCloser, error) {
	node, sheep := SplitID(id)
	if node == "" || node == v.fleet.self {
		return v.local.Logs(ctx, sheep, q)
	}
	log, err := v.fleet.Logs(ctx, node, sheep, q)
	var none *job.UnknownNode
	if unknown := new(job.UnknownSheep); errors.As(err, &none) || errors.As(err, &unknown) {
		return nil, &job.UnknownSheep{Name: id}
	}
	return log, err
}

// OrderSheep sends an order to a sheep: SHEEP of this node, or NODE/SHEEP. The error names it
// as the caller did.
func (v *View) OrderSheep(ctx context.Context, id string, o job.Order) error {
	node, sheep := SplitID(id)
	var err error
	if node == "" || node == v.fleet.self {
		err = v.local.OrderSheep(ctx, sheep, o)
	} else {
		err = v.fleet.OrderSheep(ctx, node, sheep, o)
	}
	var none *job.UnknownNode
	var unknown *job.UnknownSheep
	var state *job.SheepState
	switch {
	case errors.As(err, &none), errors.As(err, &unknown):
		return &job.UnknownSheep{Name: id}
	case errors.As(err, &state):
		return &job.SheepState{Sheep: id, Is: state.Is}
	}
	return err
}

// GPUs returns the GPUs of a node; of this one if node is empty. The error is
// *job.UnknownNode or *job.Unavailable.
func (v *View) GPUs(ctx context.Context, node string) (job.GPUs, error) {
	if node == "" || node == v.fleet.self {
		return v.local.GPUs(ctx), nil
	}
	return v.fleet.GPUs(ctx, node)
}
