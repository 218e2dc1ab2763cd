package sim

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/fleet"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/memory"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	storage "github.com/iterait/shepherd/storage/memory"
)

var (
	fleetNodes = flag.Int("fleet-nodes", 5, "how many nodes TestFleet has")
	fleetSheep = flag.Int("fleet-sheep", 4, "how many sheep each of them has")
	fleetJobs  = flag.Int("fleet-jobs", 400, "how many jobs they run")
)

// fleetModels take a while to load, as models do.
var fleetModels = []time.Duration{2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 20 * time.Second, 30 * time.Second}

// meanRun is how long a job runs on average.
const meanRun = 10 * time.Second

// fleetPolicy is fair share between two tenants of weights 2 and 1.
var fleetPolicy = ledger.Policy{HalfLife: time.Hour, Tenants: []ledger.TenantLimit{{Tenant: "twice", Weight: 2}, {Tenant: "once", Weight: 1}}}

// keptJobs is how many jobs that have ended the ledger keeps, keptEvents how many events,
// and keptFiles for how long clients keep the files of a job that has ended: the run's
// memory grows with the jobs that wait alone.
const (
	keptJobs   = 20_000
	keptEvents = 200_000
	keptFiles  = time.Minute
)

// burstPace is how many jobs are submitted within bellEvery when they come at once.
const burstPace = 200

// directoryAge is how old what nodes know of one another may be: they announce themselves now
// and then.
const directoryAge = 250 * time.Millisecond

// counting counts a node's calls of a shared ledger: each is at least one statement.
type counting struct {
	ledger.Ledger
	*counts
	node    string
	bell    *bell
	origins *sync.Map // the nodes that took the jobs in, which a shared ledger tells of
	ends    *ends
}

// ends are the jobs that have ended, in the order of their ends.
type ends struct {
	mu      sync.Mutex
	ended   []end
	wrong   []string // that did not end as planned
	removed int      // of the files of the first
}

// end is the record of a job that has ended.
type end struct {
	id                          job.ID
	tenant                      string
	enqueued, started, finished time.Time
}

func (e *ends) add(rec job.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = append(e.ended, end{rec.ID, rec.Tenant, rec.EnqueuedAt, rec.StartedAt, rec.FinishedAt})
	if rec.State != job.Done || rec.Attempt != 1 {
		e.wrong = append(e.wrong, fmt.Sprintf("%s is %s after %d attempts", rec.ID, rec.State, rec.Attempt))
	}
}

// all are those that have ended.
func (e *ends) all() []end {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended
}

// old removes and returns the jobs whose files are to be removed.
func (e *ends) old(now time.Time) []end {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := e.removed
	for e.removed < len(e.ended) && now.Sub(e.ended[e.removed].finished) > keptFiles {
		e.removed++
	}
	return e.ended[first:e.removed]
}

// counts are of all nodes.
type counts struct {
	calls  atomic.Int64 // of the ledger, but for reading events and records
	reads  atomic.Int64 // of records
	states atomic.Int64 // written to storage
}

// countingStore counts the states that are written.
type countingStore struct {
	*storage.Store
	*counts
}

func (s countingStore) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	s.states.Add(1)
	return s.Store.SetStatus(ctx, id, status)
}

func (l counting) Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) ([]job.Event, job.Cursor, error) {
	events, next, err := l.Ledger.Events(ctx, after, filter, limit)
	for i, e := range events {
		if origin, ok := l.origins.Load(e.Job); ok && e.Sheep == "" {
			events[i].Origin = origin.(string)
		}
	}
	return events, next, err
}

// bell signals changes of the ledger, like a LISTEN connection of a database: once for all
// changes within bellEvery.
type bell struct {
	mu   sync.Mutex
	rung chan struct{}
}

const bellEvery = 20 * time.Millisecond

func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rung
}

// run rings until the ledger is closed.
func (b *bell) run(l *memory.Ledger) {
	for l.Ping(context.Background()) == nil {
		<-l.Changed()
		time.Sleep(bellEvery)
		b.mu.Lock()
		close(b.rung)
		b.rung = make(chan struct{})
		b.mu.Unlock()
	}
}

func (l counting) Changed() <-chan struct{} { return l.bell.wait() }

func (l counting) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	l.calls.Add(1)
	l.origins.Store(rec.ID, l.node)
	return l.Ledger.Create(ctx, rec)
}

