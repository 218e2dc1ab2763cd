// Package daemon creates the parts of shepherdd (ledger, storage, GPUs, sheep, core, API)
// from a configuration file, runs them until the daemon is stopped, and stops them in
// reverse order. plugins.go is the only list of sheep types.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/fleet"
	"github.com/iterait/shepherd/internal/diskspace"
	"github.com/iterait/shepherd/internal/mounts"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/internal/systemd"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/webhook"
)

// Options are the daemon's command line options.
type Options struct {
	// ConfigFile is the path of the configuration file.
	ConfigFile string
	// Host and Port replace api.host and api.port, unless they are nil.
	Host *string
	Port *int
	// Version and Commit are shown by the API and in metrics.
	Version, Commit string
	// Manager is the service manager; nil if the daemon was not started by one.
	Manager *systemd.Manager
	// StopSheep makes the daemon adopt the sheep that an earlier one left running, stop
	// them and return, without claiming jobs.
	StopSheep bool
	// DrainTimeout replaces drain_timeout with StopSheep, unless it is negative.
	DrainTimeout time.Duration
}

// closers are cleanup functions, called in reverse order.
type closers []func()

func (c *closers) add(f func()) { *c = append(*c, f) }

func (c closers) close() {
	for i := len(c) - 1; i >= 0; i-- {
		c[i]()
	}
}

// daemon holds the parts from reading the configuration until all have stopped.
type daemon struct {
	options Options
	level   *slog.LevelVar
	log     *slog.Logger
	closing closers

	config    *config.Config // at the start of the daemon
	listeners *listeners
	telemetry *telemetry
	ledger    keptLedger
	store     storage.Store
	// storageAddress is the address of the embedded storage; empty for an external one.
	storageAddress string
	gpus           *gpus
	env            *environment
	drivers        map[string]runtime.Driver
	members        []shepherd.Member
	core           *shepherd.Shepherd
	fleet          *fleet.Fleet        // nil if the ledger is not shared
	secret         string              // shared by the nodes of a fleet; empty for none
	webhooks       *webhook.Dispatcher // nil if no webhooks are configured
}

// Run runs the daemon. It starts draining when ctx ends, and returns when everything has
// stopped. The log goes to logTo unless the configuration sends it to the journal. The error
// is config.Problems for an invalid configuration, *LockedError if another daemon uses the
// state directory and *UnmountedError if a file system is not mounted yet.
func Run(ctx context.Context, o Options, logTo io.Writer) error {
	d := &daemon{options: o, level: new(slog.LevelVar)}
	defer func() { d.closing.close() }()
	if err := d.configure(logTo); err != nil {
		return err
	}
	if err := d.open(ctx); err != nil {
		return err
	}
	if err := d.startCore(ctx); err != nil {
		return err
	}
	if d.webhooks != nil && !d.options.StopSheep {
		d.webhooks.Start()
		d.closing.add(d.webhooks.Stop)
	}
	return d.serve(ctx)
}

// configure reads the configuration and sets up logging.
func (d *daemon) configure(logTo io.Writer) (err error) {
	if d.config, err = loadConfig(d.options); err != nil {
		return err
	}
	d.level.Set(d.config.Logging.SlogLevel())
	log, closeLog, err := newLogger(logTo, d.config.Logging.Format, d.level)
	if err != nil {
		return err
	}
	d.log = log
	d.closing.add(closeLog)
	logConfigWarnings(d.config, log)
	return nil
}

// logConfigWarnings logs the keys of the configuration that have no effect.
func logConfigWarnings(c *config.Config, log *slog.Logger) {
	for _, warning := range c.Warnings {
		log.Warn("A key of the configuration is not used", "file", warning.File, "line", warning.Line, "key", warning.Path, "reason", warning.Text)
	}
}

