package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/systemd"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage/embedded"
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

// serve is the daemon, from reading its configuration until drain ends and
// everything has stopped.
func serve(drain context.Context, o options, logTo io.Writer) error {
	cfg, err := load(o)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(cfg.Logging.SlogLevel())
	log, closeLog, err := newLogger(logTo, cfg.Logging.Format, level)
	if err != nil {
		return err
	}
	stop := closers{closeLog}
	defer func() { stop.close() }()

	lock, err := lockState(cfg.StateDir)
	if err != nil {
		return err
	}
	stop.add(func() { lock.Close() })
	doors, err := openDoors(cfg, o.manager, log)
	if err != nil {
		return err
	}
	stop.add(doors.close)

	node, err := nodeName(cfg)
	if err != nil {
		return err
	}
	v, c := build()
	seen, err := observe(drain, v, c, log, &stop)
	if err != nil {
		return err
	}
	records, err := openLedger(drain, cfg, log, &stop)
	if err != nil {
		return err
	}
	store, err := openStorage(cfg, seen.figures.Storage, log, &stop)
	if err != nil {
		return err
	}

	lent, err := openGPUs(drain, cfg, log, &stop)
	if err != nil {
		return err
	}
	env := environmentOf(cfg, node, records, lent, seen.figures, log)
	members, types, err := gather(drain, env, &stop)
	if err != nil {
		return err
	}
	begin(drain, types, members, log)
	core, err := shepherd.New(shepherd.Config{
		Node: node, DataRoot: cfg.DataRoot, Ledger: records, Store: store, Sheep: members, Trust: cfg.Models.Trust(),
		StageAhead: cfg.Scheduling.StageAhead, StageBudget: int64(cfg.Scheduling.StageBudget),
		MaxAttempts: cfg.Scheduling.MaxAttempts, Closing: o.closing, Observer: seen.observer, Tracer: seen.tracer, Log: log,
	})
	if err != nil {
		return err
	}
	seen.expose(cfg, core, records, lent, types)
	welcomeStorage(drain, store, cfg, log)
	if err := core.Start(drain); err != nil {
		return err
	}

	// Waiting clients are let go when the core has stopped.
	waiting, letGo := context.WithCancelCause(context.Background())
	defer letGo(nil)
	handler := api.New(api.Config{
		Service: core, Gate: doors.gate, Origins: cfg.API.CORSOrigins, MaxBody: int64(cfg.API.MaxBody), Debug: cfg.API.Debug, GPUs: lent.keeper.GPUs,
		Metrics: seen.figures.Handler(), Refused: seen.figures.Refused, Version: v, Commit: c, Log: log,
	})
	configuration := &reloader{
		read: func() (*config.Config, error) { return load(o) }, core: core, level: level, log: log,
		env: env, types: types, doors: doors,
		started: cfg, current: cfg, members: members,
	}
	served := doors.serve(waiting, handler, withAdmin(withDebug(handler, configuration.now, doors.local), core, configuration, doors.local), log)
	log.Info("Shepherd API is available at " + doors.url())
	if served := doors.serves(cfg.API); served.Open() {
		log.Warn(served.OpenWarning())
	}

	endTelling := tell(&reporter{manager: o.manager, core: core, ledger: records, log: log}, configuration)
	defer endTelling()
	ended := 0 // servers, of themselves
	enough := make(chan struct{})
	if o.closing {
		close(enough)
	}
	select {
	case <-enough:
	case err = <-served:
		err, ended = fmt.Errorf("serve the API: %w", err), 1
	case <-drain.Done():
	}
	cfg = configuration.now()
	if err := o.manager.Stopping(cfg.DrainTimeout + stopTime); err != nil {
		log.Warn("The service manager cannot be told how the daemon is", "error", err)
	}
	shut := func() {
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = errors.Join(err, doors.shut(closing, ended))
	}
	draining, cancel := context.WithTimeout(context.Background(), cfg.DrainTimeout)
	defer cancel()
	draining, stopSignals := signal.NotifyContext(draining, o.signalsToStop()...)
	defer stopSignals()
	if cfg.OnExit == "leave" {
		log.Info("Stopping: the sheep stay up, and running jobs go on")
		// What comes from now on waits for the next daemon, where the service
		// manager listens; what is here is answered. Clients that wait for a job
		// are let go a moment later.
		waiters := time.AfterFunc(time.Second, func() { letGo(job.ErrDraining) })
		answering, cancel := context.WithTimeout(draining, 5*time.Second)
		doors.turnAway(answering)
		cancel()
		waiters.Stop()
		shut()
		core.Leave(draining)
	} else {
		log.Info("Stopping: running jobs may finish, the others go back to the queue", "drain_timeout", cfg.DrainTimeout)
		// The API answers until the last job has ended; it takes no new ones.
		core.Stop(draining)
		letGo(job.ErrDraining)
		shut()
	}
	log.Info("Stopped")
	return err
}

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

func openLedger(ctx context.Context, cfg *config.Config, log *slog.Logger, stop *closers) (ledger.Ledger, error) {
	records, err := sqlite.Open(ctx, sqlite.Config{
		Path: cfg.Ledger.Path, Keep: cfg.Ledger.Keep, KeepJobs: cfg.Ledger.KeepJobs,
		MaxOvertakes: cfg.Scheduling.MaxOvertakes, Log: log,
	})
	if err != nil {
		return nil, err
	}
	stop.add(func() {
		if err := records.Close(); err != nil {
			log.Error("Cannot close the ledger", "error", err)
		}
	})
	return records, nil
}

