package postgres

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// endLease has the node's lease be over by the server's clock.
func endLease(t *testing.T, l *Ledger, node string) {
	t.Helper()
	n, err := l.exec(t.Context(), `UPDATE shepherd.nodes SET expires_at = clock_timestamp() - interval '1 second' WHERE name = @node`, pgx.NamedArgs{"node": node})
	if err != nil || n != 1 {
		t.Fatalf("%d nodes, %v", n, err)
	}
}

// TestNodeLost has a node's lease end: another takes its claims back, and it can
// neither change its jobs nor claim more until it joins again.
func TestNodeLost(t *testing.T) {
	url := newDatabase(t)
	dead := openQuiet(t, quiet(url, url)) // it does not notice by itself
	cfg := quiet(url, url)
	cfg.Poll = 10 * time.Millisecond
	alive := mustOpen(t, cfg)
	ctx := t.Context()
	for node, l := range map[string]*Ledger{"dead": dead, "alive": alive} {
		if _, err := l.Join(ctx, node); err != nil {
			t.Fatal(err)
		}
	}
	if peers, err := alive.Peers(ctx, "alive"); err != nil || len(peers) != 1 || peers[0] != "dead" {
		t.Fatalf("the other nodes are %v, %v", peers, err)
	}
	claims := map[job.ID]*ledger.Claim{}
	for id, slot := range map[job.ID]ledger.Slot{
		"running": {Node: "dead", Sheep: "a"}, "ahead": {Node: "dead", Sheep: "a", Ahead: true}, "own": {Node: "alive", Sheep: "a"},
	} {
		if _, err := dead.Create(ctx, job.Record{ID: id, Model: red}); err != nil {
			t.Fatal(err)
		}
		var err error
		l := map[string]*Ledger{"dead": dead, "alive": alive}[slot.Node]
		if claims[id], err = l.Claim(ctx, slot); err != nil || claims[id] == nil {
			t.Fatalf("Claim of %s = %v, %v", id, claims[id], err)
		}
	}
	endLease(t, alive, "dead")
	hung := time.After(hang)
	for {
		changed := alive.Changed()
		held, err := alive.Held(ctx, "dead")
		if err != nil {
			t.Fatal(err)
		}
		if len(held) == 0 {
			break
		}
		select {
		case <-changed:
		case <-hung:
			t.Fatalf("the lost node still holds %v", held)
		}
	}
	for id, spent := range map[job.ID]bool{"running": true, "ahead": false} {
		attempts, err := alive.Attempts(ctx, id)
		if err != nil || len(attempts) != 1 || attempts[0].Cause != job.CauseNodeLost || attempts[0].Spent != spent {
			t.Errorf("attempts of %s: %+v, %v", id, attempts, err)
		}
		if _, err := dead.Finish(ctx, id, claims[id].Token, done); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("the lost node finished %s: %v", id, err)
		}
	}
	if peers, err := alive.Peers(ctx, "alive"); err != nil || len(peers) > 0 {
		t.Errorf("the other nodes are %v, %v", peers, err)
	}
	if held, err := alive.Held(ctx, "alive"); err != nil || len(held) != 1 {
		t.Errorf("the other node holds %v, %v", held, err)
	}
	if c, err := dead.Claim(ctx, ledger.Slot{Node: "dead", Sheep: "a"}); !errdefs.IsUnavailable(err) {
		t.Errorf("the lost node claimed %v, %v", c, err)
	}
	if _, err := dead.Join(ctx, "dead"); err != nil {
		t.Fatal(err)
	}
	if c, err := dead.Claim(ctx, ledger.Slot{Node: "dead", Sheep: "a"}); err != nil || c == nil {
		t.Errorf("the node that joined again claimed %v, %v", c, err)
	}
}

