// Package shepherd is the daemon's core: it accepts jobs, runs one lane per sheep, and takes
// every job to exactly one final state.
//
// The stages of a job, each of which passes only values to the next:
//
//	Submit:    validate → storage.Init → ledger.Create
//	feeder:    ledger.Claim, which begins an attempt → storage.Stage
//	worker:    Load and Run, if the model differs → messenger.Input
//	           → answer, exit, timeout or cancel
//	concluder: storage.Collect → judge → ledger.Finish or Release → clean up
//	hub:       ledger.Events → job_status.json, waiting clients, idle sheep
//
// The package depends on contracts only (ledger, storage, messenger, runtime), not on their
// implementations. docs/job-states.md draws the states of a job and has a row for every
// cause that ends an attempt.
package shepherd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/storage"
)

// Member is one configured sheep.
type Member struct {
	Name  string
	Type  string
	Sheep runtime.Sheep
	// Models keeps the models of the sheep's type; nil if the type fetches none.
	Models runtime.ModelKeeper
	// Devices is the sheep's share of the machine's devices; nil for none.
	Devices Devices
	// IdleTimeout is how long the sheep keeps a model loaded without a job; 0 keeps it
	// until another sheep needs the resources.
	IdleTimeout time.Duration
	// Preload is the model that the sheep loads without waiting for a job, at its start and
	// after its runner was lost; zero for none.
	Preload job.Model
	// Limits are the default limits of the jobs that the sheep runs.
	Limits job.Limits
}

