package postgres

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// jobsEnv is how many jobs TestPlans fills a ledger with.
const jobsEnv = "SHEPHERD_TEST_LEDGER_JOBS"

// fillLedger has n jobs of 20 models: half of them claimable, of which half are of one
// model, the others ended, with an attempt and two events each. Those that are queued do not
// wait for more than a day, and some of them are not due before.
func fillLedger(t testing.TB, conn *pgx.Conn, n int) {
	t.Helper()
	_, err := conn.Exec(t.Context(), fmt.Sprintf(`
		SET session_replication_role = replica;
		INSERT INTO shepherd.jobs (created_by, changed_by, id, model_name, model_version, sheep, priority, tenant, trace_parent, trace_state, limits, labels, idempotency,
				state, run, attempt, enqueued_at, changed_at, finished_at, ended_age, remove_age, failure_traceback, wait_until, delayed, not_before)
			SELECT gen_random_uuid(), gen_random_uuid(), 'job' || i, CASE WHEN i %% 4 = 0 THEN 'most' ELSE 'model' || i %% 20 END, '', CASE WHEN i %% 100 = 0 THEN 'sheep' ELSE '' END,
				i %% 3, 'tenant' || i %% 50, '', '', '', CASE WHEN i %% 2 = 0 THEN '{"half": "yes", "rare": "' || i || '"}' ELSE '' END, '', CASE WHEN i %% 2 = 0 THEN 'queued' WHEN i %% 5 = 0 THEN 'failed' ELSE 'done' END, 1, i %% 2,
				now(), now(), CASE WHEN i %% 2 = 1 THEN now() END, CASE WHEN i %% 2 = 1 THEN i ELSE 0 END, CASE WHEN i %% 10 = 1 THEN i ELSE 0 END, repeat('t', i %% 5 * 100),
				CASE WHEN i %% 2 = 0 THEN now() + interval '1 day' END, i %% 40 = 22, CASE WHEN i %% 40 = 22 THEN now() + interval '1 day' END
			FROM generate_series(1, %[1]d) i;
		INSERT INTO shepherd.labels SELECT key, value, seq FROM shepherd.jobs, json_each_text(labels::json) WHERE labels > '';
		INSERT INTO shepherd.attempts SELECT id, 1, 1, 'node', 'sheep', now(), now(), now(), 'done', '', true, 0, 0, 0, 0, 0, 0, '' FROM shepherd.jobs WHERE state <> 'queued';
		INSERT INTO shepherd.events (at, age, kind, job, run, model_name, model_version, sheep, tenant, attempt, holder, node, state, cause, reason, delayed,
				failure_type, failure_message, failure_traceback)
			SELECT now(), seq, kind, id, 1, model_name, model_version, sheep, tenant, 0, '', '', state, '', '', false, '', '', '' FROM shepherd.jobs, (VALUES ('queued'), ('ended')) k(kind) ORDER BY seq;
		INSERT INTO shepherd.deliveries (id, receiver, job, run, tenant, kind, state, created_at, began_at, due_at, settled_age, payload)
			SELECT id, 'r' || seq %% 7, id, 1, tenant, 'ended', CASE WHEN seq %% 10 = 0 THEN 'waiting' ELSE 'delivered' END, now(), now(),
				CASE WHEN seq %% 10 = 0 THEN now() + interval '1 hour' END, CASE WHEN seq %% 10 = 0 THEN 0 ELSE seq END, '{}' FROM shepherd.jobs;
		INSERT INTO shepherd.tally SELECT state, claimable, remove_age > 0, CASE WHEN claimable THEN model_name ELSE '' END, '', CASE WHEN claimable THEN sheep ELSE '' END, count(*)
			FROM shepherd.jobs GROUP BY 1, 2, 3, 4, 5, 6;
		INSERT INTO shepherd.needs SELECT 'job' || i - 1, i, i <= 20 FROM generate_series(4, %[1]d, 10) i; -- of jobs whose files are kept
		SET session_replication_role = origin`, n), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
}

// TestPlans runs each statement on a ledger with many jobs, in a transaction that is
// rolled back. None reads all jobs, attempts or events, and the pages that it touches are
// those of what it returns and changes, however many jobs there are; nor do those that are
// prepared, when the plan was made before there were any jobs.
func TestPlans(t *testing.T) {
	jobs := 50_000
	if text := os.Getenv(jobsEnv); text != "" {
		var err error
		if jobs, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", jobsEnv, err)
		}
	}
	name, err := server.Create(t.Context(), template) // not to be emptied row by row
	if err != nil {
		t.Fatal(err)
	}
	defer server.Drop(t.Context(), name)
	conn, err := pgx.Connect(t.Context(), server.URL(name))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	prepared, err := pgx.Connect(t.Context(), server.URL(name))
	if err != nil {
		t.Fatal(err)
	}
	defer prepared.Close(t.Context())
	if _, err := prepared.Exec(t.Context(), querySettings+`; SET plan_cache_mode = force_generic_plan`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}

	r := &row{}
	r.ID, r.Seq, r.version, r.State = "job2", 2, 1, job.Queued
	r.EnqueuedAt, r.ChangedAt = job.Now(), job.Now()
	every := pgx.NamedArgs{
		"key": newKey(), "id": "job2", "ids": []string{"job2", "job3", "none"}, "webhook": "{}", "node": "node", "old": 0, "version": 1, "keep_runs": 10, "most": 10, "limit": 10, "consumer": "c", "cursor": "1",
		"after": 100, "from": "x", "seen": 0, "alone": true, "lease": 1, "generation": 0, "about": "", "remover": "", "grace": 1, "draining": true, "names": []string{"node"}, "nodes": []string{"node"}, "generations": []int64{1},
	}
	if err := insertArgs(&r.Row, every); err != nil {
		t.Fatal(err)
	}
	every["seq"] = r.Seq
	attemptArgs(r.ID, job.Attempt{Run: 1, Number: 7, Ended: job.Now()}, every)
	eventArgs(&job.Event{Kind: job.EventEnded}, 1, "", every)
	fresh := clone(every)
	fresh["id"] = "fresh"
	sweep := clone(every)
	add(sweep, pgx.NamedArgs{"settled": 1 << 40, "keep": 1 << 62, "keep_jobs": jobs, "keep_events": 2*jobs - 10, "event_keep": 1 << 62, "limit": 100})

	bounds := pgx.NamedArgs{"addresses": []string{"", "sheep"}, "half_life": 1e9}
	every["used"], every["tenant"] = 1, "tenant4"

	type query struct {
		text string
		args pgx.NamedArgs
	}
	queries := map[string]query{
		"get": {queryGet, every}, "load": {queryLoad, every}, "before": {queryBefore, every}, "load many": {queryLoadMany, every}, "moment": {queryMoment, every}, "held": {queryHeld, every}, "held lapsed": {queryHeldLapsed, every},
		"attempts": {queryAttempts, every}, "last attempts": {queryLastAttempts, every}, "count": {queryCount, every}, "waiting": {queryWaiting, every}, "due": {queryDue, every}, "checkpoint": {queryCheckpoint, every},
		"save": {querySave, every}, "save event": {querySaveEvent, every}, "save attempt": {querySaveAttempt, every}, "save used": {querySaveUsed, every},
		"bounds": {queryBounds, bounds}, "queued": {queryQueued, every}, "fold used": {queryFoldUsed, bounds}, "create": {queryCreate, fresh}, "create first": {queryCreateFirst, fresh}, "replace": {queryReplace, fresh}, "save and trim": {querySaveAndTrim, every}, "remove": {queryRemove, every},
		"restore": {queryRestore, fresh}, "restore attempt": {queryRestoreAttempt, every}, "restore event": {queryRestoreEvent, every},
		"call off": {queryCallOff, every}, "claimed": {queryClaimed, every}, "last event": {queryLastEvent, every}, "event ids": {queryEventIDs, every},
		"set checkpoint": {querySetCheckpoint, every}, "generation": {queryGeneration, every}, "join": {queryJoin, every}, "leave": {queryLeave, every}, "pulse": {queryPulse, every},
		"lapse": {queryLapse, every}, "others": {queryOthers, every}, "peers": {queryPeers, every}, "alive": {queryAlive, every}, "nodes": {queryNodes, every}, "announce": {queryAnnounce, every},
		"set draining": {querySetDraining, every}, "abandon": {queryAbandon, every}, "forget": {queryForget, every}, "run due": {queryRunDue, every}, "overdue": {queryOverdue, every}, "next timer": {queryNextTimer, every}, "ping": {queryPing, every},
		"keep age": {queryKeepAge, every}, "expire": {queryExpire, sweep}, "prune": {queryPrune, sweep}, "fold": {queryFold, every}, "drop keys": {queryDropKeys, every},
	}
	after := clone(every)
	add(after, pgx.NamedArgs{"besides": []string{"job3"}, "ended": []string{"job1"}})
	for name, text := range map[string]string{
		"lock many": queryLockMany, "bump": queryBump, "needed": queryNeeded, "states": queryStates, "unsettled": queryUnsettled, "settled": querySettled,
	} {
		queries[name] = query{text, after}
	}
	hooks := clone(every)
	add(hooks, pgx.NamedArgs{
		"jobs": []string{"job2", "none"}, "runs": []int64{1, 1}, "job": "job2", "run": 1, "webhook": "{}", "receiver": "r", "kind": "ended", "payload": "{}", "from": "1", "to": "2",
		"except": []string{"other"}, "hold": 1, "pause": 1, "try": 1, "state": "delivered", "status": 200, "problem": "", "age": 1 << 40, "keep": 1 << 40,
	})
	for name, text := range map[string]string{
		"webhooks": queryJobWebhooks, "add webhook": queryAddWebhook, "move checkpoint": queryMoveCheckpoint, "queue message": queryQueueDelivery,
		"complete webhook": queryCompleteWebhook, "drop webhook": queryDropWebhook, "claim messages": queryClaimDeliveries, "next message": queryNextDelivery,
		"postpone message": queryPostponeDelivery, "settle message": querySettleDelivery, "advance messages": queryAdvance, "redeliver": queryRedeliver,
		"expire messages": queryExpireDeliveries,
	} {
		queries[name] = query{text, hooks}
	}
	places := clone(every)
	add(places, pgx.NamedArgs{"keep": 1, "files": "[]", "due": true, "created": time.Now()})
	for name, text := range map[string]string{
		"upload": queryUpload, "reserve upload": queryReserveUpload, "upload reserved": queryUploadReserved, "keep upload": queryKeepUpload,
		"due uploads": queryDueUploads, "remove upload": queryRemoveUpload, "drop upload": queryDropUpload, "drop stray upload": queryDropStrayUpload,
	} {
		queries[name] = query{text, places}
	}
	for name, filter := range map[string]job.DeliveryFilter{"messages": {}, "messages of a job": {Job: "job2"}, "messages of a tenant": {Tenant: "none"}} {
		text, args := deliveriesQuery(filter, 1<<40, 10)
		queries[name] = query{text, args}
	}
	for name, s := range map[string]ledger.Slot{
		"claim": {}, "claim preferring": {Prefer: job.Model{Name: "model1"}}, "claim ahead": {Ahead: true}, "claim addressed": {Addressed: true}, "claim open": {Own: []string{"node/sheep"}, Open: []string{"@gpu=a100"}, Prefer: job.Model{Name: "model1"}},
		"claim only": {Only: "job2"}, "claim except": {Except: []job.Model{{Name: "most"}}, Prefer: job.Model{Name: "model1"}},
	} {
		s.Node, s.Sheep = "node", "sheep"
		args := claimArgs(s)
		args["key"], args["generation"] = newKey(), 0
		queries[name] = query{claimQuery(s), args}
		if !s.Addressed && len(s.Except) == 0 {
			args = clone(args)
			add(args, groupArgs([]group{{"", "tenant4", job.Model{Name: "most"}, 1}, {"sheep", "tenant2", job.Model{Name: "model2"}, 0}}))
			queries["bounded "+name] = query{boundedClaimQuery(s), args}
		}
	}
	for name, filter := range map[string]ledger.Filter{
		"list": {}, "list a state": {States: []job.State{job.Failed}}, "list states": {States: []job.State{job.Failed, job.Cancelled, job.Queued}},
		"list a sheep": {Sheep: "sheep"}, "list a model": {Model: job.Model{Name: "model3"}}, "list a tenant": {Tenant: "tenant7"}, "list no tenant": {Tenant: "none"},
		"list a label": {Labels: job.Labels{"half": "yes"}}, "list no label": {Labels: job.Labels{"half": "no"}}, "list a rare label": {Labels: job.Labels{"rare": "8"}},
		"list a label and states": {Labels: job.Labels{"half": "yes"}, States: []job.State{job.Queued, job.Done}},
	} {
		for _, newest := range []bool{false, true} {
			filter.Newest = newest
			text, args := listQuery(filter, 0, 10)
			queries[fmt.Sprint(name, ", newest first ", newest)] = query{text, args}
		}
	}
	for name, filter := range map[string]ledger.EventFilter{"events": {}, "events of a job": {Job: "job2"}, "events of a tenant": {Tenant: "none"}, "events of a tenant's job": {Job: "job2", Tenant: "tenant2"}} {
		queries[name] = query{eventsQuery(filter), pgx.NamedArgs{"after": 0, "last": 1 << 40, "limit": 10, "job": string(filter.Job), "tenant": filter.Tenant}}
		queries["newest "+name] = query{newestEventsQuery(filter), pgx.NamedArgs{"last": 1 << 40, "limit": 10, "job": string(filter.Job), "tenant": filter.Tenant}}
	}

	often := []string{"load", "get", "create first", "create", "save event", "save attempt", "save used", "bounds", "waiting", "last event", "event ids", "events",
		"claim", "claim preferring", "claim ahead", "claim addressed", "claim open", "claim except", "bounded claim", "bounded claim preferring", "bounded claim ahead", "bounded claim open"}
	for _, name := range often {
		prepareQuery(t, prepared, name, queries[name].text, queries[name].args)
	}
	fillLedger(t, conn, jobs)
	check := func(name string, plan node) {
		most := 300.0
		switch {
		case strings.HasPrefix(name, "claim"): // the candidates of each of 20 models
			most = 2000
		case strings.HasPrefix(name, "bounds"): // 250 groups of tenant, model and address, and each of them a search
			most = 4000
		case strings.HasPrefix(name, "expire"), strings.HasPrefix(name, "prune"): // up to 100 rows in all indexes
			most = 6000
		}
		if pages := plan.pages(); pages > most {
			t.Errorf("%s touches %v pages, at most %v are expected", name, pages, most)
		}
		if table := plan.scanned(); table != "" {
			t.Errorf("%s reads all %s", name, table)
		}
	}
	for _, name := range often {
		check(name+", prepared for no rows", explainPrepared(t, prepared, name, queries[name].text, queries[name].args))
	}
	_, err = conn.Exec(t.Context(), `ANALYZE shepherd.jobs, shepherd.labels, shepherd.attempts, shepherd.events, shepherd.deliveries, shepherd.tally, shepherd.needs`)
	if err != nil {
		t.Fatal(err)
	}
	for name, q := range queries {
		check(name, explainQuery(t, conn, q.text, q.args))
		check(name+", beside prepared ones", explainQuery(t, prepared, q.text, q.args))
	}
	for _, name := range often {
		check(name+", prepared", explainPrepared(t, prepared, name, queries[name].text, queries[name].args))
	}
	plan := explainQuery(t, conn, `SELECT * FROM shepherd.jobs WHERE attempt = 7`, nil)
	if plan.scanned() != "jobs" || plan.pages() < 1000 {
		t.Errorf("this test cannot tell: %v pages, %q", plan.pages(), plan.scanned())
	}
}

