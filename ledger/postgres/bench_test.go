package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// The fleet of BenchmarkFleet, and what it may cost.
const (
	benchNodes, benchSheep = 20, 4 // sheep per node
	mostStatements         = 8     // per job
	mostIdle               = 1.0   // statements per node and second
	leastOfBare            = 0.25  // of the rate of the same statements sent by themselves
	idleTime               = 10 * time.Second
)

// BenchmarkFleet has 20 nodes with 4 sheep each take jobs through one database: each is
// submitted, claimed and finished. In the same run as many workers send the same statements
// by themselves, as transactions without a ledger: of-bare is the ledger's jobs per second as
// a part of theirs. Of-plain is that of workers who make the three changes of a job as plain
// transactions on a small table of their own, of-plain-with-reads where each of them reads
// the row before it changes it, and of-plain-by-CPU that by the CPU time of a job, which
// other work on the machine changes less. Then the nodes are idle for a while.
func BenchmarkFleet(b *testing.B) {
	url := newDatabase(b)
	var ledgers []*Ledger
	for i := range benchNodes {
		l := mustOpen(b, Config{URL: url + "&pool_max_conns=4", Lease: longLease})
		if _, err := l.Join(b.Context(), fmt.Sprint("node", i)); err != nil {
			b.Fatal(err)
		}
		ledgers = append(ledgers, l)
	}
	before, nodesCPU, serverCPU := statementsOf(ledgers), ownCPU(b), cpuOfServer(b)
	var mu sync.Mutex
	var claims []time.Duration
	b.ResetTimer()
	work(b, func(worker, n int) error {
		l, slot := ledgers[worker%benchNodes], ledger.Slot{Node: fmt.Sprint("node", worker%benchNodes), Sheep: fmt.Sprint("sheep", worker/benchNodes)}
		if _, err := l.Create(b.Context(), job.Record{ID: job.ID(fmt.Sprint("job", n)), Model: red}); err != nil {
			return err
		}
		began := time.Now()
		c, err := l.Claim(b.Context(), slot)
		took := time.Since(began)
		if err != nil || c == nil {
			return fmt.Errorf("Claim = %v, %v", c, err)
		}
		mu.Lock()
		claims = append(claims, took)
		mu.Unlock()
		_, err = l.Finish(b.Context(), c.ID, c.Token, done)
		return err
	})
	b.StopTimer()
	jobs := float64(b.N) / b.Elapsed().Seconds()
	perJob := float64(statementsOf(ledgers)-before) / float64(b.N)
	nodesCPU, serverCPU = ownCPU(b)-nodesCPU, cpuOfServer(b)-serverCPU
	bare := bareJobs(b, url, ledgers)
	plainNodesCPU, plainServerCPU := ownCPU(b), cpuOfServer(b)
	reading := plainJobs(b, url, true)
	plainCPU := ownCPU(b) - plainNodesCPU + cpuOfServer(b) - plainServerCPU
	changes := plainJobs(b, url, false)
	slices.Sort(claims)
	if len(claims) > 0 {
		p50, p99 := claims[len(claims)/2], claims[len(claims)*99/100]
		b.ReportMetric(float64(p50.Microseconds())/1000, "ms-claim-p50")
		b.ReportMetric(float64(p99)/float64(p50), "claim-p99/p50")
	}
	b.ReportMetric(jobs, "jobs/s")
	b.ReportMetric(jobs/bare, "of-bare")
	b.ReportMetric(jobs/changes, "of-plain")
	b.ReportMetric(jobs/reading, "of-plain-with-reads")
	b.ReportMetric(float64(plainCPU)/float64(nodesCPU+serverCPU), "of-plain-by-CPU")
	b.ReportMetric(perJob, "statements/job")
	b.ReportMetric(float64(nodesCPU.Microseconds())/1000/float64(b.N), "ms-nodes-CPU/job")
	b.ReportMetric(float64(serverCPU.Microseconds())/1000/float64(b.N), "ms-server-CPU/job")
	if b.N < 100 { // the first run of a benchmark, with what is done once
		return
	}
	if perJob > mostStatements {
		b.Errorf("a job takes %.1f statements, at most %d are allowed", perJob, mostStatements)
	}
	if jobs < leastOfBare*bare {
		b.Errorf("%.0f jobs a second of the %.0f that the same statements reach by themselves; at least %.2f of them are promised", jobs, bare, leastOfBare)
	}
	before = statementsOf(ledgers)
	began := time.Now()
	time.Sleep(idleTime)
	idle := float64(statementsOf(ledgers)-before) / time.Since(began).Seconds() / benchNodes
	b.ReportMetric(idle, "idle-statements/node/s")
	if idle > mostIdle {
		b.Errorf("an idle node makes %.2f statements a second, at most %.0f is allowed", idle, mostIdle)
	}
}

func statementsOf(ledgers []*Ledger) (n int64) {
	for _, l := range ledgers {
		n += l.statements.Load()
	}
	return n
}

