package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/fleet"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/shepherd"
)

// registry is the part of a shared ledger that registers nodes.
type registry interface {
	Announce(ctx context.Context, node string, about postgres.About) error
	Nodes(ctx context.Context) ([]postgres.Node, error)
	LateRenewals() int64
}

// node is the core with the current configuration's defaults.
type node struct {
	*shepherd.Shepherd
	drainTimeout func() time.Duration
}

// OrderSheep executes an order with the configured drain timeout as the default.
func (n node) OrderSheep(ctx context.Context, sheep string, o job.Order) error {
	if o.Drain == job.UsualDrain {
		o.Drain = n.drainTimeout()
	}
	return n.Shepherd.OrderSheep(ctx, sheep, o)
}

// aloneService is the API's service on a single node.
type aloneService struct {
	node
	name string // of this node
}

// Models returns the models on this machine's disk.
func (s aloneService) Models(ctx context.Context) (job.KeptModels, error) {
	models, err := s.Shepherd.Models(ctx)
	return job.KeptModels{Models: models}, err
}

// PullModel fetches a model for sheep of this machine.
func (s aloneService) PullModel(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error {
	if err := s.check(o.Node); err != nil {
		return err
	}
	return s.Shepherd.PullModel(ctx, o.Model, o.Sheep, report)
}

// RemoveModel removes a model from this machine's disk.
func (s aloneService) RemoveModel(ctx context.Context, m job.Model, node string) error {
	if err := s.check(node); err != nil {
		return err
	}
	return s.Shepherd.RemoveModel(ctx, m)
}

// check returns *job.UnknownNode for a node that is not this one.
func (s aloneService) check(node string) error {
	if node != "" && node != s.name {
		return &job.UnknownNode{Name: node}
	}
	return nil
}

// local is what this node reports about itself to other nodes.
type local struct {
	node
	gpus func(context.Context) job.GPUs
}

// GPUs implements fleet.Local.
func (l local) GPUs(ctx context.Context) job.GPUs { return l.gpus(ctx) }

// flockService is the API's service in a fleet, with the sheep and models of all nodes.
type flockService struct {
	node
	view *fleet.View
}

func (s flockService) Sheep(ctx context.Context) []job.Sheep { return s.view.Sheep(ctx) }

func (s flockService) Logs(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error) {
	return s.view.Logs(ctx, sheep, q)
}

func (s flockService) OrderSheep(ctx context.Context, sheep string, o job.Order) error {
	return s.view.OrderSheep(ctx, sheep, o)
}

func (s flockService) Models(ctx context.Context) (job.KeptModels, error) { return s.view.Models(ctx) }

func (s flockService) PullModel(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error {
	return s.view.PullModel(ctx, o, report)
}

func (s flockService) RemoveModel(ctx context.Context, m job.Model, node string) error {
	return s.view.RemoveModel(ctx, m, node)
}

// openFleet prepares queries to the other nodes of a shared ledger; nil if the ledger is not
// shared. secret is empty if none is configured.
func openFleet(cfg *config.Config, node string, l keptLedger, log *slog.Logger, stop *closers) (_ *fleet.Fleet, secret string, err error) {
	shared, ok := l.(registry)
	if !ok {
		return nil, "", nil
	}
	if cfg.Fleet.SecretFile != "" {
		if secret, err = firstLine(cfg.Fleet.SecretFile); err != nil {
			return nil, "", fmt.Errorf("fleet.secret_file: %w; put the same secret there on all nodes, readable only by the daemon (openssl rand -hex 32)", err)
		}
	}
	trusted, err := fleetTLS(cfg)
	if err != nil {
		return nil, "", err
	}
	f := fleet.New(fleet.Config{Self: node, Directory: directoryOf(shared), Secret: secret, TLS: trusted, Log: log})
	stop.add(f.Close)
	return f, secret, nil
}

// fleetTLS returns the TLS configuration for requests to other nodes: the trusted
// authorities, and the certificate of this node's API for nodes that require one.
func fleetTLS(cfg *config.Config) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if file := cfg.Fleet.CAFile; file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("fleet.ca_file: %w", err)
		}
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("read the certificates that the machine trusts: %w", err)
		}
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("fleet.ca_file %s holds no certificate in PEM", file)
		}
	}
	if own := cfg.API.TLS; own != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(own.CertFile, own.KeyFile)
			return &pair, err
		}
	}
	return c, nil
}

// directoryOf returns the nodes that are registered in the ledger.
func directoryOf(shared registry) fleet.Directory {
	return func(ctx context.Context) ([]fleet.Node, error) {
		known, err := shared.Nodes(ctx)
		if err != nil {
			return nil, err
		}
		nodes := make([]fleet.Node, len(known))
		for i, n := range known {
			nodes[i] = fleet.Node{
				Name: n.Name, Address: n.About.Address, Alive: n.Alive, Draining: n.Draining, Held: n.Held, Models: n.About.Models, Labels: n.About.Labels,
			}
			for _, s := range n.About.Sheep {
				nodes[i].Sheep = append(nodes[i].Sheep, job.Sheep{Name: s.Name, Type: s.Type, Model: s.Model})
			}
		}
		return nodes, nil
	}
}

