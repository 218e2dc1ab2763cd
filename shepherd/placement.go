package shepherd

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Placement is which models this node may run. All nodes of a fleet have the same rules;
// each has its own labels.
type Placement struct {
	Labels job.Labels // of this node
	// Rules assign models to nodes. The first rule that matches a model counts; a model
	// that no rule matches may run on every node.
	Rules []PlacementRule
}

// PlacementRule restricts the models that match a pattern to the nodes that have all the
// labels.
type PlacementRule struct {
	Models job.Rule
	Labels job.Labels
}

// check is On for this node.
func (p Placement) check(m job.Model) error { return p.On(p.Labels, m) }

// Here is On for this node.
func (p Placement) Here(m job.Model) error { return p.check(m) }

// On returns an error of class errdefs.ErrFailedPrecondition if the model must not run on a
// node with the labels.
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
