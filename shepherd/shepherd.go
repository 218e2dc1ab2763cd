// Package shepherd is the daemon's core: it takes jobs in, keeps one lane per
// sheep, and sees every job through to one final state.
//
// A job goes one way, and nothing flows back but values:
//
//	Submit: validate → storage.Init → ledger.Create
//	lane:   ledger.Claim → storage.Stage → Load and Run, where the model
//	        differs → messenger.Input → answer, exit or cancel
//	        → storage.Collect → job_status.json → ledger.Finish → clean up
//
// The package knows contracts only (ledger, storage, messenger, runtime), no
// implementation of them. docs/job-states.md draws the states a job passes
// through and what may cause each edge.
package shepherd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
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
	Store    storage.Store
	Sheep    []Member
	// StageAhead is how many jobs a sheep prepares while it runs another: 0 or 1.
	StageAhead int
	// StageBudget bounds the bytes that jobs prepared ahead take on disk, all
	// sheep together; 0 is no bound. A job that does not fit is staged when its
	// turn has come.
	StageBudget int64
	// MaxAttempts is how often a job is tried when what supervises its runner is
	// lost under it; at least 1.
	MaxAttempts int
	// MirrorDelay is how long a state that is not final may stay unwritten in
	// job_status.json; a job that ends sooner skips it. 0 takes 250 ms.
	MirrorDelay time.Duration
	// Closing has Start take up what there is and start no job: what it found
	// running may finish until Stop's time is over. Submit answers
	// job.ErrDraining.
	Closing bool
	// Probes are further dependencies that Checks reports by name; optional.
	Probes map[string]func(context.Context) error
	// Trust says which models may be run; nil is all.
	Trust job.Trust
	// Observer is told what happens; nobody where nil.
	Observer Observer
	// Tracer says to which traces jobs belong; to their clients' own where nil.
	Tracer Tracer
	Log    *slog.Logger
}

// Shepherd is the core. Start it once; its methods may be called from any
// goroutine between Start and Stop.
type Shepherd struct {
	cfg    Config
	log    *slog.Logger
	hub    *hub
	mirror *mirror
	flock  *flock
	models *Models

	payloads payloads

	mu       sync.Mutex
	started  bool
	draining bool
	stop     sync.Once

	applying sync.Mutex // held while the flock is changed, or comes to its end

	feed       context.Context // ends when no more jobs are to be started
	stopFeed   context.CancelCauseFunc
	work       context.Context // ends when running jobs are to be handed back
	stopWork   context.CancelCauseFunc
	background sync.WaitGroup
	stopBack   context.CancelFunc
}

// Why a job is handed back at shutdown.
var (
	errStopping     = errors.New("shepherd is shutting down")
	errDrainTimeout = errors.New("shepherd is shutting down and the time to drain is over")
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
	root, err := filepath.Abs(cfg.DataRoot)
	if err != nil {
		return nil, fmt.Errorf("data root %s: %w", cfg.DataRoot, err)
	}
	cfg.DataRoot = root
	if cfg.MirrorDelay == 0 {
		cfg.MirrorDelay = 250 * time.Millisecond
	}
	if err := distinct(cfg.Sheep); err != nil {
		return nil, err
	}
	s := &Shepherd{cfg: cfg, log: cfg.Log}
	s.hub = newHub(cfg.Ledger, cfg.Log)
	s.mirror = newMirror(cfg.Ledger, cfg.Store, cfg.MirrorDelay, cfg.Log)
	s.flock = &flock{ledger: cfg.Ledger, node: cfg.Node, budget: newBudget(cfg.StageBudget)}
	s.models = NewModels(cfg.Ledger, cfg.Sheep, cfg.Log)
	s.models.loaded = s.flock.loadedBy
	for _, m := range cfg.Sheep {
		s.flock.lanes = append(s.flock.lanes, newLane(m, s))
	}
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

// Start takes up what an earlier daemon left (runners that outlived it, jobs it
// held) and lets the lanes work. It returns when every sheep is ready to take
// jobs; ctx bounds only that. It is called once.
func (s *Shepherd) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.draining {
		return errors.New("shepherd: started twice, or after Stop")
	}
	if err := os.MkdirAll(s.cfg.DataRoot, 0o755); err != nil {
		return fmt.Errorf("create data root: %w", err)
	}
	byHolder, err := s.held(ctx)
	if err != nil {
		return err
	}

	// The hub watches before the first claim, so no event is missed.
	back, stopBack := context.WithCancel(context.Background())
	events, err := s.cfg.Ledger.Watch(back, -1)
	if err != nil {
		stopBack()
		return fmt.Errorf("watch the ledger: %w", err)
	}
	s.stopBack = stopBack
	s.feed, s.stopFeed = context.WithCancelCause(context.Background())
	s.work, s.stopWork = context.WithCancelCause(context.Background())
	if s.cfg.Closing {
		s.draining = true
		s.stopFeed(errStopping)
	}
	s.background.Go(func() { s.hub.run(back, events, s.onQueued) })
	s.background.Go(func() { s.mirror.run(back) })

	s.recover(ctx, s.flock.all(), byHolder)
	s.settleOthers(byHolder)
	for _, l := range s.flock.all() {
		l.start()
	}
	s.started = true
	return nil
}