func (l counting) Claim(ctx context.Context, s ledger.Slot) (*ledger.Claim, error) {
	l.calls.Add(1)
	return l.Ledger.Claim(ctx, s)
}

func (l counting) Start(ctx context.Context, id job.ID, t ledger.Token) (job.Record, error) {
	l.calls.Add(1)
	return l.Ledger.Start(ctx, id, t)
}

func (l counting) Finish(ctx context.Context, id job.ID, t ledger.Token, o ledger.Outcome) (job.Record, error) {
	l.calls.Add(1)
	rec, err := l.Ledger.Finish(ctx, id, t, o)
	if err == nil {
		l.ends.add(rec)
	}
	return rec, err
}

func (l counting) Release(ctx context.Context, id job.ID, t ledger.Token, r ledger.Return) (job.Record, error) {
	l.calls.Add(1)
	return l.Ledger.Release(ctx, id, t, r)
}

func (l counting) Get(ctx context.Context, id job.ID) (job.Record, error) {
	l.reads.Add(1)
	return l.Ledger.Get(ctx, id)
}

func (l counting) Waiting(ctx context.Context, most int) ([]ledger.Waiting, error) {
	l.calls.Add(1)
	return l.Ledger.Waiting(ctx, most)
}

func (l counting) Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error) {
	l.calls.Add(1)
	return l.Ledger.Attempts(ctx, id)
}

// simFleet is all nodes.
type simFleet struct {
	kept  *memory.Ledger
	store *storage.Store
	cores []*shepherd.Shepherd
	counts
	bell      bell
	beside    sync.WaitGroup // goroutines that run until the ledger is closed
	origins   sync.Map
	ends      ends
	announced struct {
		sync.Mutex
		nodes []fleet.Node
		at    time.Time
	}
	loads    atomic.Int64  // of models
	loading  atomic.Int64  // time, in nanoseconds
	computed atomic.Int64  // time, likewise
	spent    time.Duration // of CPUs, when the jobs that are measured began
}

// Peers and Draining implement shepherd.Peers.
func (f *simFleet) Peers(_ context.Context, node string) (peers []string, _ error) {
	for i := range f.cores {
		if name := nodeName(i); name != node {
			peers = append(peers, name)
		}
	}
	return peers, nil
}

func (*simFleet) Draining(string) bool { return false }

func nodeName(i int) string { return fmt.Sprintf("node%03d", i) }

// directory is the nodes that have announced themselves.
func (f *simFleet) directory(ctx context.Context) ([]fleet.Node, error) {
	f.announced.Lock()
	defer f.announced.Unlock()
	if !f.announced.at.IsZero() && time.Since(f.announced.at) < directoryAge {
		return f.announced.nodes, nil
	}
	nodes := make([]fleet.Node, 0, len(f.cores))
	for i, core := range f.cores {
		if core == nil { // not up yet
			continue
		}
		n := fleet.Node{Name: nodeName(i), Alive: true, Sheep: core.Sheep(ctx)}
		for _, s := range n.Sheep {
			if s.Job != "" {
				n.Held++
			}
		}
		nodes = append(nodes, n)
	}
	f.announced.nodes, f.announced.at = nodes, time.Now()
	return nodes, nil
}

// clean removes the files of jobs that ended a while ago, as their clients do.
func (f *simFleet) clean(ctx context.Context) {
	for f.kept.Ping(ctx) == nil {
		time.Sleep(time.Second)
		for _, e := range f.ends.old(time.Now()) {
			f.store.Remove(ctx, e.id)
			f.origins.Delete(e.id)
		}
	}
}

