// Package fleet has the daemons that share a ledger answer for one another. A node's
// sheep, GPUs and logs are known only to its own daemon. A daemon that is asked about
// another node's requests them from that node over HTTP, with a secret shared by all nodes.
//
// The protocol is between daemons of one version, or of two that follow each other: a
// reader ignores what it does not know.
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

// Node is a daemon that shares the ledger, as it has announced itself there.
type Node struct {
	Name    string
	Address string // URL of its API
	Alive   bool   // its lease has not ended
	// Draining says that it claims no job, and Held how many it has.
	Draining bool
	Held     int
	// Sheep have no more than their names, types and models.
	Sheep  []job.Sheep
	Models []job.Model // on its disk
	Labels job.Labels
}

// Directory knows all nodes, this one included.
type Directory func(ctx context.Context) ([]Node, error)

// answerTime bounds the wait for the beginning of another node's answer, where
// Config.Timeout does not say.
const answerTime = 3 * time.Second

// Config is what a Fleet is made of. Self, Directory and Log are required.
type Config struct {
	Self      string // this node's name
	Directory Directory
	// Secret authenticates nodes to one another; without one no other node is asked.
	Secret string
	// TLS is used for addresses that begin with https; nil trusts the machine's
	// authorities.
	TLS *tls.Config
	// Timeout bounds the wait for the beginning of an answer; 0 is 3 s.
	Timeout time.Duration
	Log     *slog.Logger
}

// Fleet asks other nodes. Its methods may be called from any goroutine.
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
			// The secret goes to the address that the node has announced, and no further.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close closes idle connections.
func (f *Fleet) Close() { f.client.CloseIdleConnections() }

// ID is the name of a node's sheep in the fleet.
func ID(node, sheep string) string { return node + "/" + sheep }

// SplitID splits such a name; node is empty for one without.
func SplitID(id string) (node, sheep string) {
	if node, sheep, ok := strings.Cut(id, "/"); ok {
		return node, sheep
	}
	return "", id
}

// Peers are the other nodes that are alive.
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

// Answering are the names of the other nodes that are alive and have a sheep with the
// address.
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

// unreachable is the error for a known node that cannot be reached.
func unreachable(node, problem string, cause error) error {
	return &job.Unavailable{Service: "node " + node, Problem: problem, Cause: fmt.Errorf("node %s %s: %w", node, problem, cause)}
}

// Sheep are those of another node as they are now.
func (f *Fleet) Sheep(ctx context.Context, node string) ([]job.Sheep, error) {
	var sheep []job.Sheep
	err := f.get(ctx, node, sheepPath, &sheep)
	return sheep, err
}

// GPUs are those of another node.
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

// OrderSheep tells a sheep of another node what to do, and returns when it has. The error
// is that of Local, or *job.Unavailable.
func (f *Fleet) OrderSheep(ctx context.Context, node, sheep string, o job.Order) error {
	return f.order(ctx, node, orderPath(sheep), o)
}

// AttemptLog opens what another node has kept of the log of an attempt. The error is
// job.ErrNoJobLog, also of a node that is not up, or *job.Unavailable.
func (f *Fleet) AttemptLog(ctx context.Context, node string, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error) {
	log, err := f.open(ctx, node, http.MethodGet, attemptLogPath(id, run, attempt, q), nil)
	if unknown := new(job.UnknownNode); errors.Is(err, errDown) || errors.As(err, &unknown) {
		return nil, job.ErrNoJobLog
	}
	return log, err
}