func clone(args pgx.NamedArgs) pgx.NamedArgs {
	c := pgx.NamedArgs{}
	add(c, args)
	return c
}

// node is one of a plan.
type node struct {
	Type    string  `json:"Node Type"`
	Table   string  `json:"Relation Name"`
	Hit     float64 `json:"Shared Hit Blocks"`
	Read    float64 `json:"Shared Read Blocks"`
	Subplan []node  `json:"Plans"`
}

// pages is how many pages the plan touched.
func (n node) pages() float64 { return n.Hit + n.Read }

// scanned is a table that the plan reads whole; empty for none of those that grow.
func (n node) scanned() string {
	if n.Type == "Seq Scan" && slices.Contains([]string{"jobs", "labels", "attempts", "events", "deliveries"}, n.Table) {
		return n.Table
	}
	for _, below := range n.Subplan {
		if table := below.scanned(); table != "" {
			return table
		}
	}
	return ""
}

// prepareQuery prepares a query and makes its plan.
func prepareQuery(t *testing.T, conn *pgx.Conn, name, query string, args pgx.NamedArgs) {
	t.Helper()
	text, _, err := args.RewriteQuery(t.Context(), conn, query, nil)
	if err == nil {
		_, err = conn.Exec(t.Context(), `PREPARE "`+name+`" AS `+text, pgx.QueryExecModeSimpleProtocol)
	}
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	explainPrepared(t, conn, name, query, args)
}