// boot starts all nodes.
func (f *simFleet) boot(ctx context.Context, dir string, sheep int) error {
	driver := fake.New(fake.Config{
		Runners: fake.NewRunners(),
		Load: func(ctx context.Context, m job.Model) error {
			var i int
			if _, err := fmt.Sscanf(m.Name, "model%d", &i); err != nil {
				return err
			}
			f.loads.Add(1)
			f.loading.Add(int64(fleetModels[i]))
			time.Sleep(fleetModels[i])
			return ctx.Err()
		},
		Handle: func(_ context.Context, _ job.Model, in messenger.Input) error {
			text, err := fake.ReadInput(in, job.DefaultInput)
			if err != nil {
				return err
			}
			d, err := time.ParseDuration(string(text))
			time.Sleep(d)
			f.computed.Add(int64(d))
			return err
		},
	})
	log := slog.New(slog.DiscardHandler)
	f.bell.rung = make(chan struct{})
	f.beside.Go(func() { f.bell.run(f.kept) })
	f.beside.Go(func() { f.clean(ctx) })
	for i := range f.cores {
		var members []shepherd.Member
		for n := range sheep {
			name := fmt.Sprintf("sheep%d", n)
			one, err := driver.NewSheep(name, func(any) error { return nil })
			if err != nil {
				return err
			}
			members = append(members, shepherd.Member{Name: name, Type: "fake", Sheep: one})
		}
		core, err := shepherd.New(shepherd.Config{
			Node: nodeName(i), DataRoot: filepath.Join(dir, nodeName(i)), Ledger: counting{f.kept, &f.counts, nodeName(i), &f.bell, &f.origins, &f.ends}, Peers: f, Store: countingStore{f.store, &f.counts}, Sheep: members,
			Fleet: fleet.New(fleet.Config{Self: nodeName(i), Directory: f.directory, Log: log}), Policy: fleetPolicy, MaxAttempts: 3, Log: log,
		})
		if err != nil {
			return err
		}
		if err := core.Start(ctx); err != nil {
			return err
		}
		f.cores[i] = core
	}
	return nil
}

func (f *simFleet) stop() {
	for _, core := range f.cores {
		if core != nil {
			core.Stop(context.Background())
		}
	}
	f.kept.Close()
	f.beside.Wait()
}

// submit submits a job at any node.
func (f *simFleet) submit(ctx context.Context, random *rand.Rand, i int, tenant string) error {
	d := time.Duration(random.ExpFloat64() * float64(meanRun)).Round(time.Millisecond)
	return f.cores[random.IntN(len(f.cores))].Submit(ctx, job.Request{
		ID: job.ID(fmt.Sprintf("job-%06d", i)), Model: job.Model{Name: fmt.Sprintf("model%d", random.IntN(len(fleetModels))), Version: "1"}, Tenant: tenant, Payload: []byte(d.String()),
	})
}

// ended waits until n jobs have ended, and returns those after the first.
func (f *simFleet) ended(ctx context.Context, first, n int) ([]end, error) {
	for {
		if all := f.ends.all(); len(all) == n {
			return all[first:], nil
		}
		counts, err := f.kept.Count(ctx)
		if err != nil {
			return nil, err
		}
		if failed := counts[job.Failed] + counts[job.Cancelled]; failed > 0 {
			return nil, fmt.Errorf("%d jobs failed", failed)
		}
		time.Sleep(time.Second)
	}
}

// TestFleet runs jobs of several models and two tenants on several nodes with one ledger, on
// virtual time. At first jobs are submitted a little slower than they can be run, and then all
// at once. It checks bounds of the part of the sheep's time in which jobs run, the waiting
// times, the fairness between tenants, and the number of calls of the ledger.
func TestFleet(t *testing.T) {
	nodes, sheep, jobs := *fleetNodes, *fleetSheep, *fleetJobs
	synctest.Test(t, func(t *testing.T) {
		f := &simFleet{kept: memory.New(memory.Config{Policy: fleetPolicy, KeepJobs: keptJobs, EventNumber: keptEvents}), store: new(storage.Store), cores: make([]*shepherd.Shepherd, nodes)}
		defer f.stop()
		ctx := context.Background()
		if err := f.boot(ctx, tempDir(t), sheep); err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(1, 2))
		// Six in ten sheep are busy.
		pause := time.Duration(float64(meanRun) / float64(nodes*sheep) / 0.6)
		began := time.Now()
		f.spent = spent()
		for i := range jobs / 2 {
			time.Sleep(time.Duration(random.ExpFloat64() * float64(pause)))
			if err := f.submit(ctx, random, i, ""); err != nil {
				t.Fatal(err)
			}
		}
		flowed, err := f.ended(ctx, 0, jobs/2)
		if err != nil {
			t.Fatal(err)
		}
		flow := f.measure(flowed, began, nodes*sheep)
		t.Logf("%d nodes with %d sheep, %d jobs that come one by one: %s", nodes, nodes*sheep, jobs/2, flow)

		// All at once.
		for _, n := range []*atomic.Int64{&f.calls, &f.reads, &f.states, &f.loads, &f.loading, &f.computed} {
			n.Store(0)
		}
		began, f.spent = time.Now(), spent()
		for i := jobs / 2; i < jobs; i++ {
			if i%burstPace == burstPace-1 {
				time.Sleep(bellEvery)
			}
			if err := f.submit(ctx, random, i, []string{"once", "twice"}[i%2]); err != nil {
				t.Fatal(err)
			}
		}
		burst, err := f.ended(ctx, jobs/2, jobs)
		if err != nil {
			t.Fatal(err)
		}
		backlog := f.measure(burst, began, nodes*sheep)
		t.Logf("%d jobs at once: %s; of two tenants of weights 2 and 1 the first had %.2f times what the other had", len(burst), backlog, shares(burst))

		for _, wrong := range f.ends.wrong {
			t.Error(wrong)
		}
		// Where sheep are idle, each node looks once for a new job.
		if most := 6 + float64(nodes)/2; flow.calls > most {
			t.Errorf("the ledger is called %.1f times for each job that comes by itself, at most %.0f times are allowed", flow.calls, most)
		}
		if most := 8.0; backlog.calls > most {
			t.Errorf("the ledger is called %.1f times for each job of a backlog, at most %.0f times are allowed", backlog.calls, most)
		}
		// However many nodes there are, one writes a job's states.
		if most := 6.0; flow.reads > most || backlog.reads > most {
			t.Errorf("a job's record is read %.1f and %.1f times, at most %.0f times are allowed", flow.reads, backlog.reads, most)
		}
		if most := 3.2; flow.states > most || backlog.states > most {
			t.Errorf("a job's state is written %.1f and %.1f times, at most %.1f times are allowed", flow.states, backlog.states, most)
		}
		if flow.p99 > 2*time.Minute {
			t.Errorf("one in a hundred jobs waits for more than %v", flow.p99)
		}
		if backlog.busy < 0.35 { // the end, when sheep become idle, is part of it
			t.Errorf("with a backlog jobs have %.0f %% of the sheep's time", 100*backlog.busy)
		}
		if got := shares(burst); got < 1.4 || got > 2.8 {
			t.Errorf("the tenant that counts twice had %.2f times what the other had", got)
		}
	})
}

