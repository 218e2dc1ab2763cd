// Package shepherd is the daemon's core: it takes jobs in, keeps one lane per
// sheep, and sees every job through to one final state.
//
// A job goes one way, and nothing flows back but values:
//
//	Submit:    validate → storage.Init → ledger.Create
//	feeder:    ledger.Claim, which begins an attempt → storage.Stage
//	worker:    Load and Run, where the model differs → messenger.Input
//	           → answer, exit, timeout or cancel
//	concluder: storage.Collect → judge → ledger.Finish or Release → clean up
//	hub:       ledger.Events → job_status.json, waiting clients, idle sheep
//
// The package knows contracts only (ledger, storage, messenger, runtime), no
// implementation of them. docs/job-states.md draws the states a job passes
// through and has a row for every cause that ends an attempt.
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
	// Models keeps the models of the sheep's type; nil where that fetches none.
	Models runtime.ModelKeeper
	// Devices is the sheep's share of the machine's devices; nil where it has
	// none.
	Devices Devices
	// IdleTimeout is how long the sheep keeps a model without a job; 0 is for as
	// long as nobody needs what it takes.
	IdleTimeout time.Duration
	// Preload is the model that the sheep loads at its start, and after its runner
	// was lost, without waiting for a job; zero for none.
	Preload job.Model
	// Limits are the defaults of the limits of jobs that it runs.
	Limits job.Limits
}

// Config is what a Shepherd is made of. All of it is required unless said
// otherwise.
type Config struct {
	// Node names this daemon in the ledger. It must be the same after a
	// restart, or the jobs held before are not found again.
	Node string
	// DataRoot holds a directory per sheep, and in it one per job under way.
	DataRoot string
	Ledger   ledger.Ledger
	// Webhooks knows those of jobs, so that a job that is run again keeps its own; nil
	// where no job has any.
	Webhooks Webhooks
	// Peers knows the other nodes of a ledger that is shared; nil where it is not.
	Peers Peers
	// Fleet asks those nodes; nil where there are none.
	Fleet Fleet
	Store storage.Store
	Sheep []Member
	// StageAhead is how many jobs a sheep prepares while it runs another: 0 or 1.
	StageAhead int
	// StageBudget bounds the bytes that jobs prepared ahead take on disk, all
	// sheep together; 0 is no bound. A job that does not fit is staged when its
	// turn has come.
	StageBudget int64
	// Presigner makes addresses of files for clients; nil where none can be made.
	Presigner storage.Presigner
	// Uploads is how clients put inputs into storage by themselves; optional.
	Uploads Uploads
	// StageRoom is asked before inputs take so many bytes of DataRoot's disk, and
	// StateRoom before a job is taken into the ledger; their errors are of class
	// errdefs.ErrResourceExhausted. Nil always has room.
	StageRoom func(bytes int64) error
	StateRoom func() error
	// MaxQueued bounds the jobs that wait; 0 is no bound.
	MaxQueued int
	// Policy is that of the ledger. Its MaxQueued bound the jobs of tenants that wait.
	Policy ledger.Policy
	// MaxAttempts is how often a job may take its sheep, its devices or the daemon
	// down before it fails; at least 1.
	MaxAttempts int
	// Drained are the sheep that claim no jobs until ResumeSheep, and KeepDrained keeps
	// all of them for the next start; nil where they are not kept. One call at a time.
	Drained     []string
	KeepDrained func(sheep []string) error
	// Limits are the defaults of the limits of jobs.
	Limits LimitDefaults
	// Retention is how long the files of jobs that have ended are kept; optional.
	Retention Retention
	// MaxTurn bounds how long a sheep goes on with the model that it has loaded
	// while older jobs of other models wait. 0 takes 10 minutes.
	MaxTurn time.Duration
	// StatusDelay is how long a state that is not final may stay unwritten in
	// job_status.json; a job that ends sooner skips it. 0 takes 250 ms.
	StatusDelay time.Duration
	// Closing has Start adopt running jobs and claim no new ones: what it found
	// running may finish until Stop's time is over. Submit answers
	// job.ErrDraining.
	Closing bool
	// Probes are further dependencies that Checks reports by name; optional.
	Probes map[string]func(context.Context) error
	// Trust says which models may be run; nil is all.
	Trust job.Trust
	// Placement says which models this node is for; all where it is zero.
	Placement Placement
	// Observer is told what happens; nobody where nil.
	Observer Observer
	// Tracer says to which traces jobs belong; to their clients' own where nil.
	Tracer Tracer
	// Now is the clock that records' times are compared with; time.Now where nil.
	Now func() time.Time
	Log *slog.Logger
}