// explainPrepared is explainQuery for a query that was prepared.
func explainPrepared(t *testing.T, conn *pgx.Conn, name, query string, args pgx.NamedArgs) node {
	t.Helper()
	_, inOrder, err := args.RewriteQuery(t.Context(), conn, query, nil)
	if err != nil {
		t.Fatal(err)
	}
	execute := `EXECUTE "` + name + `"`
	for i := range inOrder {
		execute += fmt.Sprintf("%c$%d", "(,"[min(i, 1)], i+1)
	}
	if len(inOrder) > 0 {
		execute += `)`
	}
	return explainBy(t, conn, execute, append([]any{pgx.QueryExecModeSimpleProtocol}, inOrder...))
}

// explainQuery runs a query, takes back what it did, and returns its plan.
func explainQuery(t *testing.T, conn *pgx.Conn, query string, args pgx.NamedArgs) node {
	t.Helper()
	return explainBy(t, conn, query, []any{pgx.QueryExecModeExec, args})
}

func explainBy(t *testing.T, conn *pgx.Conn, query string, args []any) node {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	var text string
	if err := tx.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+query, args...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	var explained []struct{ Plan node }
	if err := json.Unmarshal([]byte(text), &explained); err != nil {
		t.Fatal(err)
	}
	return explained[0].Plan
}