// nodeKeeper is the part of a shared ledger that looks after the nodes.
type nodeKeeper interface {
	Nodes(ctx context.Context) ([]postgres.Node, error)
	SetDraining(ctx context.Context, node string, draining bool) error
	Forget(ctx context.Context, node string) error
}

// nodesService is the API's service for the nodes of a fleet.
type nodesService struct{ keeper nodeKeeper }

// nodesServiceOf returns nil if the ledger is not shared.
func nodesServiceOf(l keptLedger) api.NodeService {
	if shared, ok := l.(interface{ Admin() *postgres.Admin }); ok {
		return nodesService{shared.Admin()}
	}
	return nil
}

func (s nodesService) Nodes(ctx context.Context) ([]job.Node, error) {
	known, err := s.keeper.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	nodes := make([]job.Node, len(known))
	for i, n := range known {
		nodes[i] = NodeOf(n)
	}
	return nodes, nil
}

func (s nodesService) DrainNode(ctx context.Context, node string, drain bool) error {
	return nodeError(node, s.keeper.SetDraining(ctx, node, drain))
}

func (s nodesService) ForgetNode(ctx context.Context, node string) error {
	return nodeError(node, s.keeper.Forget(ctx, node))
}

// nodeError is what clients are told of err.
func nodeError(node string, err error) error {
	switch {
	case errdefs.IsNotFound(err):
		return &job.UnknownNode{Name: node}
	case errdefs.IsFailedPrecondition(err):
		return &job.NodeInUse{Problem: errtext.Of(err)}
	}
	return err
}

// NodeOf is a node of a shared ledger. The models of one that is not up are not loaded.
func NodeOf(n postgres.Node) job.Node {
	node := job.Node{
		Name: n.Name, State: job.NodeUp, Drained: n.Draining, Jobs: n.Held, Joined: n.Joined.UTC(),
		Version: n.About.Version, Address: n.About.Address, Labels: n.About.Labels,
	}
	switch {
	case n.Alive:
	case n.Until.IsZero():
		node.State = job.NodeStopped
	default:
		node.State, node.Lost = job.NodeLost, n.Until.UTC()
	}
	for _, s := range n.About.Sheep {
		one := job.Sheep{Name: s.Name, Type: s.Type}
		if n.Alive {
			one.Model = s.Model
		}
		node.Sheep = append(node.Sheep, one)
	}
	return node
}

// announcer publishes this node in a shared ledger.
type announcer struct {
	registry registry
	node     string
	about    postgres.About // without the sheep
	sheep    func(context.Context) []job.Sheep
	models   func(context.Context) ([]job.KeptModel, error) // on this machine's disk
	log      *slog.Logger

	last     *postgres.About // published last; nil for none
	failing  bool
	listed   []job.Model // the models at listedAt
	listedAt time.Time
}

// announceEvery is the interval between two checks for changes.
const announceEvery = 5 * time.Second

// run publishes the node and its changes until ctx ends.
func (a *announcer) run(ctx context.Context) {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		a.announce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// announce publishes the node if it has changed since the last time.
func (a *announcer) announce(ctx context.Context) {
	about := a.about
	for _, s := range a.sheep(ctx) {
		about.Sheep = append(about.Sheep, postgres.Sheep{Name: s.Name, Type: s.Type, Model: s.Model})
	}
	about.Models = a.onDisk(ctx, about.Sheep)
	if a.last != nil && reflect.DeepEqual(about, *a.last) {
		return
	}
	switch err := a.registry.Announce(ctx, a.node, about); {
	case err == nil:
		a.last, a.failing = &about, false
	case ctx.Err() == nil && !a.failing:
		a.failing = true
		a.log.Warn("Cannot publish this node in the ledger; retrying", "error", err)
	}
}

// listEvery is how often the models on the disk are listed, which is more expensive than
// reading the sheep's state.
const listEvery = time.Minute

// onDisk returns the models on this machine's disk. They are listed every listEvery, and
// when a sheep has loaded another model.
func (a *announcer) onDisk(ctx context.Context, sheep []postgres.Sheep) []job.Model {
	if a.last != nil && reflect.DeepEqual(sheep, a.last.Sheep) && time.Since(a.listedAt) < listEvery {
		return a.listed
	}
	a.listedAt = time.Now()
	kept, err := a.models(ctx)
	if err != nil { // for example, containerd is down: keep the last list
		a.log.Debug("Cannot list the models on the disk for the other nodes", "error", err)
		return a.listed
	}
	a.listed = nil
	for _, k := range kept {
		a.listed = append(a.listed, k.Model)
	}
	return a.listed
}