// TestLeaseLost ends leases that were not or cannot be renewed, and keeps one that is.
func TestLeaseLost(t *testing.T) {
	url := newDatabase(t)
	cfg := quiet(url, url)
	cfg.Poll, cfg.Lease = 10*time.Millisecond, 80*time.Millisecond
	p := newProxy(t, url)
	cfg.URL, cfg.RetryFor = p.url, time.Millisecond
	l := mustOpen(t, cfg)
	lease, err := l.Join(t.Context(), "node")
	if err != nil {
		t.Fatal(err)
	}
	p.listener.Close()
	p.cutAll()
	await(t, lease.Lost(), "a lease that cannot be renewed is not lost")

	first, second := openQuiet(t, quiet(url, url)), openQuiet(t, quiet(url, url))
	before, err := first.Join(t.Context(), "same")
	if err != nil {
		t.Fatal(err)
	}
	after, err := second.Join(t.Context(), "same")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Ledger{second, first} {
		l.maintenance.pulse.renewed = time.Time{}
		if err := l.maintenance.pulse.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	await(t, before.Lost(), "the lease is not lost to the daemon that joined later")
	if c, err := first.Claim(t.Context(), ledger.Slot{Node: "same", Sheep: "a"}); err != nil || c != nil {
		t.Errorf("Claim = %v, %v", c, err)
	}
	select {
	case <-after.Lost():
		t.Error("the later lease is lost, too")
	default:
	}
}

// TestAlone refuses a second node until the first has left or its lease is over.
func TestAlone(t *testing.T) {
	url := newDatabase(t)
	cfg := quiet(url, url)
	cfg.Alone = true
	first, second := openQuiet(t, cfg), openQuiet(t, cfg)
	ctx := t.Context()
	lease, err := first.Join(ctx, "first")
	if err != nil {
		t.Fatal(err)
	}
	refused := func() {
		t.Helper()
		var taken *TakenError
		if _, err := second.Join(ctx, "second"); !errors.As(err, &taken) || taken.Node != "first" || !errdefs.IsFailedPrecondition(err) {
			t.Fatalf("the second node joined: %v", err)
		}
	}
	refused()
	if _, err := first.Join(ctx, "first"); err != nil { // the same node may
		t.Fatal(err)
	}
	await(t, lease.Lost(), "the lease is not lost to the node's next one")
	refused()
	endLease(t, second, "first")
	lease, err = second.Join(ctx, "second")
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Join(ctx, "first"); err != nil {
		t.Fatal(err)
	}
}

// TestDoorbell hears what another node did without asking for it.
func TestDoorbell(t *testing.T) {
	url := newDatabase(t)
	here, there := openQuiet(t, quiet(url, url)), openQuiet(t, quiet(url, url))
	changed := here.Changed()
	if _, err := there.Create(t.Context(), job.Record{ID: "x", Model: red}); err != nil {
		t.Fatal(err)
	}
	await(t, changed, "the doorbell is not heard")
	// Without the doorbell, it is polled for.
	cfg := quiet(url, url)
	cfg.Poll = 10 * time.Millisecond
	polling := mustOpen(t, cfg)
	there.bell.quit() // nobody takes what is rung
	there.bell.done.Wait()
	changed = polling.Changed()
	if _, err := there.Cancel(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	await(t, changed, "the change is not polled for")
}

// TestTexts keeps texts that PostgreSQL cannot keep as near as it can.
func TestTexts(t *testing.T) {
	l := openQuiet(t, quiet(newDatabase(t), ""))
	broken, want := "a\x00b\xff\xfe größe", "a\uFFFDb\uFFFD größe"
	if _, err := l.Create(t.Context(), job.Record{ID: job.ID(broken), Model: job.Model{Name: broken}, Sheep: broken, Tenant: broken}); err != nil {
		t.Fatal(err)
	}
	c, err := l.Claim(t.Context(), ledger.Slot{Node: broken, Sheep: broken, Prefer: job.Model{Name: broken}, Except: []job.Model{{Name: broken}}})
	if err != nil || c == nil {
		t.Fatalf("Claim = %v, %v", c, err)
	}
	outcome := ledger.Outcome{State: job.Failed, Cause: job.CauseError, Reason: broken, Log: broken,
		Failure: &job.Failure{Message: broken, Type: broken, Traceback: broken}, Warnings: []string{broken}}
	if _, err := l.Finish(t.Context(), job.ID(broken), c.Token, outcome); err != nil {
		t.Fatal(err)
	}
	rec, err := l.Get(t.Context(), job.ID(broken))
	if err != nil || rec.Failure.Message != want || rec.Failure.Traceback != want || rec.Model.Name != want {
		t.Fatalf("kept: %+v, %+v, %v", rec, rec.Failure, err)
	}
}

// TestGaps reads on behind numbers of events that no transaction has any more, and
// stops before one that a transaction has.
func TestGaps(t *testing.T) {
	url := newDatabase(t)
	l := openQuiet(t, quiet(url, url))
	ctx := t.Context()
	start, err := l.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	insert := `INSERT INTO shepherd.events (at, age, kind, job, run, model_name, model_version, sheep, tenant, attempt, holder, node, state, cause, reason, delayed,
		failure_type, failure_message, failure_traceback) VALUES (now(), 0, 'queued', $1, 1, '', '', '', '', 0, '', '', 'queued', '', '', false, '', '', '')`
	for _, c := range []struct {
		id     string
		commit bool
		want   []job.ID
	}{{"undone", false, []job.ID{"after undone"}}, {"late", true, []job.ID{"late", "after late"}}} {
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, insert, c.id); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Create(ctx, job.Record{ID: job.ID("after " + c.id), Model: red}); err != nil {
			t.Fatal(err)
		}
		for _, filter := range []ledger.EventFilter{{}, {Job: job.ID("after " + c.id)}} {
			if events, _, err := l.Events(ctx, start, filter, 10); err != nil || len(events) > 0 {
				t.Fatalf("while an event before may come: %+v, %v", events, err)
			}
		}
		if c.commit {
			err = tx.Commit(ctx)
		} else {
			err = tx.Rollback(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		events, next, err := l.Events(ctx, start, ledger.EventFilter{}, 10)
		if err != nil || len(events) != len(c.want) {
			t.Fatalf("%s: %d events, %v, want %v", c.id, len(events), err, c.want)
		}
		for i, e := range events {
			if e.Job != c.want[i] {
				t.Errorf("%s: event %d is of %s, want %s", c.id, i, e.Job, c.want[i])
			}
		}
		start = next
	}
}

// TestLeave has a node give its lease up: without jobs it is gone at once; with some it
// has a while to come back, and then others have them.
func TestLeave(t *testing.T) {
	url := newDatabase(t)
	l := openQuiet(t, quiet(url, url))
	ctx := t.Context()
	left := func() (until *time.Time, inMinutes float64) {
		t.Helper()
		if _, err := l.queryOne(ctx, `SELECT expires_at, coalesce(extract(epoch FROM expires_at - clock_timestamp()) / 60, 0)::float8 FROM shepherd.nodes WHERE name = 'node'`, nil, &until, &inMinutes); err != nil {
			t.Fatal(err)
		}
		return until, inMinutes
	}
	for _, holds := range []bool{false, true} {
		lease, err := l.Join(ctx, "node")
		if err != nil {
			t.Fatal(err)
		}
		if holds {
			if _, err := l.Create(ctx, job.Record{ID: "x", Model: red}); err != nil {
				t.Fatal(err)
			}
			if c, err := l.Claim(ctx, slot("a")); err != nil || c == nil {
				t.Fatalf("Claim = %v, %v", c, err)
			}
			if _, err := l.exec(ctx, `UPDATE shepherd.nodes SET expires_at = clock_timestamp() + interval '1 second'`, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := lease.Release(ctx); err != nil {
			t.Fatal(err)
		}
		until, minutes := left()
		if holds != (until != nil) || holds && minutes > 1 {
			t.Errorf("holds a job: %t; the lease ends at %v, in %v minutes", holds, until, minutes)
		}
	}
}

// TestRemovalOfAnotherNode leaves a removal to the node that began it, until that is lost:
// two that remove the files of one job would remove those of its next run, too.
func TestRemovalOfAnotherNode(t *testing.T) {
	url := newDatabase(t)
	a, b := openQuiet(t, quiet(url, url)), openQuiet(t, quiet(url, url))
	ctx := t.Context()
	for node, l := range map[string]*Ledger{"a": a, "b": b} {
		if _, err := l.Join(ctx, node); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Create(ctx, job.Record{ID: "x", Model: red}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Cancel(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	due := func(l *Ledger) int {
		t.Helper()
		removals, _, err := l.Due(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(removals)
	}
	for range 2 {
		if rec, err := a.BeginRemoval(ctx, "x", 1, false); err != nil || !rec.Removing {
			t.Fatalf("BeginRemoval = %+v, %v", rec, err)
		}
	}
	if due(a) != 1 || due(b) != 0 {
		t.Errorf("%d removals are due at the node that began, %d at the other", due(a), due(b))
	}
	if _, err := b.BeginRemoval(ctx, "x", 1, true); !errors.Is(err, ledger.ErrRemoving) {
		t.Errorf("the other node began, too: %v", err)
	}
	ends := func(l *Ledger, removed bool) {
		t.Helper()
		if err := l.EndRemoval(ctx, "x"); err != nil {
			t.Fatal(err)
		}
		if rec, err := b.Get(ctx, "x"); err != nil || rec.FilesRemoved != removed {
			t.Errorf("the files are removed: %t, %v", rec.FilesRemoved, err)
		}
	}
	ends(b, false)
	endLease(t, b, "a")
	if due(b) != 1 {
		t.Error("the removal of the lost node is not due at the other")
	}
	if _, err := b.BeginRemoval(ctx, "x", 1, false); err != nil {
		t.Fatal(err)
	}
	ends(a, false)
	ends(b, true)
}

// TestNodeLostForSeveral has two nodes take back the same claim, of which one is slower: that
// is no failure of its maintenance.
func TestNodeLostForSeveral(t *testing.T) {
	url := newDatabase(t)
	dead, slow := openQuiet(t, quiet(url, url)), openQuiet(t, quiet(url, url))
	ctx := t.Context()
	for node, l := range map[string]*Ledger{"dead": dead, "slow": slow} {
		if _, err := l.Join(ctx, node); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []job.ID{"first", "second"} {
		if _, err := dead.Create(ctx, job.Record{ID: id, Model: red}); err != nil {
			t.Fatal(err)
		}
		if c, err := dead.Claim(ctx, ledger.Slot{Node: "dead", Sheep: string(id)}); err != nil || c == nil {
			t.Fatalf("Claim = %v, %v", c, err)
		}
	}
	endLease(t, slow, "dead")

	// The other has changed the first job, and is about to commit that.
	other, err := dead.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := other.Exec(ctx, `UPDATE shepherd.jobs SET version = version + 1 WHERE id = 'first'`); err != nil {
		t.Fatal(err)
	}
	taken := make(chan error, 1)
	go func() { taken <- slow.maintenance.takeBack(ctx, "dead") }()
	for waits, end := false, time.Now().Add(hang); !waits; {
		if time.Now().After(end) {
			t.Fatal("the slow node does not wait for the other's transaction")
		}
		if _, err := dead.queryOne(ctx, `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND NOT l.granted)
			OR EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`, nil, &waits); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := await(t, taken, "the claims are not taken back"); err != nil {
		t.Error(err)
	}
	if held, err := slow.Held(ctx, "dead"); err != nil || len(held) > 0 {
		t.Errorf("it still holds %v, %v", held, err)
	}
}

// TestNodeCameBack has a node join again after another has found that its lease had ended: it
// keeps its claims.
func TestNodeCameBack(t *testing.T) {
	url := newDatabase(t)
	back, other := openQuiet(t, quiet(url, url)), openQuiet(t, quiet(url, url))
	ctx := t.Context()
	for node, l := range map[string]*Ledger{"back": back, "other": other} {
		if _, err := l.Join(ctx, node); err != nil {
			t.Fatal(err)
		}
	}
	endLease(t, other, "back")
	if err := other.maintenance.pulse.beat(ctx); err != nil {
		t.Fatal(err)
	}
	if found := other.maintenance.lapsed; len(found) != 1 || found[0] != "back" {
		t.Fatalf("the leases of %v are found to have ended", found)
	}
	if _, err := back.Join(ctx, "back"); err != nil {
		t.Fatal(err)
	}
	if _, err := back.Create(ctx, job.Record{ID: "job", Model: red}); err != nil {
		t.Fatal(err)
	}
	claim, err := back.Claim(ctx, ledger.Slot{Node: "back", Sheep: "a"})
	if err != nil || claim == nil {
		t.Fatalf("Claim = %v, %v", claim, err)
	}
	if err := other.maintenance.work(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := back.Finish(ctx, "job", claim.Token, done); err != nil {
		t.Errorf("the claim of a node that is there: %v", err)
	}
}

// TestPulseBesideWork has maintenance take long: leases are renewed, and the database is
// polled for changes, all the same.
func TestPulseBesideWork(t *testing.T) {
	url := newDatabase(t)
	working, resume := make(chan struct{}), make(chan struct{})
	cfg := quiet(url, url)
	cfg.Poll = 10 * time.Millisecond
	begun := sync.OnceFunc(func() { close(working) })
	cfg.Retention = func(job.Record) time.Duration { // called when maintenance fails the job
		begun()
		<-resume
		return 0
	}
	l := mustOpen(t, cfg)
	defer close(resume)
	ctx := t.Context()
	lease, err := l.Join(ctx, "node")
	if err != nil {
		t.Fatal(err)
	}
	other := openQuiet(t, quiet(url, url))
	other.bell.notify = func(context.Context) error { return nil } // l learns of its changes by polling
	if _, err := l.Create(ctx, job.Record{ID: "late", Model: red, WaitUntil: time.Now()}); err != nil {
		t.Fatal(err)
	}
	await(t, working, "maintenance does not fail the job")
	changed := l.Changed()
	if _, err := other.Create(ctx, job.Record{ID: "new", Model: red}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-lease.Lost():
		t.Fatal("the lease is lost")
	case <-time.After(hang):
		t.Fatal("the database is not polled while maintenance is busy")
	}
}

// TestDeadConnections has the network lose all connections without a word: the first pulse
// that gets no answer has them closed, so that the next one need not wait for each.
func TestDeadConnections(t *testing.T) {
	url := newDatabase(t)
	p := newProxy(t, url)
	l := openQuiet(t, quiet(p.url, url))
	var idle []*pgxpool.Conn
	for range 3 {
		conn, err := l.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	for _, conn := range idle {
		conn.Release()
	}
	if err := l.maintenance.pulse.beat(t.Context()); err != nil { // its connection, too, is one of those
		t.Fatal(err)
	}
	p.muteAll()
	defer p.cutAll()                     // closing them politely takes long
	l.cfg.Lease = 300 * time.Millisecond // so that a pulse does not wait for long
	if err := l.maintenance.pulse.beat(t.Context()); !errdefs.IsUnavailable(err) {
		t.Fatalf("a pulse without an answer: %v", err)
	}
	l.cfg.Lease = longLease
	if err := l.maintenance.pulse.beat(t.Context()); err != nil {
		t.Errorf("the next pulse: %v", err)
	}
}

// TestPulseBesideCalls has calls that take long use all connections: the lease is renewed.
func TestPulseBesideCalls(t *testing.T) {
	url := newDatabase(t)
	l := openQuiet(t, quiet(url, url))
	if _, err := l.Join(t.Context(), "node"); err != nil {
		t.Fatal(err)
	}
	for range l.pool.Config().MaxConns {
		conn, err := l.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
	l.maintenance.pulse.renewed = time.Time{}
	if err := l.maintenance.pulse.beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.maintenance.pulse.renewed.IsZero() {
		t.Error("the lease was not renewed")
	}
}

// TestRenewedAtTheEnd has a lease be renewed at the moment its time is over.
func TestRenewedAtTheEnd(t *testing.T) {
	url := newDatabase(t)
	l := openQuiet(t, quiet(url, url))
	joined, err := l.Join(t.Context(), "node")
	if err != nil {
		t.Fatal(err)
	}
	joined.(*lease).expire() // the timer's call, which waited for the renewal
	select {
	case <-joined.Lost():
		t.Error("the lease is lost although it was just renewed")
	default:
	}
}

// TestPowerLostInATransaction has a node lose its power while it makes a claim under a limit,
// and so has the lock of such claims: other nodes get it.
func TestPowerLostInATransaction(t *testing.T) {
	url := newDatabase(t)
	p := newProxy(t, url)
	limited := func(url string) Config {
		rule, err := job.ParseRule("red")
		if err != nil {
			t.Fatal(err)
		}
		cfg := quiet(url, url)
		cfg.Policy = ledger.Policy{Models: []ledger.ModelLimit{{Models: rule, MaxRunning: 1}}}
		return cfg
	}
	cfg := limited(p.url)
	cfg.DirectURL = url
	dead, alive := openQuiet(t, cfg), openQuiet(t, limited(url))
	dead.idle = 100 * time.Millisecond
	dead.bell.notify = func(context.Context) error { return nil }
	if _, err := alive.Create(t.Context(), job.Record{ID: "job", Model: red}); err != nil {
		t.Fatal(err)
	}
	p.arm(4, powerLost) // bounds, begin, lock, bounds
	claiming := make(chan struct{})
	go func() {
		defer close(claiming)
		_, _ = dead.Claim(t.Context(), ledger.Slot{Node: "dead", Sheep: "a"}) // the power is back when it ends
	}()
	await(t, p.gone, "the claim does not come to the statement with the fault")
	claim, err := alive.Claim(t.Context(), ledger.Slot{Node: "alive", Sheep: "a"})
	if err != nil || claim == nil {
		t.Errorf("Claim = %v, %v", claim, err)
	}
	p.cutAll()
	await(t, claiming, "the claim does not end")
}
