package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// Node is a node that shares the ledger.
type Node struct {
	Name    string
	Up      bool // its lease has not ended
	Drained bool
	Held    int // number of jobs
	// Loaded and OnDisk count the models that its sheep have loaded, and those on its disk.
	Loaded, OnDisk int
}

// Nodes is the source of the nodes' metrics.
type Nodes struct {
	Self string // this node
	// All returns all nodes of the ledger by name; nil on a single node.
	All func(ctx context.Context) ([]Node, error)
	// Late returns how many renewals of the lease were late; nil without a lease.
	Late func() int64
}

// ExposeNodes registers the metrics of the nodes that share the ledger. It is called once.
func (m *Metrics) ExposeNodes(n Nodes) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("shepherd_"+name, help, labels, nil)
	}
	m.registry.MustRegister(&nodeCollector{
		nodes:   n,
		info:    desc("node_info", "This daemon's node, and as fleet the first node by name of those that share its ledger. The value is always 1.", "node", "fleet"),
		up:      desc("node_up", "1 if the node's lease is valid, 0 if it has expired.", "node"),
		drained: desc("node_drained", "1 if the node is drained and claims no jobs, else 0.", "node"),
		held:    desc("node_held_jobs", "Jobs that the node holds.", "node"),
		models:  desc("node_models", "Number of models of the node: loaded by its sheep, or on its disk.", "node", "where"),
		late:    desc("lease_renewals_late_total", "Renewals of the node's lease that were made when less than half of it was left."),
	})
}

type nodeCollector struct {
	nodes Nodes

	info, up, drained, held, models, late *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.info, c.up, c.drained, c.held, c.models, c.late} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	if c.nodes.Late != nil {
		to <- prometheus.MustNewConstMetric(c.late, prometheus.CounterValue, float64(c.nodes.Late()))
	}
	if c.nodes.All == nil {
		gauge(c.info, 1, c.nodes.Self, c.nodes.Self)
		return
	}
	all, err := c.nodes.All(ctx)
	if err != nil {
		to <- prometheus.NewInvalidMetric(c.up, err)
		return
	}
	fleet := c.nodes.Self
	for _, n := range all {
		fleet = min(fleet, n.Name)
		gauge(c.up, number(n.Up), n.Name)
		gauge(c.drained, number(n.Drained), n.Name)
		gauge(c.held, float64(n.Held), n.Name)
		gauge(c.models, float64(n.Loaded), n.Name, "loaded")
		gauge(c.models, float64(n.OnDisk), n.Name, "disk")
	}
	gauge(c.info, 1, c.nodes.Self, fleet)
}
