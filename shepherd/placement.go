package shepherd

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Placement says which models this node is for. The nodes of a fleet have the same rules
// and labels of their own.
type Placement struct {
	Labels job.Labels // of this node
	// Rules choose nodes for models. The first that matches a model counts; a model that
	// none matches is for every node.
	Rules []PlacementRule
}

// PlacementRule chooses the nodes that have all the labels for the models that a pattern
// matches.
type PlacementRule struct {
	Models job.Rule
	Labels job.Labels
}

// check is On this node.
func (p Placement) check(m job.Model) error { return p.On(p.Labels, m) }

// Here is On this node.
func (p Placement) Here(m job.Model) error { return p.check(m) }

// On says why the model is not for a node with the labels, with an error of class
// errdefs.ErrFailedPrecondition; nil where it is.
func (p Placement) On(labels job.Labels, m job.Model) error {
	for _, rule := range p.Rules {
		if !rule.Models.Matches(m) {
			continue
		}
		missing := job.Labels{}
		for key, want := range rule.Labels {
			if value, ok := labels[key]; !ok || value != want {
				missing[key] = want
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("model `%s` is for nodes with %s: %w", m, labelText(missing), errPlacement)
		}
		return nil
	}
	return nil
}

var errPlacement = fmt.Errorf("this node has other labels: %w", errdefs.ErrFailedPrecondition)
