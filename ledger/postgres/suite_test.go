package postgres

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/ledgertest"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

// server is the one that all tests use, template a database with the tables.
var (
	server   *postgrestest.Server
	template string
)

func TestMain(m *testing.M) {
	// Unless the command line says otherwise: each step is some twenty round trips.
	if err := flag.Set("rapid.checks", "6"); err != nil {
		panic(err)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) (code int) {
	var err error
	if server, err = postgrestest.Start(); errors.Is(err, postgrestest.ErrNotInstalled) && os.Getenv("CI") == "" {
		fmt.Fprintln(os.Stderr, "all tests are skipped:", err)
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		for _, conn := range databases.emptying {
			conn.Close(context.Background())
		}
		err := server.Close()
		if code == 0 && err == nil {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	ctx := context.Background()
	if template, err = server.Create(ctx, ""); err == nil {
		var l *Ledger
		if l, err = Open(ctx, Config{URL: server.URL(template), RetryFor: time.Minute}); err == nil {
			err = l.Close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// longLease keeps tests on a slow machine from losing leases.
const longLease = time.Hour

// hang is the time limit of what takes far less.
const hang = 2 * time.Minute

// await waits for a channel. fails says what has not happened where it waits for too long.
func await[T any](t testing.TB, c <-chan T, fails string) T {
	t.Helper()
	select {
	case got := <-c:
		return got
	case <-time.After(hang):
		t.Fatal(fails)
		panic("unreachable")
	}
}

func TestLedger(t *testing.T) {
	var mu sync.Mutex
	harnesses := map[*testing.T][]*harness{}
	ledgertest.Run(t, func(t *testing.T, options ledgertest.Options) ledgertest.Harness {
		mu.Lock()
		defer mu.Unlock()
		for _, done := range harnesses[t] { // the suite's property test makes one after the other
			if done.closed() {
				empty(t, done.cfg.URL)
				done.cfg.Policy = options.Policy
				return done
			}
		}
		h := &harness{cfg: Config{
			URL: newDatabase(t), Lease: longLease, KeepJobs: options.KeepJobs, EventNumber: options.EventNumber, Retention: options.Retention, Policy: options.Policy,
		}}
		harnesses[t] = append(harnesses[t], h)
		return h
	})
}

type harness struct {
	cfg    Config
	opened []*Ledger
}

func (h *harness) Open(t testing.TB) ledger.Ledger {
	t.Helper()
	l := mustOpen(t, h.cfg)
	h.opened = append(h.opened, l)
	return l
}

func (h *harness) Another(t testing.TB, _ ledger.Ledger) ledger.Ledger { return h.Open(t) }

// Crash leaves the ledger's connections and its lease behind.
func (h *harness) Crash(t testing.TB, open ledger.Ledger) ledger.Ledger {
	t.Helper()
	open.(*Ledger).maintenance.stop()
	return h.Open(t)
}

// closed reports whether all ledgers are that were opened.
func (h *harness) closed() bool {
	return !slices.ContainsFunc(h.opened, func(l *Ledger) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !l.closed
	})
}

func mustOpen(t testing.TB, cfg Config) *Ledger {
	t.Helper()
	cfg.RetryFor = cmp.Or(cfg.RetryFor, time.Minute) // on a slow machine
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// databases are those that are not in use, and a connection to each to empty it with:
// making a database, or connecting to one, takes far longer than emptying it.
var databases = struct {
	sync.Mutex
	free     []string
	emptying map[string]*pgx.Conn
}{emptying: map[string]*pgx.Conn{}}

// newDatabase is the URL of an empty ledger's database.
func newDatabase(t testing.TB) string {
	t.Helper()
	databases.Lock()
	defer databases.Unlock()
	var url string
	if n := len(databases.free); n > 0 {
		url, databases.free = databases.free[n-1], databases.free[:n-1]
	} else {
		name, err := server.Create(t.Context(), template)
		if err != nil {
			t.Fatal(err)
		}
		url = server.URL(name)
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), `SET session_replication_role = replica`); err != nil { // no triggers
			t.Fatal(err)
		}
		databases.emptying[url] = conn
	}
	t.Cleanup(func() {
		empty(t, url)
		databases.Lock()
		defer databases.Unlock()
		databases.free = append(databases.free, url)
	})
	return url
}

// empty removes all that is in a ledger that nobody has open.
func empty(t testing.TB, url string) {
	t.Helper()
	databases.Lock()
	conn := databases.emptying[url]
	databases.Unlock()
	_, err := conn.Exec(context.Background(), `
		DELETE FROM shepherd.jobs; DELETE FROM shepherd.attempts; DELETE FROM shepherd.events; DELETE FROM shepherd.checkpoints;
		DELETE FROM shepherd.claim_keys; DELETE FROM shepherd.nodes; DELETE FROM shepherd.tally; DELETE FROM shepherd.used;
		DELETE FROM shepherd.deliveries; DELETE FROM shepherd.job_webhooks; DELETE FROM shepherd.needs; DELETE FROM shepherd.uploads;
		UPDATE shepherd.ledger SET age = (extract(epoch FROM now()) * 1000000)::bigint, wall = now(), pruned = 0`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
}