// Shepherd is the core. Start it once; its methods may be called from any
// goroutine between Start and Stop. Its own are those of its life and its flock; what
// clients do with jobs is its parts'.
type Shepherd struct {
	*submitter
	*uploads
	*reader

	cfg       Config
	log       *slog.Logger
	env       *services // of all lanes
	phase     *phase
	admission *admission
	status    *statusFiles
	models    *Models
	remover   *remover // of files of jobs
	stop      sync.Once

	applying sync.Mutex // held while the flock is changed, or comes to its end
	drains   *drains

	lease      ledger.Lease
	leaseLost  chan struct{} // closed once no job goes on
	background sync.WaitGroup
	stopHub    context.CancelFunc
	stopStatus context.CancelFunc
}

// Why a job is handed back at shutdown.
var (
	errStopping     = errors.New("shepherd is shutting down")
	errDrainTimeout = errors.New("shepherd is shutting down and the time to drain is over")
	errLeaseLost    = errors.New("this node's lease in the ledger is lost")
)

// New checks the configuration and makes a Shepherd of it. It starts nothing.
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
		cfg.Observer = Unobserved{}
	}
	if cfg.Tracer == nil {
		cfg.Tracer = Untraced{}
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

// Start adopts what an earlier daemon left (runners that outlived it, jobs it
// held) and lets the lanes work. It returns when every sheep is ready to take
// jobs; ctx bounds only that. It is called once.
func (s *Shepherd) Start(ctx context.Context) error {
	s.phase.mu.Lock()
	defer s.phase.mu.Unlock()
	if s.phase.started || s.phase.draining {
		return errors.New("shepherd: started twice, or after Stop")
	}
	// What the node does once it has joined comes after the cursor: others leave it to it.
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
	if err != nil { // its sheep rest until that is mended
		s.log.Error("Cannot clear what an earlier daemon was preparing", "error", err)
	}
	logUnmarked(s.log, filepath.Join(s.cfg.DataRoot, stagingDir), left)
	s.lease = lease
	if s.cfg.Peers != nil {
		s.setDrained(s.cfg.Peers.Draining(s.cfg.Node))
	}

	// The hub reads before the first claim, so no event is missed.
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

// statusCursor is how far states are in storage as far as this node is concerned.
// At the node's first start that is the present; it is kept before anything
// happens, or a daemon that is killed soon would have the next one take a later
// present for it.
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

// FollowFromNow has the node's next Shepherd write to storage what happens to jobs
// in the ledger from now on, or since what it has written already.
func FollowFromNow(ctx context.Context, l ledger.Ledger, node string) error {
	_, err := statusCursor(ctx, l, node)
	if err != nil {
		return fmt.Errorf("keep how far states are in storage: %w", err)
	}
	return nil
}

// startLane lets a lane work that is of the flock.
func (s *Shepherd) startLane(l *lane, closing error) {
	l.share.notify(func() { l.flock.wakeFirst(l) })
	l.start(closing)
}

// onEvent passes an event of the ledger on. Those of before the daemon's start
// only catch up what is in storage.
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
	if e.Kind == job.EventEnded { // clients find the state in storage when they are told
		s.status.note(e, s.env.hub.watched(e.Job), s.env.hub.publish)
		return
	}
	s.status.note(e, false, func(job.Event) {})
	s.env.hub.publish(e)
}

// lookAtEvents is called before each look at the ledger's events. Until the first of them
// has caught up with what happened before this Shepherd was started, it writes all states:
// what its predecessor was writing when it ended may have come over those of others.
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
	for _, l := range s.env.flock.all() { // there may be work that no event told of
		s.env.flock.wakeFirst(l)
	}
}