// Config configures a Shepherd. All fields are required unless stated otherwise.
type Config struct {
	// Node is the name of this daemon in the ledger. It must be the same after a restart,
	// or the daemon does not find the jobs that it held.
	Node string
	// DataRoot is the directory of the sheep's working directories.
	DataRoot string
	Ledger   ledger.Ledger
	// Webhooks looks up jobs' webhooks, so that a retried job keeps its own; nil if no job
	// has one.
	Webhooks Webhooks
	// Peers is the membership of the nodes that share the ledger; nil if it is not shared.
	Peers Peers
	// Fleet queries the other nodes; nil if the ledger is not shared.
	Fleet Fleet
	Store storage.Store
	Sheep []Member
	// StageAhead is how many jobs a sheep prepares while it runs another: 0 or 1.
	StageAhead int
	// StageBudget bounds the bytes that jobs prepared ahead take on disk, all
	// StageBudget bounds the bytes on disk of jobs prepared ahead, over all sheep; 0 is no
	// bound. A job that does not fit is staged when the worker takes it.
	StageBudget int64
	// Presigner makes URLs of files for clients; nil if the storage cannot.
	Presigner storage.Presigner
	// Uploads lets clients put inputs into storage directly; optional.
	Uploads Uploads
	// StageRoom is called before inputs take bytes of DataRoot's disk, and StateRoom before
	// a job is created in the ledger. They return an error of class
	// errdefs.ErrResourceExhausted if the disk is too full. Nil functions check nothing.
	StageRoom func(bytes int64) error
	StateRoom func() error
	// MaxQueued bounds the number of waiting jobs; 0 is no bound.
	MaxQueued int
	// Policy is the ledger's policy. Its MaxQueued values bound each tenant's waiting jobs.
	Policy ledger.Policy
	// MaxAttempts is how many times a job may take its sheep, its devices or the daemon
	// down before it fails; at least 1.
	MaxAttempts int
	// Drained are the names of the sheep that claim no jobs until ResumeSheep. KeepDrained
	// persists all of them for the next start; it is called by one goroutine at a time, and
	// may be nil.
	Drained     []string
	KeepDrained func(sheep []string) error
	// Limits are the default limits of jobs.
	Limits LimitDefaults
	// Retention is how long the files of jobs that have ended are kept; optional.
	Retention Retention
	// MaxTurn bounds how long a sheep keeps running jobs of the loaded model while older
	// jobs of other models wait. 0 means 10 minutes.
	MaxTurn time.Duration
	// StatusDelay is how long the write of a non-final state to job_status.json may be
	// delayed; a job that ends sooner skips it. 0 means 250 ms.
	StatusDelay time.Duration
	// Closing makes Start adopt running jobs and claim no new ones; the adopted jobs may
	// finish until Stop's ctx ends. Submit returns job.ErrDraining.
	Closing bool
	// Probes are additional dependencies that Checks reports by name; optional.
	Probes map[string]func(context.Context) error
	// Trust decides which models may run; nil allows all.
	Trust job.Trust
	// Placement decides which models may run on this node; the zero value allows all.
	Placement Placement
	// Observer receives what happens, for metrics and traces; optional.
	Observer Observer
	// Tracer connects jobs to traces; nil keeps the clients' trace contexts.
	Tracer Tracer
	// Now is the clock for the times in records; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Shepherd is the core. Start it once; between Start and Stop its methods may be called from
// any goroutine. Its own methods manage the lifetime and the flock; the embedded parts
// implement what clients do with jobs.
type Shepherd struct {
	*submitter
	*uploads
	*reader

	cfg       Config
	log       *slog.Logger
	env       *services // shared by all lanes
	phase     *phase
	admission *admission
	status    *statusFiles
	models    *Models
	remover   *remover
	stop      sync.Once

	applying sync.Mutex // held while the flock is changed or shut down
	drains   *drains

	lease      ledger.Lease
	leaseLost  chan struct{} // closed after the lease was lost and all jobs were interrupted
	background sync.WaitGroup
	stopHub    context.CancelFunc
	stopStatus context.CancelFunc
}

// Causes for handing back jobs at shutdown.
var (
	errStopping     = errors.New("shepherd is shutting down")
	errDrainTimeout = errors.New("shepherd is shutting down and the time to drain is over")
	errLeaseLost    = errors.New("this node's lease in the ledger is lost")
)

// New checks the configuration and creates a Shepherd. It starts nothing.
func New(cfg Config) (*Shepherd, error) {
	switch {
	case cfg.Node == "":
		return nil, errors.New("shepherd: no node name")
	case cfg.Ledger == nil || cfg.Store == nil || cfg.Log == nil:
		return nil, errors.New("shepherd: ledger, store and log are required")
	case cfg.MaxAttempts < 1:
		return nil, errors.New("shepherd: max attempts must be at least 1")
	case cfg.StageAhead < 0 || cfg.StageAhead > 1:
		return nil, errors.New("shepherd: stage ahead must be 0 or 1")
	}
	if cfg.Observer == nil {
		cfg.Observer = NopObserver{}
	}
	if cfg.Tracer == nil {
		cfg.Tracer = NopTracer{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	root, err := filepath.Abs(cfg.DataRoot)
	if err != nil {
		return nil, fmt.Errorf("data root %s: %w", cfg.DataRoot, err)
	}
	cfg.DataRoot = root
	if cfg.StatusDelay == 0 {
		cfg.StatusDelay = 250 * time.Millisecond
	}
	if err := distinct(cfg.Sheep); err != nil {
		return nil, err
	}
	s := &Shepherd{cfg: cfg, log: cfg.Log, phase: new(phase), leaseLost: make(chan struct{})}
	s.env = &services{
		node: cfg.Node, dataRoot: cfg.DataRoot, ledger: cfg.Ledger, peers: cfg.Peers, fleet: cfg.Fleet, store: cfg.Store, fencer: fencerOf(cfg),
		hub: newHub(cfg.Ledger, cfg.Log), flock: newFlock(), payloads: new(payloads), budget: &budget{limit: cfg.StageBudget}, room: cfg.StageRoom,
		observer: cfg.Observer, tracer: cfg.Tracer, trust: cfg.Trust, placement: cfg.Placement, limits: cfg.Limits,
		maxAttempts: cfg.MaxAttempts, stageAhead: cfg.StageAhead, maxTurn: cfg.MaxTurn, clock: cfg.Now, log: cfg.Log,
	}
	s.env.forecaster = newForecaster(s.env, cfg.Fleet)
	s.status = newStatusFiles(cfg.Ledger, cfg.Store, cfg.Node, cfg.StatusDelay, cfg.Log)
	s.remover = newRemover(cfg.Retention, cfg.Ledger, cfg.Store, s.status, cfg.Log)
	s.remover.uploads = cfg.Uploads.Ledger
	s.admission = &admission{cfg: &s.cfg, env: s.env, phase: s.phase}
	s.reader = &reader{cfg: &s.cfg, env: s.env, log: s.log}
	inputs := &inputStore{cfg: &s.cfg, env: s.env, log: s.log, reader: s.reader}
	s.uploads = &uploads{cfg: &s.cfg, env: s.env, log: s.log, admission: s.admission, inputs: inputs, reader: s.reader, remover: s.remover}
	s.submitter = &submitter{
		cfg: &s.cfg, env: s.env, log: s.log, admission: s.admission, inputs: inputs, uploads: s.uploads, reader: s.reader, remover: s.remover,
	}
	s.models = NewModels(cfg.Ledger, cfg.Sheep, cfg.Log)
	s.models.loaded = s.env.flock.loadedBy
	s.drains = newDrains(cfg.Drained, cfg.KeepDrained)
	var lanes []*lane
	for _, m := range cfg.Sheep {
		lanes = append(lanes, s.newLane(m))
	}
	s.env.flock.set(lanes)
	return s, nil
}

func distinct(members []Member) error {
	names := make(map[string]bool)
	for _, m := range members {
		if names[m.Name] {
			return fmt.Errorf("shepherd: two sheep are called %q", m.Name)
		}
		names[m.Name] = true
	}
	return nil
}

// Start adopts what an earlier daemon left (running runners, claimed jobs) and starts the
// lanes. It returns when every sheep can take jobs; ctx bounds only Start itself. It may be
// called once.
func (s *Shepherd) Start(ctx context.Context) error {
	s.phase.mu.Lock()
	defer s.phase.mu.Unlock()
	if s.phase.started || s.phase.draining {
		return errors.New("shepherd: started twice, or after Stop")
	}
	// Read the cursor before joining: other nodes write no states of changes that a joined node made.
	cursor, err := statusCursor(ctx, s.cfg.Ledger, s.cfg.Node)
	if err != nil {
		return fmt.Errorf("read how far states are in storage: %w", err)
	}
	lease, err := s.cfg.Ledger.Join(ctx, s.cfg.Node)
	if err != nil {
		return fmt.Errorf("join the ledger as node %s: %w", s.cfg.Node, err)
	}
	byHolder, err := s.held(ctx)
	if err != nil {
		return errors.Join(err, lease.Release(ctx))
	}
	left, err := cleanStaging(s.cfg.DataRoot, jobsOf(ctx, s.cfg.Ledger, ""))
	if err != nil { // jobs that cannot be prepared because of it make their sheep rest
		s.log.Error("Cannot clear the staging area that an earlier daemon left", "error", err)
	}
	logUnmarked(s.log, filepath.Join(s.cfg.DataRoot, stagingDir), left)
	s.lease = lease
	if s.cfg.Peers != nil {
		s.setDrained(s.cfg.Peers.Draining(s.cfg.Node))
	}

	// Start the hub before the first claim, so that no event is missed.
	reading, stopHub := context.WithCancel(context.Background())
	writing, stopStatus := context.WithCancel(context.Background())
	s.stopHub, s.stopStatus = stopHub, stopStatus
	s.env.background = func(f func(context.Context)) { s.background.Go(func() { f(reading) }) }
	began := s.env.clock.now()
	s.status.seen = cursor
	s.background.Go(func() {
		leased, over := whileLeased(context.Background(), lease)
		defer over()
		s.env.hub.run(reading, leased, cursor, func(e job.Event) { s.onEvent(e, began) }, s.lookAtEvents(reading), s.onGone)
	})
	s.background.Go(func() { s.status.run(writing) })
	s.background.Go(func() { s.watchLease(reading) })
	s.background.Go(func() { s.remover.run(reading) })
	if s.cfg.Peers != nil {
		s.background.Go(func() { s.watchDrain(reading) })
	}

	var closing error
	if s.cfg.Closing {
		s.phase.draining = true
		closing = errStopping
	}
	lanes := s.env.flock.all()
	s.recover(ctx, lanes, byHolder)
	s.endOthers(byHolder)
	for _, l := range lanes {
		s.startLane(l, closing)
	}
	s.phase.started = true
	return nil
}

// statusCursor returns the event up to which this node has written jobs' states to storage.
// At the node's first start that is the present. It is persisted at once: if the daemon were
// killed before that, the next one would take a later present and miss the events in
// between.
func statusCursor(ctx context.Context, l ledger.Ledger, node string) (job.Cursor, error) {
	consumer := statusConsumer(node)
	cursor, err := l.Checkpoint(ctx, consumer)
	if !errors.Is(err, ledger.ErrNotFound) {
		return cursor, err
	}
	if cursor, err = l.Now(ctx); err != nil {
		return "", err
	}
	return cursor, l.SetCheckpoint(ctx, consumer, cursor)
}

// FollowFromNow makes the node's next Shepherd write the states of all changes from now on
// to storage, or from the node's existing checkpoint.
func FollowFromNow(ctx context.Context, l ledger.Ledger, node string) error {
	_, err := statusCursor(ctx, l, node)
	if err != nil {
		return fmt.Errorf("keep how far states are in storage: %w", err)
	}
	return nil
}

// startLane starts a lane that belongs to the flock.
func (s *Shepherd) startLane(l *lane, closing error) {
	l.share.notify(func() { l.flock.wakeFirst(l) })
	l.start(closing)
}

// onEvent distributes an event of the ledger. Events from before the start are not observed
// again; they only bring the states in storage up to date.
func (s *Shepherd) onEvent(e job.Event, began time.Time) {
	if !e.At.Before(began) {
		s.observe(e)
	}
	s.env.forecaster.onEvent(e)
	claimable := e.Kind == job.EventQueued || e.Kind == job.EventReturned || e.Kind == job.EventDue
	if claimable && !e.Delayed && e.State == job.Queued {
		s.env.flock.offer(e.Model, e.Address)
	}
	if s.cfg.Policy.Limits() && (e.Kind == job.EventEnded || e.Kind == job.EventReturned) {
		s.env.flock.released()
	}
	if e.Kind == job.EventEnded { // write the final state to storage before clients are notified
		s.status.note(e, s.env.hub.watched(e.Job), s.env.hub.publish)
		return
	}
	s.status.note(e, false, func(job.Event) {})
	s.env.hub.publish(e)
}

// lookAtEvents returns the function that the hub calls before each read of the events. Until
// the first read has caught up with the events from before the start, this node writes the
// states of all nodes' changes: a write that its predecessor had in progress may have
// overwritten theirs.
func (s *Shepherd) lookAtEvents(ctx context.Context) func() (caughtUp func()) {
	var first sync.Once
	return func() func() {
		look := s.status.owners.look()
		return func() {
			s.status.owners.looked(look)
			if s.cfg.Peers == nil {
				return
			}
			first.Do(func() {
				others := &successor{ledger: s.cfg.Ledger, peers: s.cfg.Peers, status: s.status, log: s.log}
				s.background.Go(func() { others.run(ctx) })
			})
		}
	}
}

// onGone is called when events were missed.
func (s *Shepherd) onGone(ctx context.Context) {
	s.env.hub.refresh(ctx)
	for _, l := range s.env.flock.all() { // a job may have become claimable in a missed event
		s.env.flock.wakeFirst(l)
	}
}

// observe reports an event to the observer, if it happened on this node or on none.
func (s *Shepherd) observe(e job.Event) {
	if e.Node != "" && e.Node != s.cfg.Node {
		return
	}
	switch e.Kind {
	case job.EventEnded:
		s.cfg.Observer.Ended(e.Sheep, e.State)
	case job.EventReturned:
		s.cfg.Observer.Returned(e.Sheep)
	}
}

// watchLease interrupts all jobs when the node's lease is lost, because other nodes may take
// them from then on.
func (s *Shepherd) watchLease(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.lease.Lost():
	}
	s.log.Error("This node's lease in the ledger is lost; its jobs are stopped", "node", s.cfg.Node)
	s.Drain()
	for _, l := range s.env.flock.all() {
		l.life.closeFeed(errLeaseLost)
		l.life.interrupt(errLeaseLost)
	}
	close(s.leaseLost)
}

// LeaseLost returns a channel that is closed when the node has lost its lease and its jobs
// were interrupted. This Shepherd takes no more jobs; stop it and start another.
func (s *Shepherd) LeaseLost() <-chan struct{} { return s.leaseLost }

// held returns the claims of this node that no goroutine of this process handles, by holder.
func (s *Shepherd) held(ctx context.Context) (map[string][]ledger.Claim, error) {
	held, err := s.cfg.Ledger.Held(ctx, s.cfg.Node)
	if err != nil {
		return nil, fmt.Errorf("read the jobs this node holds: %w", err)
	}
	byHolder := make(map[string][]ledger.Claim)
	for _, c := range held {
		if s.env.tokens.has(c.Token) { // handled by this process
			continue
		}
		byHolder[c.Holder] = append(byHolder[c.Holder], c)
	}
	return byHolder, nil
}

// recover lets the lanes adopt what an earlier daemon left of them, and removes their claims
// from byHolder.
func (s *Shepherd) recover(ctx context.Context, lanes []*lane, byHolder map[string][]ledger.Claim) {
	var recovering sync.WaitGroup
	for _, l := range lanes {
		claims := byHolder[l.Name]
		delete(byHolder, l.Name)
		recovering.Go(func() { l.recover(ctx, claims) })
	}
	recovering.Wait()
}

// Drain makes Submit refuse new jobs. It may be called at any time.
func (s *Shepherd) Drain() {
	s.phase.mu.Lock()
	defer s.phase.mu.Unlock()
	s.phase.draining = true
}

// Stop lets running jobs finish until ctx ends, hands the rest back unspent, and stops all
// sheep. It may be called before Start and more than once.
func (s *Shepherd) Stop(ctx context.Context) { s.end(ctx, false) }

// Leave ends the daemon and leaves up the sheep that can be adopted again: models stay
// loaded and running jobs continue, for another Shepherd with the same node, ledger and
// state. Answered jobs are concluded until ctx ends. Other sheep are stopped, as by Stop.
// Leave may be called before Start and more than once; only the first call of Stop or Leave
// has an effect.
func (s *Shepherd) Leave(ctx context.Context) { s.end(ctx, true) }

func (s *Shepherd) end(ctx context.Context, leave bool) {
	s.Drain()
	s.stop.Do(func() {
		s.phase.mu.Lock()
		started := s.phase.started
		s.phase.mu.Unlock()
		if started {
			s.endLanes(ctx, leave)
			s.stopHub() // it still reads the events that the lanes caused
			s.giveUpLease(ctx)
		}
		for _, l := range s.env.flock.all() {
			s.close(ctx, l)
		}
	})
}

// giveUpLease waits until final states are written and releases the lease. If the lease is
// lost it waits for nothing: other nodes write the states, and the database may not answer.
func (s *Shepherd) giveUpLease(ctx context.Context) {
	leased, over := whileLeased(context.WithoutCancel(ctx), s.lease)
	defer over()
	s.status.flush(ctx, leased)
	s.stopStatus()
	s.background.Wait()
	if err := s.lease.Release(leased); err != nil {
		s.log.Warn("Cannot give up this node's lease in the ledger", "error", err)
	}
}

// whileLeased returns a context that also ends when the lease is lost. over releases it.
func whileLeased(ctx context.Context, lease ledger.Lease) (_ context.Context, over func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-lease.Lost():
			cancel(errLeaseLost)
		case <-done:
		}
	})
	return ctx, func() {
		close(done)
		watching.Wait()
		cancel(nil)
	}
}