// held are the jobs that this node holds, by the sheep that does.
func (s *Shepherd) held(ctx context.Context) (map[string][]ledger.Claim, error) {
	held, err := s.cfg.Ledger.Held(ctx, s.cfg.Node)
	if err != nil {
		return nil, fmt.Errorf("read the jobs this node holds: %w", err)
	}
	byHolder := make(map[string][]ledger.Claim)
	for _, c := range held {
		byHolder[c.Holder] = append(byHolder[c.Holder], c)
	}
	return byHolder, nil
}

// recover has the lanes take up what is left of them, and takes the jobs they
// held out of byHolder.
func (s *Shepherd) recover(ctx context.Context, lanes []*lane, byHolder map[string][]ledger.Claim) {
	var recovering sync.WaitGroup
	for _, l := range lanes {
		claims := byHolder[l.name]
		delete(byHolder, l.name)
		l.enter(s.feed, s.work)
		recovering.Go(func() { l.recover(ctx, claims) })
	}
	recovering.Wait()
}

// onQueued is told of every record that became claimable.
func (s *Shepherd) onQueued(rec job.Record) { s.flock.wake(rec) }

// Drain makes Submit refuse new jobs. It may be called at any time.
func (s *Shepherd) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
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
		s.mu.Lock()
		started := s.started
		s.mu.Unlock()
		if started {
			for _, l := range s.flock.all() {
				if _, ok := l.sheep.(runtime.Recoverer); ok && leave {
					l.part() // before the feed ends, so that none takes that for a stop
				}
			}
			s.stopFeed(errStopping)
			interrupt := context.AfterFunc(ctx, func() { s.stopWork(errDrainTimeout) })
			s.applying.Lock()
			defer s.applying.Unlock()
			for _, l := range s.flock.all() {
				l.wait()
			}
			interrupt()
			s.stopWork(errDrainTimeout)
			s.mirror.flush()
			s.stopBack()
			s.background.Wait()
		}
		for _, l := range s.flock.all() {
			s.close(ctx, l)
		}
	})
}

// close lets go of a sheep that is not used any more.
func (s *Shepherd) close(ctx context.Context, l *lane) {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := l.sheep.Close(closing); err != nil {
		s.log.Warn("Cannot close a sheep", "sheep", l.name, "error", err)
	}
	if l.devices != nil {
		l.devices.Close()
	}
}

// Sheep describes every sheep, in configured order.
func (s *Shepherd) Sheep(context.Context) []job.Sheep {
	lanes := s.flock.all()
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
	s.mu.Lock()
	draining := s.draining
	s.mu.Unlock()
	if draining {
		checks = append(checks, job.Check{Name: "shepherd", Err: job.ErrDraining})
	}
	for name, probe := range s.cfg.Probes {
		checks = append(checks, job.Check{Name: name, Err: probe(ctx)})
	}
	return checks
}
