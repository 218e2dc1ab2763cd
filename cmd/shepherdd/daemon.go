package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/systemd"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage/s3"
)

// options are the command line's.
type options struct {
	config           string
	host             string
	port             int
	hostSet, portSet bool

	manager *systemd.Manager // nil where none has started the daemon
	// closing makes a daemon that stops what an earlier one left up, by drain,
	// and nothing else.
	closing bool
	drain   time.Duration // below 0: as configured
}

// closers are closed last first.
type closers []func()

func (c *closers) add(f func()) { *c = append(*c, f) }

func (c closers) close() {
	for i := len(c) - 1; i >= 0; i-- {
		c[i]()
	}
}

// daemon is what runs from reading the configuration until everything has
// stopped.
type daemon struct {
	options options
	level   *slog.LevelVar
	log     *slog.Logger
	closing closers

	config  *config.Config // that it started with
	doors   *doors
	seen    *observation
	records ledger.Ledger
	store   *s3.Store
	lent    *gpus
	env     *environment
	types   map[string]runtime.Driver
	members []shepherd.Member
	core    *shepherd.Shepherd
}

// serve is the daemon's whole life; it drains when the context ends.
func serve(drain context.Context, o options, logTo io.Writer) error {
	d := &daemon{options: o, level: new(slog.LevelVar)}
	defer func() { d.closing.close() }()
	if err := d.configure(logTo); err != nil {
		return err
	}
	if err := d.open(drain); err != nil {
		return err
	}
	if err := d.gather(drain); err != nil {
		return err
	}
	return d.run(drain)
}

// configure reads the configuration, and begins to log as that says.
func (d *daemon) configure(logTo io.Writer) (err error) {
	if d.config, err = load(d.options); err != nil {
		return err
	}
	d.level.Set(d.config.Logging.SlogLevel())
	log, closeLog, err := newLogger(logTo, d.config.Logging.Format, d.level)
	if err != nil {
		return err
	}
	d.log = log
	d.closing.add(closeLog)
	return nil
}

// open opens what the core stands on: the state directory, which is this daemon's
// alone from then on, the doors, the ledger, storage and GPUs.
func (d *daemon) open(ctx context.Context) error {
	lock, err := lockState(d.config.StateDir)
	if err != nil {
		return err
	}
	d.closing.add(func() { lock.Close() })
	if d.doors, err = openDoors(d.config, d.options.manager, d.log); err != nil {
		return err
	}
	d.closing.add(d.doors.close)
	version, commit := build()
	if d.seen, err = observe(ctx, version, commit, d.log, &d.closing); err != nil {
		return err
	}
	if d.records, err = openLedger(ctx, d.config, d.log, &d.closing); err != nil {
		return err
	}
	if d.store, err = openStorage(d.config, d.seen.figures.Storage, d.log, &d.closing); err != nil {
		return err
	}
	d.lent, err = openGPUs(ctx, d.config, d.log, &d.closing)
	return err
}

