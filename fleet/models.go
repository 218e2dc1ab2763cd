package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Models returns the models on the disks of all live nodes. Nodes that do not answer, this one
// included, are in Unanswered. The error is ctx's, or that of looking the nodes up.
func (v *View) Models(ctx context.Context) (job.KeptModels, error) {
	nodes, err := v.everyone(ctx)
	if err != nil {
		return job.KeptModels{}, err
	}
	answers := make([][]job.KeptModel, len(nodes))
	errs := askAll(nodes, func(i int, node string) (err error) {
		if node == v.fleet.self {
			answers[i], err = v.local.Models(ctx)
			return err
		}
		return v.fleet.get(ctx, node, modelsPath, &answers[i])
	})
	if err := ctx.Err(); err != nil {
		return job.KeptModels{}, context.Cause(ctx)
	}
	all := job.KeptModels{}
	for i, node := range nodes {
		if errs[i] != nil {
			all.Unanswered = append(all.Unanswered, job.UnansweredNode{Name: node, Problem: v.problemOf(node, errs[i])})
			continue
		}
		for _, m := range answers[i] {
			m.Node = node
			all.Models = append(all.Models, m)
		}
	}
	slices.SortStableFunc(all.Models, func(a, b job.KeptModel) int {
		return cmp.Or(cmp.Compare(a.Model.Name, b.Model.Name), cmp.Compare(a.Model.Version, b.Model.Version), cmp.Compare(a.Node, b.Node))
	})
	return all, nil
}

