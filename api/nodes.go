package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/iterait/shepherd/job"
)

// NodeService looks after the nodes that share the ledger.
type NodeService interface {
	// Nodes is every node by name, those that are not up included.
	Nodes(ctx context.Context) ([]job.Node, error)

	// DrainNode has a node claim no more jobs, or claim jobs again. It returns
	// *job.UnknownNode.
	DrainNode(ctx context.Context, node string, drain bool) error

	// ForgetNode removes a node that is not up, once the others have its jobs. It returns
	// *job.UnknownNode and *job.NodeInUse.
	ForgetNode(ctx context.Context, node string) error
}

// nodeServer serves the nodes of a fleet.
type nodeServer struct {
	answers
	nodes NodeService // nil on a machine that has its ledger alone
}

// ListNodes answers GET /nodes.
func (s *nodeServer) ListNodes(w http.ResponseWriter, r *http.Request) {
	if s.nodes == nil {
		s.fail(w, r, errNoFleet)
		return
	}
	nodes, err := s.nodes.Nodes(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer := NodeList{Nodes: make([]Node, len(nodes))}
	for i, n := range nodes {
		answer.Nodes[i] = shownNode(n)
	}
	s.answer(w, r, http.StatusOK, answer)
}

func shownNode(n job.Node) Node {
	shown := Node{
		Name: n.Name, State: NodeState(n.State), LostAt: job.FormatTime(n.Lost), Drained: n.Drained, Jobs: n.Jobs, JoinedAt: job.FormatTime(n.Joined),
		Version: orNull(n.Version), Address: orNull(n.Address), Labels: n.Labels, Sheep: make([]NodeSheep, len(n.Sheep)),
	}
	if shown.Labels == nil {
		shown.Labels = map[string]string{}
	}
	for i, one := range n.Sheep {
		shown.Sheep[i] = NodeSheep{Name: one.Name, Type: one.Type, Model: modelOf(one)}
	}
	return shown
}

// DrainNode answers POST /nodes/{node}/drain.
func (s *nodeServer) DrainNode(w http.ResponseWriter, r *http.Request, node string) {
	s.order(w, r, node, func(node string) error { return s.nodes.DrainNode(r.Context(), node, true) })
}

// ResumeNode answers POST /nodes/{node}/resume.
func (s *nodeServer) ResumeNode(w http.ResponseWriter, r *http.Request, node string) {
	s.order(w, r, node, func(node string) error { return s.nodes.DrainNode(r.Context(), node, false) })
}

// ForgetNode answers DELETE /nodes/{node}.
func (s *nodeServer) ForgetNode(w http.ResponseWriter, r *http.Request, node string) {
	s.order(w, r, node, func(node string) error { return s.nodes.ForgetNode(r.Context(), node) })
}

func (s *nodeServer) order(w http.ResponseWriter, r *http.Request, rawNode string, do func(node string) error) {
	node, err := url.PathUnescape(rawNode)
	if err != nil {
		node = rawNode // which no node is called
	}
	if s.nodes == nil {
		err = errNoFleet
	} else {
		err = do(node)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}
