package job

import "time"

// Node is a daemon that shares the ledger with others.
type Node struct {
	Name  string
	State NodeState
	// Lost is when the lease of a lost node ended.
	Lost time.Time
	// Drained says that an operator wants it to claim no jobs.
	Drained bool
	Jobs    int // that it holds
	Joined  time.Time
	Version string // of its daemon
	Address string // at which the other nodes reach it
	Labels  Labels
	// Sheep have their name on the node, their type and the model that they have loaded.
	Sheep []Sheep
}

// NodeState says whether a node is there.
type NodeState string

// States of a node.
const (
	NodeUp      NodeState = "up"
	NodeStopped NodeState = "stopped" // by itself
	NodeLost    NodeState = "lost"    // its jobs run elsewhere
)
