// Package fleet runs several cores on one PostgreSQL in real time, while connections are cut,
// the server is killed, and nodes crash or are suspended. It checks that each acknowledged
// job ends once, with the results of one attempt. It also runs real daemons in separate
// networks, which are cut off from one another, from the storage and from the database, or
// whose database fails over.
package fleet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/memory"
)

// faults is the number of faults; make chaos-fleet sets more.
var faults = flag.Int("faults", 12, "how many faults happen")

// jobsPerFault is how many jobs are submitted for each fault.
const jobsPerFault = 12

// patience is the time limit of operations that take far less.
const patience = 2 * time.Minute

// fleet is several nodes, their database and their storage.
type fleet struct {
	t        *testing.T
	jobs     int // that are submitted
	database *postgrestest.Server
	store    *memory.Store
	nodes    []*node

	mu     sync.Mutex
	active map[job.ID]*life // where a job is with a runner
}

// node is one machine.
type node struct {
	fleet *fleet
	name  string
	lives int
	now   atomic.Pointer[life]
}

// life is one daemon of a node.
type life struct {
	node   *node
	dir    string
	ledger *postgres.Ledger
	core   *shepherd.Shepherd

	storing sync.RWMutex // held by a crash or a freeze, and for reading by what changes storage
	crashed atomic.Bool
	frozen  atomic.Bool // once it has been suspended
}

// store is the storage of a daemon that may crash.
type store struct {
	storage.Store
	fencer storage.Fencer
	of     *life
}

// apart are the outputs of a job in a store.
type apart struct {
	storage.Apart
	of *life
}

var errCrashed = fmt.Errorf("the daemon has crashed: %w", errdefs.ErrUnavailable)

// alive runs do, unless the daemon has crashed. A crash happens before or after do, not
// during it. A suspended daemon has sent its requests, even those that it has cancelled.
func (l *life) alive(ctx context.Context, do func(ctx context.Context) error) error {
	l.storing.RLock()
	defer l.storing.RUnlock()
	if l.crashed.Load() {
		return errCrashed
	}
	if l.frozen.Load() {
		ctx = context.WithoutCancel(ctx)
	}
	return do(ctx)
}

func (s store) CollectApart(ctx context.Context, id job.ID, attempt int64, dir *os.Root) (collected storage.Apart, err error) {
	err = s.of.alive(ctx, func(ctx context.Context) error {
		collected, err = s.fencer.CollectApart(ctx, id, attempt, dir)
		return err
	})
	return apart{collected, s.of}, err
}

func (s store) Fence(ctx context.Context, id job.ID, attempt int64) error {
	return s.of.alive(ctx, func(ctx context.Context) error { return s.fencer.Fence(ctx, id, attempt) })
}

func (a apart) Promote(ctx context.Context, replace bool) error {
	return a.of.alive(ctx, func(ctx context.Context) error { return a.Apart.Promote(ctx, replace) })
}

func (s store) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	return s.of.alive(ctx, func(ctx context.Context) error { return s.Store.SetStatus(ctx, id, status) })
}

// boot starts the node's next daemon.
func (n *node) boot() {
	f := n.fleet
	f.t.Helper()
	n.lives++
	l := &life{node: n, dir: filepath.Join(f.t.TempDir(), fmt.Sprint(n.lives))}
	log := slog.New(slog.NewTextHandler(f.t.Output(), nil)).With("node", n.name, "life", n.lives)
	var err error
	l.ledger, err = postgres.Open(f.t.Context(), postgres.Config{URL: f.database.URL("postgres"), Lease: time.Hour, RetryFor: patience, Log: log})
	if err != nil {
		f.t.Fatal(err)
	}
	driver := fake.New(fake.Config{Runners: fake.NewRunners(), Handle: l.run})
	var members []shepherd.Member
	for _, name := range []string{"a", "b"} {
		sheep, err := driver.NewSheep(n.name+name, func(any) error { return nil })
		if err != nil {
			f.t.Fatal(err)
		}
		members = append(members, shepherd.Member{Name: n.name + name, Type: "fake", Sheep: sheep})
	}
	l.core, err = shepherd.New(shepherd.Config{
		Node: n.name, DataRoot: l.dir, Ledger: l.ledger, Peers: l.ledger, Store: store{f.store, f.store, l}, Sheep: members,
		MaxAttempts: 1000, Log: log,
	})
	if err == nil {
		err = l.core.Start(f.t.Context())
	}
	if err != nil {
		f.t.Fatal(err)
	}
	n.now.Store(l)
}