// open locks the state directory and opens the listeners, ledger, storage and GPUs. If a
// file system is not mounted it returns an error instead of waiting: the service manager
// restarts the daemon.
func (d *daemon) open(ctx context.Context) error {
	if err := checkMounts(d.config, mounts.Missing); err != nil {
		return err
	}
	lock, err := lockState(d.config.StateDir)
	if err != nil {
		return err
	}
	d.closing.add(func() { lock.Close() })
	if d.listeners, err = openListeners(d.config, d.options.Manager, d.log); err != nil {
		return err
	}
	d.closing.add(d.listeners.close)
	if d.telemetry, err = newTelemetry(ctx, d.options.Version, d.options.Commit, d.log, &d.closing); err != nil {
		return err
	}
	// With the embedded storage no other node can access the jobs' files, so the ledger must not be shared.
	if d.ledger, err = openLedger(ctx, d.config, d.config.Storage.Embedded(), d.log, &d.closing); err != nil {
		return err
	}
	if d.store, d.storageAddress, err = openStorage(d.config, d.telemetry.metrics.Storage, d.log, &d.closing); err != nil {
		return err
	}
	d.gpus, err = openGPUs(ctx, d.config, d.log, &d.closing)
	return err
}

// startCore creates the sheep and the core, and starts the core, which adopts jobs left by
// an earlier daemon.
func (d *daemon) startCore(ctx context.Context) error {
	node, err := nodeName(d.config)
	if err != nil {
		return err
	}
	d.env = newEnvironment(d.config, node, d.ledger, d.gpus, d.telemetry.metrics, d.log)
	if d.members, d.drivers, err = createSheep(d.env, &d.closing); err != nil {
		return err
	}
	startDrivers(ctx, d.drivers, d.members, d.log)
	c := d.config
	if d.fleet, d.secret, err = openFleet(c, node, d.ledger, d.log, &d.closing); err != nil {
		return err
	}
	if d.webhooks, err = d.openWebhooks(); err != nil {
		return err
	}
	var others shepherd.Fleet
	if d.fleet != nil {
		others = d.fleet
	}
	drained, err := readDrained(c.StateDir)
	if err != nil {
		return err
	}
	presigner, err := presignerOf(c.Storage)
	if err != nil {
		return err
	}
	uploads, err := uploadsOf(c.Storage, d.storageAddress, d.ledger)
	if err != nil {
		return err
	}
	state := diskspace.Floor{Path: c.StateDir, Free: int64(c.MinFree)}
	d.core, err = shepherd.New(shepherd.Config{
		Node: node, DataRoot: c.DataRoot, Ledger: d.ledger, Webhooks: d.ledger, Peers: peersOf(d.ledger), Fleet: others, Store: d.store, Presigner: presigner, Uploads: uploads, Sheep: d.members, Trust: c.Models.Trust(), Placement: placementOf(c),
		StageAhead: *c.Scheduling.StageAhead, StageBudget: int64(c.Scheduling.StageBudget),
		StageRoom: diskspace.Floor{Path: c.DataRoot, Free: int64(c.MinFree)}.Check, StateRoom: func() error { return state.Check(0) },
		MaxQueued: c.API.MaxQueued, Policy: policyOf(c), Retention: shepherd.Retention{Ledger: d.ledger, Policy: c.Storage.Keep.Retention()},
		Drained: drained, KeepDrained: func(sheep []string) error { return writeDrained(c.StateDir, sheep) },
		Limits: limitDefaults(c), MaxTurn: c.Scheduling.MaxTurn,
		MaxAttempts: c.Scheduling.MaxAttempts, Closing: d.options.StopSheep, Observer: d.telemetry.observer, Tracer: d.telemetry.tracer, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.telemetry.expose(c, node, d.core, d.ledger, d.gpus, d.drivers)
	reportStorage(ctx, d.store.Ping, c.Storage.URL, d.log, &d.closing)
	return d.core.Start(ctx)
}

// announce publishes this node to the other nodes of a shared ledger until stop is called.
func (d *daemon) announce() (stop func()) {
	shared, ok := d.ledger.(registry)
	if !ok {
		return func() {}
	}
	a := &announcer{
		registry: shared, node: d.env.node, sheep: d.core.Sheep, models: d.core.Models, log: d.log,
		about: postgres.About{Address: cmp.Or(d.config.Fleet.Address, d.listeners.urlFrom(d.config.Node)), Version: d.options.Version, Labels: d.config.Fleet.NodeLabels()},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var announcing sync.WaitGroup
	announcing.Go(func() { a.run(ctx) })
	return func() {
		cancel()
		announcing.Wait()
	}
}

// placementOf returns the rules that assign models to nodes, and this node's labels.
func placementOf(c *config.Config) shepherd.Placement {
	p := shepherd.Placement{Labels: c.Fleet.NodeLabels()}
	for _, m := range c.Models.Nodes {
		p.Rules = append(p.Rules, shepherd.PlacementRule{Models: m.Rule(), Labels: m.NodeLabels()})
	}
	return p
}

// limitDefaults returns the default limits of jobs, without those of sheep.
func limitDefaults(c *config.Config) shepherd.LimitDefaults {
	limits := shepherd.LimitDefaults{All: c.Limits.Job()}
	for _, m := range c.Models.Limits {
		limits.Models = append(limits.Models, shepherd.LimitRule{Models: m.Rule(), Limits: m.Limits.Job()})
	}
	return limits
}

// serve serves the API until ctx ends or a server fails, and then stops with the
// configuration in effect at that time.
func (d *daemon) serve(ctx context.Context) (err error) {
	// Requests that wait for a job end when the core has stopped.
	requests, endRequests := context.WithCancelCause(context.Background())
	defer endRequests(nil)
	configuration := &reloader{
		read: func() (*config.Config, error) { return loadConfig(d.options) }, core: d.core, level: d.level, log: d.log,
		env: d.env, drivers: d.drivers, listeners: d.listeners,
		started: d.config, current: d.config, members: d.members,
	}
	served := d.serveAPI(requests, configuration)
	stopReporting := startReporting(&reporter{manager: d.options.Manager, core: d.core, ledger: d.ledger, log: d.log}, configuration)
	defer stopReporting()
	defer d.announce()()
	if err := proc.UnmapProgram(); err != nil {
		d.log.Debug("Cannot unmap what only the start needed", "error", err)
	}

	failed := 0 // number of servers whose error was received
	stopAtOnce := make(chan struct{})
	if d.options.StopSheep {
		close(stopAtOnce)
	}
	last := configuration.now
	select {
	case <-stopAtOnce:
	case err = <-served:
		err, failed = fmt.Errorf("serve the API: %w", err), 1
	case <-d.core.LeaseLost():
		err = errLeaseLost
		last = func() *config.Config { // no job may continue
			c := *configuration.now()
			c.OnExit, c.DrainTimeout = "stop", 0
			return &c
		}
	case <-ctx.Done():
	}
	d.stop(last(), endRequests, func() {
		closing, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err = errors.Join(err, d.listeners.shutdown(closing, failed))
	})
	d.log.Info("Stopped")
	return err
}

// serveAPI starts the servers. The channel it returns receives the error of each
// server that ends.
func (d *daemon) serveAPI(base context.Context, configuration *reloader) <-chan error {
	c := d.config.API
	served := node{d.core, func() time.Duration { return configuration.now().DrainTimeout }}
	own := local{served, d.gpus.keeper.GPUs}
	alone := aloneService{served, d.env.node}
	var service api.Service = alone
	gpus := func(ctx context.Context, node string) (job.GPUs, error) {
		if err := alone.check(node); err != nil {
			return job.GPUs{}, err
		}
		return own.GPUs(ctx), nil
	}
	if d.fleet != nil && d.secret != "" {
		view := fleet.NewView(own, d.fleet, placementOf(d.config))
		service, gpus = flockService{served, view}, view.GPUs
	}
	var webhooks api.Webhooks
	if d.webhooks != nil {
		webhooks = d.webhooks
	}
	handler := api.New(api.Config{
		Service: service, Nodes: nodesServiceOf(d.ledger), Webhooks: webhooks, Gate: d.listeners.gate, Browsers: d.listeners.browsers, MaxBody: int64(c.MaxBody), MaxUpload: int64(c.MaxUpload), BodyMemory: int64(c.BodyMemory), Debug: c.Debug, GPUs: gpus,
		Metrics: d.telemetry.metrics.Handler(), Refused: d.telemetry.metrics.Refused, Version: d.options.Version, Commit: d.options.Commit, Log: d.log,
	})
	admin := d.listeners.browsers.Protect(withAdmin(withDebug(handler, configuration.now, d.listeners.local), d.core, configuration, d.listeners.local))
	ended := d.listeners.serve(base, fleet.Handler(own, d.secret, handler, d.log), admin, d.log)
	d.log.Info("Shepherd API is available at " + d.listeners.url())
	for _, warning := range d.listeners.serves(c).Warnings() {
		d.log.Warn(warning)
	}
	return ended
}

// stop stops the core and then calls shutdown for the servers. endRequests ends the requests
// that wait for jobs.
func (d *daemon) stop(c *config.Config, endRequests context.CancelCauseFunc, shutdown func()) {
	if err := d.options.Manager.Stopping(c.DrainTimeout + stopTime); err != nil {
		d.log.Warn("Cannot notify the service manager", "error", err)
	}
	draining, cancel := context.WithTimeout(context.Background(), c.DrainTimeout)
	defer cancel()
	draining, stopSignals := signal.NotifyContext(draining, StopSignals(d.options.Manager)...)
	defer stopSignals()
	if c.OnExit != "leave" {
		d.log.Info("Stopping: running jobs may finish, the others go back to the queue", "drain_timeout", c.DrainTimeout)
		// The API answers until the last job has ended, and refuses new jobs.
		d.core.Stop(draining)
		if d.fleet != nil { // a load balancer may still have been sending requests
			d.answerOpen(context.Background(), endRequests)
		}
		endRequests(job.ErrDraining)
		shutdown()
		return
	}
	d.log.Info("Stopping: the sheep stay up, and running jobs continue")
	d.answerOpen(draining, endRequests)
	shutdown()
	d.core.Leave(draining)
}

// answerOpen answers the open requests. New connections wait for the next daemon if the
// service manager holds the sockets; otherwise they are refused, so that a load balancer
// tries another node. Requests that wait for a job end a second later.
func (d *daemon) answerOpen(ctx context.Context, endRequests func(error)) {
	waiters := time.AfterFunc(time.Second, func() { endRequests(job.ErrDraining) })
	defer waiters.Stop()
	answering, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	d.listeners.stopAccepting(answering)
}

// errLeaseLost ends a daemon whose jobs other nodes may have taken.
var errLeaseLost = errors.New("this node's lease in the ledger is lost, because the database was not reached in time or another daemon joined under this node's name; started again, the daemon joins again")

// closeTime is how long open requests may take at the end of the daemon.
const closeTime = 5 * time.Second

// stopTime is how long the daemon may take to end, besides draining jobs.
const stopTime = time.Minute

// StopSignals returns the signals that stop a daemon. SIGHUP, sent when a terminal is
// closed, is one of them unless it is ignored (nohup) or a service manager uses it to
// request a reload.
func StopSignals(manager *systemd.Manager) []os.Signal {
	signals := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) && !manager.Notifies() {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// LoadConfig reads the configuration file as a daemon started by hand does. The error is
// config.Problems for an invalid file.
func LoadConfig(file string) (*config.Config, error) {
	return loadConfig(Options{ConfigFile: file})
}

// loadConfig reads the configuration; the command line overrides the file.
func loadConfig(o Options) (*config.Config, error) {
	return config.Loader{Types: sheepChecks(), LedgerURL: postgres.CheckURL, Env: o.lookupEnv, Override: func(c *config.Config) {
		if o.Host != nil {
			c.API.Host = *o.Host
		}
		if o.Port != nil {
			c.API.Port = *o.Port
		}
		if debug := os.Getenv("DEBUG"); debug != "" && debug != "0" {
			c.API.Debug = true
		}
		if o.StopSheep {
			c.API.Host, c.API.Port = "127.0.0.1", 0
			c.API.Socket = "" // use the default: the configured one may be held by systemd
			c.OnExit = "stop"
			if o.DrainTimeout >= 0 {
				c.DrainTimeout = o.DrainTimeout
			}
		}
	}}.Load(o.ConfigFile)
}

// lookupEnv looks up a variable in the environment at the start of the daemon.
func (o Options) lookupEnv(name string) (string, bool) {
	if name == "NOTIFY_SOCKET" && o.Manager.Notifies() {
		return o.Manager.Address(), true
	}
	return environmentWith(credentialsOfService(), name)
}