// observe tells the observer of an event that it counts: those of this node, and
// those of none.
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

// watchLease interrupts all jobs when the node's lease is lost: others may have
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

// LeaseLost is closed when the node has lost its lease in the ledger and its jobs were
// interrupted. This Shepherd takes no jobs any more; stop it and start another.
func (s *Shepherd) LeaseLost() <-chan struct{} { return s.leaseLost }

// held are the jobs that this node holds and nobody sees to, by the sheep that
// holds them.
func (s *Shepherd) held(ctx context.Context) (map[string][]ledger.Claim, error) {
	held, err := s.cfg.Ledger.Held(ctx, s.cfg.Node)
	if err != nil {
		return nil, fmt.Errorf("read the jobs this node holds: %w", err)
	}
	byHolder := make(map[string][]ledger.Claim)
	for _, c := range held {
		if s.env.tokens.has(c.Token) { // somebody sees to it
			continue
		}
		byHolder[c.Holder] = append(byHolder[c.Holder], c)
	}
	return byHolder, nil
}

// recover has the lanes adopt what is left of them, and takes the jobs they held
// out of byHolder.
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

// Stop lets running jobs finish until ctx ends, hands back the rest unspent and
// stops all sheep. It is safe before Start and twice.
func (s *Shepherd) Stop(ctx context.Context) { s.end(ctx, false) }

// Leave ends the daemon's part and leaves the sheep up, those that can be found
// again: models stay loaded and running jobs go on, for the Start of another
// Shepherd with the same node, ledger and state. What was answered is put away
// until ctx ends. Other sheep are stopped, as by Stop. It is safe before Start
// and twice, and the first of Stop and Leave counts.
func (s *Shepherd) Leave(ctx context.Context) { s.end(ctx, true) }

func (s *Shepherd) end(ctx context.Context, leave bool) {
	s.Drain()
	s.stop.Do(func() {
		s.phase.mu.Lock()
		started := s.phase.started
		s.phase.mu.Unlock()
		if started {
			s.endLanes(ctx, leave)
			s.stopHub() // once it has read what the lanes did
			s.giveUpLease(ctx)
		}
		for _, l := range s.env.flock.all() {
			s.close(ctx, l)
		}
	})
}

// giveUpLease has final states written before the lease is given up. Where it is lost,
// others write them, and the database perhaps does not answer: nothing is waited for.
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

// whileLeased is a context that also ends when the lease is lost. over releases it.
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

// endLanes lets running jobs finish until ctx ends.
func (s *Shepherd) endLanes(ctx context.Context, leave bool) {
	for _, l := range s.env.flock.all() {
		if _, ok := l.Sheep.(runtime.Recoverer); ok && leave {
			l.life.leave() // before the feed ends, so that none takes that for a stop
		}
	}
	for _, l := range s.env.flock.all() {
		l.life.closeFeed(errStopping)
	}
	// Who changes the flock at the moment may wait for longer for jobs to finish.
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
		l.life.transition.Lock() // who has it lets no lane begin again that is not to
		l.life.closeFeed(errStopping)
	}
	for _, l := range lanes {
		l.wait()
		l.life.transition.Unlock()
	}
}

// close releases a sheep that is not used any more.
func (s *Shepherd) close(ctx context.Context, l *lane) {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := l.Sheep.Close(closing); err != nil {
		s.log.Warn("Cannot close a sheep", "sheep", l.Name, "error", err)
	}
	l.share.close()
}

// Sheep describes every sheep, in configured order.
func (s *Shepherd) Sheep(context.Context) []job.Sheep {
	lanes := s.env.flock.all()
	out := make([]job.Sheep, len(lanes))
	for i, l := range lanes {
		out[i] = l.view()
	}
	return out
}

// Checks asks each thing this daemon depends on; a daemon that is stopping is
// one of those that are not ready.
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