// measured is what a fleet did.
type measured struct {
	perHour  float64       // jobs
	busy     float64       // part of the sheep's time in which jobs ran
	loading  float64       // part of it in which models were loaded
	p50, p99 time.Duration // waits for the start
	loads    float64       // of models, per job
	calls    float64       // of the ledger, per job
	reads    float64       // of its record, per job
	states   float64       // written, per job
	cost     time.Duration // of this process's CPUs, per job
}

func (m measured) String() string {
	return fmt.Sprintf("%.0f an hour, %.0f %% of the sheep's time are jobs and %.0f %% loading models, waits %v in the median and %v at the 99th percentile, %.2f loads and %.1f calls of the ledger per job beside %.1f reads of its record, and %.1f writes of its state, for %v of the simulation's CPUs",
		m.perHour, 100*m.busy, 100*m.loading, m.p50.Round(time.Millisecond), m.p99.Round(time.Millisecond), m.loads, m.calls, m.reads, m.states, m.cost.Round(10*time.Microsecond))
}

// spent returns the CPU time of this process.
func spent() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (f *simFleet) measure(ended []end, began time.Time, sheep int) measured {
	last := began
	var waits []time.Duration
	for _, e := range ended {
		waits = append(waits, e.started.Sub(e.enqueued))
		if e.finished.After(last) {
			last = e.finished
		}
	}
	slices.Sort(waits)
	took, n := last.Sub(began), float64(len(ended))
	part := func(ns int64) float64 { return float64(ns) / float64(took) / float64(sheep) }
	return measured{
		perHour: n / took.Hours(), busy: part(f.computed.Load()), loading: part(f.loading.Load()), p50: waits[len(waits)/2], p99: waits[len(waits)*99/100],
		loads: float64(f.loads.Load()) / n, calls: float64(f.calls.Load()) / n, reads: float64(f.reads.Load()) / n, states: float64(f.states.Load()) / n,
		cost: (spent() - f.spent) / time.Duration(len(ended)),
	}
}

// shares returns the ratio of the use of the tenant with weight 2 to that of the other, until
// half of the jobs had ended: later it has too few jobs left.
func shares(ended []end) float64 {
	half := ended[len(ended)/2].finished
	had := map[string]time.Duration{}
	for _, e := range ended {
		if e.started.Before(half) {
			until := e.finished
			if until.After(half) {
				until = half
			}
			had[e.tenant] += until.Sub(e.started)
		}
	}
	return had["twice"].Seconds() / had["once"].Seconds()
}