// run runs a job: its output says which attempt wrote it.
func (l *life) run(ctx context.Context, _ job.Model, in messenger.Input) error {
	f := l.node.fleet
	f.begin(in.JobID, l)
	defer f.end(in.JobID, l)
	select {
	case <-time.After(rand.N(20 * time.Millisecond)):
	case <-ctx.Done():
		return ctx.Err()
	}
	return fake.WriteOutput(in, job.DefaultOutput, []byte(l.node.name+" "+string(in.JobID)))
}

// begin records that a runner has the job. No runner of another daemon may have it, unless
// that has crashed.
func (f *fleet) begin(id job.ID, l *life) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if other := f.active[id]; other != nil && other != l && !other.gone() && !l.gone() {
		f.t.Errorf("%s is with %s and %s", id, other.node.name, l.node.name)
	}
	f.active[id] = l
}

// gone reports whether other daemons may claim the jobs of this one.
func (l *life) gone() bool { return l.crashed.Load() || l.frozen.Load() }

func (f *fleet) end(id job.ID, l *life) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active[id] == l {
		delete(f.active, id)
	}
}

// crash ends the node's daemon and its runners as kill -9 does. Then its lease ends, and
// another daemon starts.
func (n *node) crash() {
	l := n.now.Load()
	l.storing.Lock()
	l.crashed.Store(true)
	l.storing.Unlock()
	l.ledger.Close()
	n.endLease()
	l.stop()
	n.boot()
}

// freeze suspends the node for longer than its lease: its storage requests are delayed until
// other nodes have taken its jobs, and then continue. Then the node finds that its lease is
// lost, and another daemon starts.
func (n *node) freeze(others func()) {
	l := n.now.Load()
	l.storing.Lock()
	l.frozen.Store(true)
	n.endLease()
	others()
	l.storing.Unlock()
	l.stop()
	l.ledger.Close()
	n.boot()
}

// endLease ends the node's lease.
func (n *node) endLease() {
	n.fleet.exec("UPDATE shepherd.nodes SET expires_at = clock_timestamp() WHERE name = '" + n.name + "'")
}

// stop stops the core; a crashed one without waiting.
func (l *life) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if l.crashed.Load() {
		cancel()
	}
	l.core.Stop(ctx)
}

// exec runs a statement, and tries again until the server answers.
func (f *fleet) exec(query string) {
	f.t.Helper()
	if err := f.database.Exec(f.t.Context(), "postgres", query); err != nil {
		f.t.Fatal(err)
	}
}

// any returns a core that is running.
func (f *fleet) any() *shepherd.Shepherd { return f.nodes[rand.N(len(f.nodes))].now.Load().core }