// gather makes the sheep and the core, and starts that: it goes on with the jobs
// there are.
func (d *daemon) gather(ctx context.Context) error {
	node, err := nodeName(d.config)
	if err != nil {
		return err
	}
	d.env = environmentOf(d.config, node, d.records, d.lent, d.seen.figures, d.log)
	if d.members, d.types, err = gather(ctx, d.env, &d.closing); err != nil {
		return err
	}
	begin(ctx, d.types, d.members, d.log)
	c := d.config
	d.core, err = shepherd.New(shepherd.Config{
		Node: node, DataRoot: c.DataRoot, Ledger: d.records, Store: d.store, Sheep: d.members, Trust: c.Models.Trust(),
		StageAhead: c.Scheduling.StageAhead, StageBudget: int64(c.Scheduling.StageBudget),
		MaxAttempts: c.Scheduling.MaxAttempts, Closing: d.options.closing, Observer: d.seen.observer, Tracer: d.seen.tracer, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.seen.expose(c, d.core, d.records, d.lent, d.types)
	welcomeStorage(ctx, d.store, c, d.log)
	return d.core.Start(ctx)
}

// run serves the API until drain ends, or a server does of itself, and then stops
// as the configuration of that moment says.
func (d *daemon) run(drain context.Context) (err error) {
	// Waiting clients are let go when the core has stopped.
	waiting, letGo := context.WithCancelCause(context.Background())
	defer letGo(nil)
	configuration := &reloader{
		read: func() (*config.Config, error) { return load(d.options) }, core: d.core, level: d.level, log: d.log,
		env: d.env, types: d.types, doors: d.doors,
		started: d.config, current: d.config, members: d.members,
	}
	served := d.answer(waiting, configuration)
	endTelling := tell(&reporter{manager: d.options.manager, core: d.core, ledger: d.records, log: d.log}, configuration)
	defer endTelling()

	ended := 0 // servers, of themselves
	enough := make(chan struct{})
	if d.options.closing {
		close(enough)
	}
	select {
	case <-enough:
	case err = <-served:
		err, ended = fmt.Errorf("serve the API: %w", err), 1
	case <-drain.Done():
	}
	d.end(configuration.now(), letGo, func() {
		closing, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err = errors.Join(err, d.doors.shut(closing, ended))
	})
	d.log.Info("Stopped")
	return err
}

// answer begins to serve the API. What it returns receives the error of a server
// that ends.
func (d *daemon) answer(base context.Context, configuration *reloader) <-chan error {
	version, commit := build()
	c := d.config.API
	handler := api.New(api.Config{
		Service: d.core, Gate: d.doors.gate, Origins: c.CORSOrigins, MaxBody: int64(c.MaxBody), Debug: c.Debug, GPUs: d.lent.keeper.GPUs,
		Metrics: d.seen.figures.Handler(), Refused: d.seen.figures.Refused, Version: version, Commit: commit, Log: d.log,
	})
	admin := withAdmin(withDebug(handler, configuration.now, d.doors.local), d.core, configuration, d.doors.local)
	served := d.doors.serve(base, handler, admin, d.log)
	d.log.Info("Shepherd API is available at " + d.doors.url())
	if at := d.doors.serves(c); at.Open() {
		d.log.Warn(at.OpenWarning())
	}
	return served
}

// end stops the core and shuts the doors; letGo lets clients go that wait for
// jobs.
func (d *daemon) end(c *config.Config, letGo context.CancelCauseFunc, shut func()) {
	if err := d.options.manager.Stopping(c.DrainTimeout + stopTime); err != nil {
		d.log.Warn("The service manager cannot be told how the daemon is", "error", err)
	}
	draining, cancel := context.WithTimeout(context.Background(), c.DrainTimeout)
	defer cancel()
	draining, stopSignals := signal.NotifyContext(draining, d.options.signalsToStop()...)
	defer stopSignals()
	if c.OnExit != "leave" {
		d.log.Info("Stopping: running jobs may finish, the others go back to the queue", "drain_timeout", c.DrainTimeout)
		// The API answers until the last job has ended; it takes no new ones.
		d.core.Stop(draining)
		letGo(job.ErrDraining)
		shut()
		return
	}
	d.log.Info("Stopping: the sheep stay up, and running jobs go on")
	// What comes from now on waits for the next daemon, where the service manager
	// listens; what is here is answered. Clients that wait for a job are let go a
	// moment later.
	waiters := time.AfterFunc(time.Second, func() { letGo(job.ErrDraining) })
	answering, cancel := context.WithTimeout(draining, closeTime)
	d.doors.turnAway(answering)
	cancel()
	waiters.Stop()
	shut()
	d.core.Leave(draining)
}

// closeTime is how long requests under way may take when the daemon ends.
const closeTime = 5 * time.Second

// stopTime is how long the daemon may take to end beside what it waits for jobs.
const stopTime = time.Minute

// load reads the configuration; the command line goes before the file.
func load(o options) (*config.Config, error) {
	return config.Loader{Types: checks(), Env: o.lookup, Override: func(c *config.Config) {
		if o.hostSet {
			c.API.Host = o.host
		}
		if o.portSet {
			c.API.Port = o.port
		}
		if debug := os.Getenv("DEBUG"); debug != "" && debug != "0" {
			c.API.Debug = true
		}
		if o.closing {
			c.API.Host, c.API.Port = "127.0.0.1", 0
			c.API.Socket = "" // the default: another may be systemd's
			c.OnExit = "stop"
		}
		if o.closing && o.drain >= 0 {
			c.DrainTimeout = o.drain
		}
	}}.Load(o.config)
}

// lookup is the environment, as it was when the daemon was started.
func (o options) lookup(name string) (string, bool) {
	if name == "NOTIFY_SOCKET" && o.manager.Notifies() {
		return o.manager.Address(), true
	}
	return environmentWith(credentialsOfService(), name)
}