// endLanes ends all lanes. Running jobs may finish until ctx ends.
func (s *Shepherd) endLanes(ctx context.Context, leave bool) {
	for _, l := range s.env.flock.all() {
		if _, ok := l.Sheep.(runtime.Recoverer); ok && leave {
			l.life.leave() // before the feed is closed, so that no worker stops its runner
		}
	}
	for _, l := range s.env.flock.all() {
		l.life.closeFeed(errStopping)
	}
	// Interrupt before locking: a concurrent Apply may hold the lock until jobs finish.
	interrupt := context.AfterFunc(ctx, func() {
		for _, l := range s.env.flock.all() {
			l.life.interrupt(errDrainTimeout)
		}
	})
	defer interrupt()
	s.applying.Lock()
	defer s.applying.Unlock()
	lanes := s.env.flock.all()
	for _, l := range lanes {
		l.life.transition.Lock() // whoever held it has seen draining and starts no lane again
		l.life.closeFeed(errStopping)
	}
	for _, l := range lanes {
		l.wait()
		l.life.transition.Unlock()
	}
}

// close closes a sheep that is not used any more.
func (s *Shepherd) close(ctx context.Context, l *lane) {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := l.Sheep.Close(closing); err != nil {
		s.log.Warn("Cannot close a sheep", "sheep", l.Name, "error", err)
	}
	l.share.close()
}

// Sheep returns the state of every sheep, in configured order.
func (s *Shepherd) Sheep(context.Context) []job.Sheep {
	lanes := s.env.flock.all()
	out := make([]job.Sheep, len(lanes))
	for i, l := range lanes {
		out[i] = l.view()
	}
	return out
}

// Checks tests every dependency of this daemon. During shutdown it reports the daemon itself
// as not ready, too.
func (s *Shepherd) Checks(ctx context.Context) []job.Check {
	checks := []job.Check{
		{Name: "ledger", Err: s.cfg.Ledger.Ping(ctx)},
		{Name: "storage", Err: s.cfg.Store.Ping(ctx)},
	}
	s.phase.mu.Lock()
	draining := s.phase.draining
	s.phase.mu.Unlock()
	if draining {
		checks = append(checks, job.Check{Name: "shepherd", Err: job.ErrDraining})
	}
	for name, probe := range s.cfg.Probes {
		checks = append(checks, job.Check{Name: name, Err: probe(ctx)})
	}
	return checks
}