// submit submits a job to one node after the other until one accepts it.
func (f *fleet) submit(id job.ID) {
	for end := time.Now().Add(patience); ; {
		err := f.any().Submit(f.t.Context(), job.Request{ID: id, Model: job.Model{Name: "m", Version: "1"}, Payload: []byte("x")})
		if err == nil || errors.Is(err, job.ErrSubmitted) {
			return
		}
		if f.t.Context().Err() != nil || time.Now().After(end) || !errdefs.IsUnavailable(err) && !errors.Is(err, job.ErrDraining) {
			f.t.Errorf("submit %s: %v", id, err)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// await waits at one node after the other until the job has ended.
func (f *fleet) await(id job.ID) {
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	for {
		within, cancel := context.WithTimeout(ctx, time.Second) // the node may crash
		status, err := f.any().Wait(within, id)
		cancel()
		if err == nil && status.State.Final() {
			if status.State != job.Done {
				f.t.Errorf("%s is %s: %v", id, status.State, status.Failure)
			}
			return
		}
		var unknown *job.UnknownJob
		if ctx.Err() != nil || errors.As(err, &unknown) {
			f.t.Errorf("%s was taken, and is %q, %v", id, status.State, err)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestFaults submits jobs at all nodes while faults happen.
func TestFaults(t *testing.T) {
	f := &fleet{t: t, jobs: *faults * jobsPerFault, database: postgrestest.New(t, "fsync=on", "synchronous_commit=on", "full_page_writes=on"), store: new(memory.Store), active: map[job.ID]*life{}}
	for i := range 3 {
		n := &node{fleet: f, name: fmt.Sprint("n", i)}
		f.nodes = append(f.nodes, n)
		n.boot()
	}
	var clients sync.WaitGroup
	var ended, working atomic.Int64
	const many = 8
	for c := range many {
		working.Add(1)
		clients.Go(func() {
			defer working.Add(-1)
			for i := c; i < f.jobs; i += many {
				id := job.ID(fmt.Sprintf("job-%d", i))
				f.submit(id)
				f.await(id)
				ended.Add(1)
			}
		})
	}
	did := map[string]int{}
	for fault := range *faults {
		more := func() { // in the middle of it
			for mark := ended.Load(); ended.Load() < mark+3 && working.Load() > 0; {
				time.Sleep(time.Millisecond)
			}
		}
		more()
		switch kind := []string{"cut", "crash", "freeze", "cut", "kill", "freeze"}[fault%6]; kind {
		case "cut":
			f.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shepherd' AND random() < 0.5")
			did[kind]++
		case "crash":
			f.nodes[rand.N(len(f.nodes))].crash()
			did[kind]++
		case "freeze":
			f.nodes[rand.N(len(f.nodes))].freeze(more)
			did[kind]++
		case "kill":
			f.database.Kill()
			if err := f.database.Restart(); err != nil {
				t.Fatal(err)
			}
			did[kind]++
		}
	}
	clients.Wait()
	f.check()
	for _, n := range f.nodes {
		l := n.now.Load()
		l.stop()
		if err := l.ledger.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d jobs, faults: %v", f.jobs, did)
}

// check checks the ledger and the storage.
func (f *fleet) check() {
	f.t.Helper()
	checkJobs(f.t, f.database.URL("postgres"), f.jobs, func(id job.ID, last job.Attempt) error {
		file, err := f.store.Open(f.t.Context(), id, job.OutputDir+"/"+job.DefaultOutput, nil)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(file.Body)
		file.Body.Close()
		if want := last.Node + " " + string(id); err == nil && string(text) != want {
			err = fmt.Errorf("it is %q, want %q", text, want)
		}
		return err
	})
}

// checkJobs checks that each of the jobs ended once, as done, by its last attempt, and has
// the output of that attempt.
func checkJobs(t *testing.T, url string, jobs int, output func(id job.ID, last job.Attempt) error) {
	t.Helper()
	ctx := t.Context()
	l, err := postgres.Open(ctx, postgres.Config{URL: url, Lease: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ends := map[job.ID]int{}
	for cursor := job.Cursor(""); ; {
		events, next, err := l.Events(ctx, cursor, ledger.EventFilter{}, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Kind == job.EventEnded {
				ends[e.Job]++
			}
		}
		if cursor = next; len(events) == 0 {
			break
		}
	}
	records, _, err := l.List(ctx, ledger.Filter{}, 0, 10*jobs)
	if err != nil || len(records) != jobs || len(ends) != jobs {
		t.Fatalf("%d jobs are recorded and %d have ended, %v; %d were taken", len(records), len(ends), err, jobs)
	}
	for _, rec := range records {
		if rec.State != job.Done || ends[rec.ID] != 1 {
			t.Errorf("%s is %s and ended %d times", rec.ID, rec.State, ends[rec.ID])
		}
		attempts, err := l.Attempts(ctx, rec.ID)
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range attempts {
			if a.Number != i+1 || (a.Cause == job.CauseDone) != (i == len(attempts)-1) {
				t.Errorf("attempt %d of %s: %+v", i+1, rec.ID, a)
			}
		}
		if err := output(rec.ID, attempts[len(attempts)-1]); err != nil {
			t.Errorf("the output of %s: %v", rec.ID, err)
		}
	}
}
