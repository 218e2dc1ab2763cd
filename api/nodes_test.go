package api

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
)

// madeUpNodes keeps what it is told.
type madeUpNodes struct {
	nodes []job.Node
	told  []string
	err   error
}

func (n *madeUpNodes) Nodes(context.Context) ([]job.Node, error) { return n.nodes, n.err }

func (n *madeUpNodes) DrainNode(_ context.Context, node string, drain bool) error {
	n.told = append(n.told, fmt.Sprintf("drain %s %t", node, drain))
	return n.err
}

func (n *madeUpNodes) ForgetNode(_ context.Context, node string) error {
	n.told = append(n.told, "forget "+node)
	return n.err
}

// The nodes of a fleet are listed, and told what to do, by their names.
func TestNodes(t *testing.T) {
	nodes := &madeUpNodes{nodes: []job.Node{
		{
			Name: "gpu-1", State: job.NodeUp, Drained: true, Jobs: 2, Joined: enqueued, Version: "v1", Address: "http://gpu-1:5000", Labels: job.Labels{"gpu": "a100"},
			Sheep: []job.Sheep{{Name: "s1", Type: "container", Model: someModel}, {Name: "s2", Type: "bare"}},
		},
		{Name: "gpu-2", State: job.NodeLost, Lost: enqueued.Add(time.Minute), Joined: enqueued},
	}}
	h := newHarness(t, asAdmin, func(c *Config) { c.Nodes = nodes })
	joined, lost := *job.FormatTime(enqueued), *job.FormatTime(enqueued.Add(time.Minute))
	h.expect(h.get("/nodes"), 200, fmt.Sprintf(`{"nodes": [
		{"name": "gpu-1", "state": "up", "lost_at": null, "drained": true, "jobs": 2, "joined_at": %q, "version": "v1", "address": "http://gpu-1:5000", "labels": {"gpu": "a100"},
			"sheep": [{"name": "s1", "type": "container", "model": {"name": %q, "version": %q}}, {"name": "s2", "type": "bare", "model": {"name": null, "version": null}}]},
		{"name": "gpu-2", "state": "lost", "lost_at": %q, "drained": false, "jobs": 0, "joined_at": %q, "version": null, "address": null, "labels": {}, "sheep": []}]}`,
		joined, someModel.Name, someModel.Version, lost, joined))
	for _, one := range [][2]string{{"POST", "/nodes/gpu-1/drain"}, {"POST", "/nodes/gpu-1/resume"}, {"DELETE", "/nodes/a%2Fb"}} {
		h.expect(h.do(one[0], one[1], ""), 200, `{"success": true}`)
	}
	if got := strings.Join(nodes.told, ", "); got != "drain gpu-1 true, drain gpu-1 false, forget a/b" {
		t.Errorf("they are told %s", got)
	}
	nodes.err = &job.UnknownNode{Name: "gpu-3"}
	h.problem(h.do("POST", "/nodes/gpu-3/drain", ""), 404, "unknown-node", "Unknown node `gpu-3`")
	nodes.err = &job.NodeInUse{Problem: "node gpu-1 is up: stop its daemon first"}
	h.problem(h.do("DELETE", "/nodes/gpu-1", ""), 409, "node-in-use", "node gpu-1 is up: stop its daemon first")
	nodes.err = &job.Unavailable{Service: "ledger", Problem: "is not reachable"}
	h.problem(h.get("/nodes"), 503, "unavailable", "The ledger is not reachable; try again later")
}

// A daemon that has its ledger alone says so.
func TestNoFleet(t *testing.T) {
	h := newHarness(t, asAdmin)
	for _, one := range [][2]string{{"GET", "/nodes"}, {"POST", "/nodes/a/drain"}, {"POST", "/nodes/a/resume"}, {"DELETE", "/nodes/a"}} {
		h.problem(h.do(one[0], one[1], ""), 404, "no-fleet", string(errNoFleet))
	}
}