// ownCPU is what this process has had of CPUs.
func ownCPU(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func cpuOfServer(b *testing.B) time.Duration {
	used, err := server.CPUTime()
	if err != nil {
		b.Fatal(err)
	}
	return used
}

// work has all sheep do b.N jobs together.
func work(b *testing.B, do func(worker, n int) error) {
	var next atomic.Int64
	var working sync.WaitGroup
	for worker := range benchNodes * benchSheep {
		working.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if err := do(worker, int(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	working.Wait()
}

// barePool has a connection for each worker, with the given settings.
func barePool(b *testing.B, url, settings string) *pgxpool.Pool {
	b.Helper()
	cfg, err := parse(fmt.Sprint(url, "&pool_max_conns=", benchNodes*benchSheep))
	if err != nil {
		b.Fatal(err)
	}
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, settings, pgx.QueryExecModeSimpleProtocol)
		return err
	}
	pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	return pool
}

// bareJobs is how many jobs a second come to their end by the statements that the ledgers
// send for each, sent here without what a ledger does besides: retries, leases, caches, and
// waking the nodes.
func bareJobs(b *testing.B, url string, ledgers []*Ledger) float64 {
	b.Helper()
	pool := barePool(b, url, querySettings)
	defer pool.Close()
	began := time.Now()
	work(b, func(worker, n int) error {
		l, slot := ledgers[worker%benchNodes], ledger.Slot{Node: fmt.Sprint("node", worker%benchNodes), Sheep: fmt.Sprint("sheep", worker/benchNodes)}
		m, _ := l.clock.moment()
		created, change, err := lifecycle.Create(nil, false, job.Record{ID: job.ID(fmt.Sprint("bare", n)), Model: red}, m)
		if err != nil {
			return err
		}
		args := pgx.NamedArgs{"key": newKey()}
		if err := l.createArgs(created, change, job.Webhook{}, m, args); err != nil {
			return err
		}
		if err := pool.QueryRow(b.Context(), queryCreateFirst, l.named.bind(args)).Scan(&created.Seq); err != nil {
			return err
		}
		claimed, err := bareClaim(b, pool, l, slot)
		if err != nil {
			return err
		}
		if change, err = claimed.Finish(claimed.Token, done, l.retention, m); err != nil {
			return err
		}
		query, args, err := l.saveArgs(claimed, change, newKey(), m)
		if err != nil {
			return err
		}
		var saved int
		if err := pool.QueryRow(b.Context(), query, l.named.bind(args)).Scan(&saved); err != nil || saved != 1 {
			return fmt.Errorf("saved %d, %w", saved, err)
		}
		return nil
	})
	return float64(b.N) / time.Since(began).Seconds()
}

// bareClaim makes a claim, again while others are about to take all jobs that it looks at.
func bareClaim(b *testing.B, pool *pgxpool.Pool, l *Ledger, slot ledger.Slot) (claimed *row, err error) {
	for claimed == nil && err == nil {
		args := claimArgs(slot)
		args["key"], args["generation"] = newKey(), l.leases.generation(slot.Node)
		rows, err := pool.Query(b.Context(), claimQuery(slot), l.named.bind(args))
		if err != nil {
			return nil, err
		}
		var leased bool
		var candidates int
		if rows.Next() {
			claimed, err = scanRow(rows, true, &leased, &candidates)
		}
		rows.Close()
		if err = errors.Join(err, rows.Err()); err != nil {
			return nil, err
		}
		if claimed == nil && candidates == 0 {
			return nil, fmt.Errorf("there is no job to claim; the node has a lease: %t", leased)
		}
	}
	return claimed, err
}

// plainJobs is how many jobs a second come to their end as plain transactions: each is
// inserted, updated and updated again, with a row of another table for each change, and, where
// reads says so, read before each.
func plainJobs(b *testing.B, url string, reads bool) float64 {
	b.Helper()
	pool := barePool(b, url, "")
	defer pool.Close()
	const tables = `DROP TABLE IF EXISTS plain, plain_events;
		CREATE TABLE plain (id text PRIMARY KEY, state text NOT NULL, changed_at timestamptz NOT NULL); CREATE INDEX ON plain (state);
		CREATE TABLE plain_events (id bigserial PRIMARY KEY, job text NOT NULL, at timestamptz NOT NULL)`
	if _, err := pool.Exec(b.Context(), tables, pgx.QueryExecModeSimpleProtocol); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if _, err := pool.Exec(context.Background(), `DROP TABLE plain, plain_events`); err != nil {
			b.Error(err)
		}
	}()
	const told = ` INSERT INTO plain_events (job, at) SELECT id, now() FROM changed`
	began := time.Now()
	work(b, func(_, n int) error {
		id := fmt.Sprint("job", n)
		for _, change := range []string{
			`WITH changed AS (INSERT INTO plain VALUES (@id, 'queued', now()) RETURNING id)` + told,
			`WITH changed AS (UPDATE plain SET state = 'processing', changed_at = now() WHERE id = @id RETURNING id)` + told,
			`WITH changed AS (UPDATE plain SET state = 'done', changed_at = now() WHERE id = @id RETURNING id)` + told,
		} {
			statements := []string{change}
			if reads {
				statements = []string{`SELECT count(*) FROM plain WHERE id = @id`, change}
			}
			for _, statement := range statements {
				if _, err := pool.Exec(b.Context(), statement, pgx.NamedArgs{"id": id}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return float64(b.N) / time.Since(began).Seconds()
}
