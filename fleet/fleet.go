// Package fleet forwards requests between the daemons that share a ledger. Only a node's own
// daemon knows its sheep, GPUs and logs. Other daemons request them from it over HTTP, with a
// secret that all nodes share.
//
// Daemons of the same or of consecutive versions understand each other: readers ignore
// unknown fields.
package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// Node is a daemon that shares the ledger, as announced in the ledger.
type Node struct {
	Name    string
	Address string // URL of its API
	Alive   bool   // its lease is valid
	// Draining means that it claims no jobs; Held is the number of jobs that it has.
	Draining bool
	Held     int
	// Sheep have only their names, types and models.
	Sheep  []job.Sheep
	Models []job.Model // on its disk
	Labels job.Labels
}

// Directory knows all nodes, this one included.
type Directory func(ctx context.Context) ([]Node, error)

// answerTime is the default of Config.Timeout.
const answerTime = 3 * time.Second

// Config configures a Fleet. Self, Directory and Log are required.
type Config struct {
	Self      string // this node's name
	Directory Directory
	// Secret authenticates nodes to one another; without one, no requests are sent.
	Secret string
	// TLS is used for addresses that begin with https; nil trusts the machine's
	// authorities.
	TLS *tls.Config
	// Timeout bounds the wait for the beginning of an answer; 0 is 3 s.
	Timeout time.Duration
	Log     *slog.Logger
}

// Fleet sends requests to other nodes. It is safe for concurrent use.
type Fleet struct {
	self      string
	directory Directory
	secret    string
	timeout   time.Duration
	client    *http.Client
	log       *slog.Logger
	cache     peerCache
}

// New makes a Fleet. It sends no request.
func New(c Config) *Fleet {
	if c.Timeout == 0 {
		c.Timeout = answerTime
	}
	dialer := &net.Dialer{Timeout: c.Timeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3}}
	return &Fleet{
		self: c.Self, directory: c.Directory, secret: c.Secret, timeout: c.Timeout, log: c.Log,
		client: &http.Client{
			Transport: &http.Transport{
				DialContext: dialer.DialContext, TLSClientConfig: c.TLS, TLSHandshakeTimeout: c.Timeout,
				ResponseHeaderTimeout: c.Timeout, IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 4,
			},
			// The secret is sent only to the address that the node has announced.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close closes idle connections.
func (f *Fleet) Close() { f.client.CloseIdleConnections() }

// ID returns the name of a node's sheep in the fleet.
func ID(node, sheep string) string { return node + "/" + sheep }

// SplitID splits such a name; node is empty if the name has none.
func SplitID(id string) (node, sheep string) {
	if node, sheep, ok := strings.Cut(id, "/"); ok {
		return node, sheep
	}
	return "", id
}

// Peers returns the other live nodes.
func (f *Fleet) Peers(ctx context.Context) ([]Node, error) {
	nodes, err := f.directory(ctx)
	if err != nil {
		return nil, fmt.Errorf("look up the nodes: %w", err)
	}
	var peers []Node
	for _, n := range nodes {
		if n.Alive && n.Name != f.self {
			peers = append(peers, n)
		}
	}
	return peers, nil
}

// Answering returns the names of the other live nodes that have a sheep with the address.
func (f *Fleet) Answering(ctx context.Context, to job.Address) ([]string, error) {
	peers, err := f.Peers(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range peers {
		if slices.ContainsFunc(n.Sheep, func(s job.Sheep) bool { return to.Fits(n.Name, s.Name, n.Labels) }) {
			names = append(names, n.Name)
		}
	}
	return names, nil
}

// unreachable returns the error for a known node that cannot be reached.
func unreachable(node, problem string, cause error) error {
	return &job.Unavailable{Service: "node " + node, Problem: problem, Cause: fmt.Errorf("node %s %s: %w", node, problem, cause)}
}

// Sheep returns the current state of another node's sheep.
func (f *Fleet) Sheep(ctx context.Context, node string) ([]job.Sheep, error) {
	var sheep []job.Sheep
	err := f.get(ctx, node, sheepPath, &sheep)
	return sheep, err
}

// GPUs returns another node's GPUs.
func (f *Fleet) GPUs(ctx context.Context, node string) (job.GPUs, error) {
	var gpus job.GPUs
	err := f.get(ctx, node, gpusPath, &gpus)
	return gpus, err
}

// Logs opens the log of a sheep of another node. The error is *job.UnknownSheep,
// job.ErrNoLog or *job.Unavailable.
func (f *Fleet) Logs(ctx context.Context, node, sheep string, q job.LogQuery) (io.ReadCloser, error) {
	return f.open(ctx, node, http.MethodGet, sheepLogPath(sheep, q), nil)
}

// OrderSheep sends an order to a sheep of another node, and returns when it has been executed.
// The error is that of Local, or *job.Unavailable.
func (f *Fleet) OrderSheep(ctx context.Context, node, sheep string, o job.Order) error {
	return f.order(ctx, node, orderPath(sheep), o)
}

// AttemptLog opens the part of an attempt's log that another node has kept. The error is
// job.ErrNoJobLog, also if the node is not up, or *job.Unavailable.
func (f *Fleet) AttemptLog(ctx context.Context, node string, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error) {
	log, err := f.open(ctx, node, http.MethodGet, attemptLogPath(id, run, attempt, q), nil)
	if unknown := new(job.UnknownNode); errors.Is(err, errDown) || errors.As(err, &unknown) {
		return nil, job.ErrNoJobLog
	}
	return log, err
}