// openStorage is the client of the configured storage, after starting the
// embedded one where that is what is configured.
func openStorage(cfg *config.Config, observe func(string, time.Duration, error), log *slog.Logger, stop *closers) (*s3.Store, error) {
	c := cfg.Storage
	url, access, secret := c.URL, c.AccessKey, c.SecretKey.Reveal()
	if c.SecretKeyFile != "" {
		var err error
		if secret, err = firstLine(c.SecretKeyFile); err != nil {
			return nil, fmt.Errorf("storage.secret_key_file: %w", err)
		}
	}
	if c.Embedded() {
		if access == "" {
			var err error
			if access, secret, err = embedded.Credentials(c.Path); err != nil {
				return nil, err
			}
		}
		server, err := embedded.Open(embedded.Config{Dir: c.Path, Listen: c.Listen, AccessKey: access, SecretKey: secret, Log: log})
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- server.Serve(ctx) }()
		stop.add(func() {
			cancel()
			if err := errors.Join(<-served, server.Close()); err != nil {
				log.Error("The embedded storage did not end well", "error", err)
			}
		})
		url = "http://" + server.Addr()
		log.Info("Embedded storage is available at "+url, "path", c.Path)
	}
	store, err := s3.New(s3.Config{
		URL: url, AccessKey: access, SecretKey: secret, Bucket: c.Bucket, Region: c.Region,
		Begun: filepath.Join(cfg.StateDir, "begun"), Observe: observe, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if c.Embedded() && c.Bucket != "" {
		if err := store.MakeBucket(context.Background()); err != nil {
			return nil, err
		}
	}
	return store, nil
}

// welcomeStorage says whether storage answers. If it does not, the daemon starts
// all the same: jobs wait until it does.
func welcomeStorage(ctx context.Context, store *s3.Store, cfg *config.Config, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := store.Ping(ctx); err != nil {
		log.Error("The remote storage is not accessible", "url", cfg.Storage.URL, "error", err)
		return
	}
	log.Info("Minio storage appears to be up and running")
}

// environmentOf is what sheep types are made from.
func environmentOf(cfg *config.Config, node string, records ledger.Ledger, lent *gpus, figures *metrics.Metrics, log *slog.Logger) *environment {
	needed := func(ctx context.Context) ([]job.Model, error) { return shepherd.NeededModels(ctx, records) }
	return &environment{config: cfg, node: node, needed: needed, gpus: lent, figures: figures, log: log}
}

// gather makes the sheep types, by name, and the configured sheep.
func gather(ctx context.Context, env *environment, stop *closers) ([]shepherd.Member, map[string]runtime.Driver, error) {
	types, err := drivers(ctx, env)
	if err != nil {
		return nil, nil, err
	}
	for name, driver := range types {
		if c, ok := driver.(io.Closer); ok && otherNames[name] == "" {
			stop.add(func() {
				if err := c.Close(); err != nil {
					env.log.Error("A type of sheep did not end well", "type", name, "error", err)
				}
			})
		}
	}
	var members []shepherd.Member
	for _, s := range env.config.Sheep {
		m, err := newMember(env, types, s)
		if err != nil {
			return nil, nil, fmt.Errorf("sheep %s: %w", s.Name, err)
		}
		env.log.Info(fmt.Sprintf("Created sheep `%s` of type `%s`", s.Name, s.Type), "sheep", s.Name)
		members = append(members, m)
	}
	return members, types, nil
}

// newMember makes a sheep of its section.
func newMember(env *environment, types map[string]runtime.Driver, s config.Sheep) (shepherd.Member, error) {
	driver := types[s.Type]
	sheep, err := driver.NewSheep(s.Name, s.Decode)
	if err != nil {
		return shepherd.Member{}, err
	}
	keeper, _ := driver.(runtime.ModelKeeper)
	m := shepherd.Member{Name: s.Name, Type: s.Type, Sheep: sheep, Models: keeper, IdleTimeout: s.IdleTimeout}
	if env.gpus != nil {
		m.Devices = env.gpus.lend(s)
	}
	return m, nil
}

// begin lets the sheep types begin that look after more than single sheep.
func begin(ctx context.Context, types map[string]runtime.Driver, members []shepherd.Member, log *slog.Logger) {
	named := make(map[runtime.Driver][]string)
	for _, m := range members {
		named[types[m.Type]] = append(named[types[m.Type]], m.Name)
	}
	for name, driver := range types {
		b, ok := driver.(interface {
			Begin(ctx context.Context, names []string) error
		})
		if !ok || otherNames[name] != "" {
			continue
		}
		if err := b.Begin(ctx, named[driver]); err != nil {
			log.Warn(fmt.Sprintf("Sheep of type `%s` are not all they could be", name), "error", err)
		}
	}
}

// nodeName is the name under which this daemon holds jobs. It is kept in the
// state directory, so that a machine that is renamed finds its jobs again.
func nodeName(cfg *config.Config) (string, error) {
	path := filepath.Join(cfg.StateDir, "node")
	kept, err := os.ReadFile(path)
	if name := strings.TrimSpace(string(kept)); err == nil && name != "" {
		return name, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	tail := make([]byte, 4)
	rand.Read(tail)
	name := cfg.Node + "-" + hex.EncodeToString(tail)
	tmp := path + ".new"
	if err := writeSynced(tmp, name+"\n"); err != nil {
		return "", fmt.Errorf("keep the node's name: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("keep the node's name: %w", err)
	}
	return name, nil
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}