// PullModel lets a model be fetched by the named node, by those with the sheep, or by all that
// fetch models and may run it; the last report names the nodes that may not. If some nodes
// fail, the others continue. The error is *job.UnknownNode, *job.UnknownSheep,
// *job.Unavailable or that of Local; with several nodes it is a *job.ModelError that names
// those that failed.
func (v *View) PullModel(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error {
	node, sheep := SplitID(o.Sheep)
	if node != "" && o.Node != "" && node != o.Node {
		return &job.UnknownSheep{Name: o.Sheep}
	}
	nodes, leftOut, err := v.pullers(ctx, o.Model, cmp.Or(node, o.Node), sheep)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		return &job.UnknownSheep{Name: o.Sheep}
	}
	if leftOut != "" {
		defer func() {
			if ctx.Err() == nil {
				report(job.PullProgress{Text: leftOut})
			}
		}()
	}
	steps := &progress{report: report, last: make([]job.PullProgress, len(nodes)), nodes: nodes}
	errs := askAll(nodes, func(i int, node string) error {
		tell := func(p job.PullProgress) { steps.tell(i, p) }
		if node == v.fleet.self {
			return v.local.PullModel(ctx, o.Model, sheep, tell)
		}
		return v.fleet.pull(ctx, node, pullOrder{o.Model, sheep}, tell)
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for i, err := range errs {
		var unknown *job.UnknownSheep
		if errors.As(err, &unknown) {
			errs[i] = &job.UnknownSheep{Name: o.Sheep}
		}
	}
	return v.together(nodes, errs, func(err error) bool { return errors.Is(err, job.ErrNoModels) })
}

// pullers returns the nodes that are to fetch a model. leftOut names those that may not run the
// model; if that is all of them, the error, a *job.ModelError, does.
func (v *View) pullers(ctx context.Context, m job.Model, node, sheep string) (nodes []string, leftOut string, err error) {
	switch {
	case node != "":
		return []string{node}, "", nil
	case sheep == "":
		return v.placed(ctx, m)
	}
	nodes, err = v.fleet.Answering(ctx, job.Address{Sheep: sheep})
	if err != nil {
		return nil, "", err
	}
	if slices.ContainsFunc(v.local.Sheep(ctx), func(s job.Sheep) bool { return s.Name == sheep }) {
		nodes = append(nodes, v.fleet.self)
	}
	slices.Sort(nodes)
	return nodes, "", nil
}

// placed returns the live nodes that may run the model.
func (v *View) placed(ctx context.Context, m job.Model) (nodes []string, leftOut string, err error) {
	peers, err := v.peers(ctx)
	if err != nil {
		return nil, "", err
	}
	var others []string
	var why error
	place := func(node string, unfit error) {
		if unfit == nil {
			nodes = append(nodes, node)
			return
		}
		others, why = append(others, node), unfit
	}
	place(v.fleet.self, v.placement.Here(m))
	for _, p := range peers {
		place(p.Name, v.placement.On(p.Labels, m))
	}
	slices.Sort(nodes)
	slices.Sort(others)
	switch {
	case why == nil:
		return nodes, "", nil
	case len(nodes) == 0:
		return nil, "", &job.ModelError{Problem: fmt.Sprintf("%v, which no node that is up has; name a node to fetch it there anyway", why), Class: errdefs.ErrFailedPrecondition}
	}
	return nodes, fmt.Sprintf("left out: %s; %v", strings.Join(others, ", "), why), nil
}

// RemoveModel removes a model from the disk of a node or, if none is named, of all. If some
// nodes fail, the others continue. The error is as that of PullModel.
func (v *View) RemoveModel(ctx context.Context, m job.Model, node string) error {
	nodes := []string{node}
	if node == "" {
		var err error
		if nodes, err = v.everyone(ctx); err != nil {
			return err
		}
	}
	errs := askAll(nodes, func(_ int, node string) error {
		if node == v.fleet.self {
			return v.local.RemoveModel(ctx, m)
		}
		return v.fleet.order(ctx, node, removePath, removeOrder{m})
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for i, err := range errs {
		var needed *job.ModelNeeded
		if errors.As(err, &needed) && needed.Sheep != "" {
			errs[i] = &job.ModelNeeded{Model: needed.Model, Sheep: ID(nodes[i], needed.Sheep)}
		}
	}
	// A node among several need not have the model.
	return v.together(nodes, errs, func(err error) bool { return errors.Is(err, job.ErrNoModels) || errdefs.IsNotFound(err) })
}

// peers returns the other live nodes.
func (v *View) peers(ctx context.Context) ([]Node, error) {
	peers, err := v.fleet.Peers(ctx)
	if err != nil {
		return nil, &job.Unavailable{Service: "ledger", Problem: "cannot be asked for the nodes", Cause: err}
	}
	return peers, nil
}

// everyone returns this node and all other live nodes, sorted.
func (v *View) everyone(ctx context.Context) ([]string, error) {
	peers, err := v.peers(ctx)
	if err != nil {
		return nil, err
	}
	nodes := []string{v.fleet.self}
	for _, p := range peers {
		nodes = append(nodes, p.Name)
	}
	slices.Sort(nodes)
	return nodes, nil
}

// askAll calls do for all nodes at once, and returns their errors.
func askAll(nodes []string, do func(i int, node string) error) []error {
	errs := make([]error, len(nodes))
	var asking sync.WaitGroup
	for i, node := range nodes {
		asking.Go(func() { errs[i] = do(i, node) })
	}
	asking.Wait()
	return errs
}

// together returns the error of an order to several nodes. An idle error means that a node had
// nothing to do: it counts only if all nodes return it.
func (v *View) together(nodes []string, errs []error, idles func(error) bool) error {
	var failed []string
	var first, idle error
	for i, err := range errs {
		switch {
		case err == nil:
		case idles(err):
			idle = cmp.Or(idle, err)
		default:
			first = cmp.Or(first, err)
			failed = append(failed, "node "+nodes[i]+": "+v.problemOf(nodes[i], err))
		}
	}
	switch {
	case len(failed) == 0 && slices.Contains(errs, nil):
		return nil
	case len(failed) == 0:
		return idle
	case len(nodes) == 1 || len(failed) == 1 && typed(first):
		return first
	}
	return &job.ModelError{Problem: strings.Join(failed, "; "), Class: classOf(first)}
}

// typed reports whether an error names its node itself.
func typed(err error) bool {
	var needed *job.ModelNeeded
	var away *job.Unavailable
	return errors.As(err, &needed) || errors.As(err, &away)
}

// classOf returns the class of an error about models.
func classOf(err error) error {
	for _, c := range modelClasses {
		if errors.Is(err, c.class) {
			return c.class
		}
	}
	var needed *job.ModelNeeded
	if errors.As(err, &needed) {
		return errdefs.ErrFailedPrecondition
	}
	return errdefs.ErrInternal
}

// problemOf describes a node's error for users. Details that they may not see are logged.
func (v *View) problemOf(node string, err error) string {
	if refused, ok := refusalOf(err); ok && refused.Code != codeFault {
		return err.Error()
	}
	var away *job.Unavailable
	var unknown *job.UnknownNode
	switch {
	case errors.As(err, &away):
		return away.Problem
	case errors.As(err, &unknown):
		return err.Error()
	}
	v.fleet.log.Error("A node cannot fulfil a request about its models", "node", node, "error", err)
	return "could not do it; its log says why"
}

// progress combines the progress of several nodes.
type progress struct {
	report func(job.PullProgress)
	nodes  []string

	mu   sync.Mutex
	last []job.PullProgress // of each
}

// tell reports the combined progress after a step of node i.
func (p *progress) tell(i int, step job.PullProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.nodes) == 1 {
		p.report(step)
		return
	}
	p.last[i] = step
	all := job.PullProgress{Text: p.nodes[i] + ": " + step.Text}
	for _, of := range p.last {
		all.Done, all.Total, all.Rate = all.Done+of.Done, all.Total+of.Total, all.Rate+of.Rate
	}
	p.report(all)
}
