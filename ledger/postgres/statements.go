package postgres

import (
	"fmt"
	"strings"

	"github.com/iterait/shepherd/ledger"
)

// All statements are here, with arguments by name. Each is one transaction by
// itself, but for those that queryRestore and querySweep are sent with.

// querySettings are those of a connection that prepares statements. A plan is kept while the
// tables grow: one that was made for a few rows would read all of many. There are indexes
// for all that is looked for, in the order in which it is wanted.
const querySettings = `SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off`

const queryProcess = `SELECT pg_backend_pid()`

// columns are those of a row j, in the order that (*row).scan reads them. A list of
// records leaves the traceback out.
const (
	listColumns = `j.seq, j.version, j.created_by::text, j.changed_by::text, j.id, j.model_name, j.model_version, j.sheep, j.priority, j.tenant,
	j.trace_parent, j.trace_state, j.limits, j.labels, j.idempotency, j.keep, j.state, j.run, j.attempt, j.spent, j.enqueued_at, j.not_before, j.wait_until, j.deadline,
	j.claimed_at, j.started_at, j.finished_at, j.changed_at, j.holder, j.node, j.token, j.cancelling, j.delayed, j.ended_age, j.kept_for,
	j.remove_age, j.removal, j.remover, j.removed_at, j.gpu_memory, j.gpu_time, j.warnings, j.after_jobs, j.blocked, j.job_group, j.failure_type, j.failure_message`
	columns     = listColumns + `, j.failure_traceback`
	columnCount = 48
)

// unneeded is the condition that no job which has not ended is after one.
const unneeded = `NOT EXISTS (SELECT FROM shepherd.needs WHERE needed = jobs.id)`

// Reads.
const (
	queryGet = `SELECT ` + columns + ` FROM shepherd.jobs j WHERE j.id = @id`
	// The row and the moment at which it was read; the row is NULL where there is
	// none.
	queryLoad = `SELECT m.now, m.age, ` + columns + ` FROM shepherd.moment m LEFT JOIN shepherd.jobs j ON j.id = @id`
	// Several rows, each with the moment.
	queryLoadMany = `SELECT m.now, m.age, ` + columns + ` FROM shepherd.moment m JOIN shepherd.jobs j ON j.id = ANY(@ids::text[])`
	queryMoment   = `SELECT now, age FROM shepherd.moment`
	queryHeld     = `SELECT ` + columns + ` FROM shepherd.jobs j WHERE j.node = @node AND j.token > 0 ORDER BY j.token`
	// Those of a node whose lease has ended, and which has not joined again.
	queryHeldLapsed = `SELECT ` + columns + ` FROM shepherd.jobs j WHERE j.node = @node AND j.token > 0
		AND EXISTS (SELECT FROM shepherd.nodes WHERE name = @node AND expires_at < clock_timestamp()) ORDER BY j.token`
	// The attempt under way is read with those that ended, of one moment.
	queryAttempts = `SELECT run, number, node, sheep, began, started, ended, cause, reason, spent, gpu_memory, gpu_time, stage, load, execute, collect, log
			FROM shepherd.attempts WHERE job = @id
		UNION ALL SELECT run, attempt, node, holder, claimed_at, started_at, NULL, '', '', false, 0, 0, 0, 0, 0, 0, ''
			FROM shepherd.jobs WHERE id = @id AND token > 0
		ORDER BY run, number`
	// The newest attempt of each of several jobs.
	queryLastAttempts = `SELECT asked.id, a.* FROM unnest(@ids::text[]) asked(id) CROSS JOIN LATERAL (
			SELECT run, number, node, sheep, began, started, ended, cause, reason, spent, gpu_memory, gpu_time, stage, load, execute, collect, log
				FROM shepherd.attempts WHERE job = asked.id ORDER BY run DESC, number DESC LIMIT 1) a`
	// The claimable jobs that come before one, at most so many: of those addressed as
	// it is, and of those addressed to none, with a higher priority, and with the same.
	queryBefore = `SELECT count(*) FROM (
			(SELECT FROM shepherd.jobs j WHERE j.claimable AND j.sheep = @sheep AND j.priority > @priority ORDER BY j.priority DESC, j.seq LIMIT @most)
			UNION ALL (SELECT FROM shepherd.jobs j WHERE j.claimable AND j.sheep = @sheep AND j.priority = @priority AND j.seq < @seq ORDER BY j.seq LIMIT @most)
			UNION ALL (SELECT FROM shepherd.jobs j WHERE @sheep > '' AND j.claimable AND j.sheep = '' AND j.priority > @priority ORDER BY j.priority DESC, j.seq LIMIT @most)
			UNION ALL (SELECT FROM shepherd.jobs j WHERE @sheep > '' AND j.claimable AND j.sheep = '' AND j.priority = @priority AND j.seq < @seq ORDER BY j.seq LIMIT @most)
			LIMIT @most) earlier`
	queryCount = `SELECT state, sum(n)::bigint FROM shepherd.tally GROUP BY state`
	// The kinds of claimable jobs, those with most first, and when the oldest of each
	// was submitted; then the number of all others.
	queryWaiting = `WITH kinds AS (
			SELECT model_name, model_version, sheep, sum(n)::bigint AS jobs,
				row_number() OVER (ORDER BY sum(n) DESC, model_name, model_version, sheep) AS place, count(*) OVER () AS kinds
			FROM shepherd.tally WHERE claimable GROUP BY model_name, model_version, sheep HAVING sum(n) > 0)
		SELECT model_name, model_version, sheep, jobs,
			(SELECT j.enqueued_at FROM shepherd.jobs j WHERE j.claimable AND j.model_name = kinds.model_name AND j.model_version = kinds.model_version
				AND j.sheep = kinds.sheep ORDER BY j.seq LIMIT 1), false, place
		FROM kinds WHERE place < @most::bigint OR kinds <= @most
		UNION ALL SELECT '', '', '', sum(jobs)::bigint, NULL, true, NULL FROM kinds WHERE NOT (place < @most OR kinds <= @most) HAVING count(*) > 0
		ORDER BY place`
	// The jobs that are due, without removals that another live node has begun, and the
	// first job that is not due yet. Needed jobs that are not due are not scanned.
	queryDue = `SELECT m.now, m.age, ` + listColumns + ` FROM shepherd.moment m, LATERAL (
			(SELECT * FROM shepherd.jobs WHERE remove_age > 0 AND remove_age <= m.age AND ` + unneeded + ` AND (removal = 0 OR remover = ANY(@nodes::text[])
				OR NOT EXISTS (SELECT FROM shepherd.nodes WHERE name = remover AND expires_at > clock_timestamp()))
			ORDER BY remove_age, seq LIMIT @limit)
			UNION ALL (SELECT * FROM shepherd.jobs WHERE remove_age > 0 AND remove_age > m.age ORDER BY remove_age, seq LIMIT 1)) j`
	// Locks records, in the order of their ids.
	queryLockMany = `SELECT FROM shepherd.jobs WHERE id = ANY(@ids::text[]) ORDER BY id FOR UPDATE`
	queryBump     = `UPDATE shepherd.jobs SET version = version + 1 WHERE id = ANY(@ids::text[]) AND id <> ALL(@besides::text[])`
	// Which of the jobs are needed by one that has not ended.
	queryNeeded = `SELECT DISTINCT needed FROM shepherd.needs WHERE needed = ANY(@ids::text[])`
	queryStates = `SELECT id, state FROM shepherd.jobs WHERE id = ANY(@ids::text[])`
	// The jobs that are after one which has ended since they were looked at.
	queryUnsettled = `SELECT j.id FROM (SELECT DISTINCT dependent FROM shepherd.needs WHERE ended ORDER BY dependent LIMIT @limit) n JOIN shepherd.jobs j ON j.seq = n.dependent`
	querySettled   = `UPDATE shepherd.needs SET ended = false WHERE dependent = @seq AND needed = ANY(@ended::text[]) AND ended`

	queryAlive      = `SELECT EXISTS (SELECT FROM shepherd.nodes WHERE name = @node AND expires_at > clock_timestamp())`
	queryCheckpoint = `SELECT cursor FROM shepherd.checkpoints WHERE consumer = @consumer`
)

// Changes of one row. Each changes the row only if it still has the version that was
// read, and writes nothing else otherwise; it answers how many rows it changed.
var (
	querySave = `WITH ` + saved + ` SELECT count(*) FROM saved`
	// with an event
	querySaveEvent = `WITH ` + saved + `, ` + told + ` SELECT count(*) FROM saved`
	// with the end of an attempt and an event
	querySaveAttempt = `WITH ` + saved + `, ` + attempted + `, ` + told + ` SELECT count(*) FROM saved`
	// and with what it has used
	querySaveUsed = `WITH ` + saved + `, ` + attempted + `, ` + told + `, ` + charged + ` SELECT count(*) FROM saved`
	// and where earlier attempts may be too many
	querySaveAndTrim = `WITH ` + saved + `, ` + attempted + `, ` + trimmed + `, ` + told + `, ` + charged + ` SELECT count(*) FROM saved`

	// A new row without a webhook, if the id has neither a row nor a reservation. Returns
	// the seq.
	queryCreateFirst = `WITH saved AS (` + insertJob + `
			WHERE NOT EXISTS (SELECT FROM shepherd.jobs WHERE id = @id) AND NOT EXISTS (SELECT FROM shepherd.uploads WHERE id = @id)
			ON CONFLICT (id) DO NOTHING RETURNING *), ` + told + ` SELECT seq FROM saved`
	// The same of an id that may have a reservation.
	queryCreate = `WITH saved AS (` + insertJob + ` ON CONFLICT (id) DO NOTHING RETURNING *), ` + told + ` SELECT seq FROM saved`
	// A new row, in the place of the old one where there is one.
	queryReplace = `WITH removed AS (DELETE FROM shepherd.jobs WHERE seq = @old AND version = @version RETURNING seq),
		saved AS (` + insertJob + ` WHERE @old::bigint = 0 OR EXISTS (SELECT FROM removed) ON CONFLICT (id) DO NOTHING RETURNING *),
		trimmed AS (DELETE FROM shepherd.attempts USING saved WHERE job = @id AND attempts.run <= @run::bigint - @keep_runs::bigint),
		hooked AS (` + queryAddWebhook + ` FROM saved WHERE @webhook::text > ''),
		` + told + ` SELECT seq FROM saved`

	queryRemove = `WITH removed AS (DELETE FROM shepherd.jobs WHERE seq = @seq AND version = @version RETURNING id),
		gone AS (DELETE FROM shepherd.attempts USING removed WHERE job = removed.id) SELECT count(*) FROM removed`

	// A record of another ledger, one of its attempts, and an event of it.
	queryRestore        = insertJob
	queryRestoreAttempt = insertAttempt
	queryRestoreEvent   = insertEvent(`shepherd.jobs s WHERE s.id = @id`)
)

// The parts of these.
var (
	saved = `saved AS (UPDATE shepherd.jobs SET version = version + 1, changed_by = @key::uuid,
			state = @state, attempt = @attempt, spent = @spent, not_before = @not_before, wait_until = @wait_until, claimed_at = @claimed_at,
			started_at = @started_at, finished_at = @finished_at, changed_at = @changed_at, holder = @holder, node = @node, token = @token,
			cancelling = @cancelling, delayed = @delayed, blocked = @blocked, ended_age = @ended_age, kept_for = @kept_for, remove_age = @remove_age, removal = @removal, remover = @remover,
			removed_at = @removed_at, gpu_memory = @gpu_memory, gpu_time = @gpu_time, warnings = @warnings,
			failure_type = @failure_type, failure_message = @failure_message, failure_traceback = @failure_traceback
		WHERE seq = @seq AND version = @version RETURNING *)`

	attempted = `attempted AS (` + insertAttempt + ` FROM saved)`

	trimmed = `trimmed AS (DELETE FROM shepherd.attempts USING saved
			WHERE job = @a_job AND attempts.run = @a_run AND number <= @a_number::bigint - @keep_attempts::bigint)`

	charged = `charged AS (INSERT INTO shepherd.used (tenant, used, age) SELECT s.tenant, @used::bigint, @e_age::bigint FROM saved s WHERE @used > 0)`

	told = `told AS (` + insertEvent(`saved s`) + `)`

	insertJob = `INSERT INTO shepherd.jobs (created_by, changed_by, id, model_name, model_version, sheep, priority, tenant, trace_parent, trace_state,
			limits, labels, idempotency, keep, state, run, attempt, spent, enqueued_at, not_before, wait_until, deadline, started_at, finished_at, changed_at, delayed,
			ended_age, kept_for, remove_age, removal, removed_at, gpu_memory, gpu_time, warnings, failure_type, failure_message, failure_traceback,
			after_jobs, blocked, job_group)
		SELECT @key::uuid, @key::uuid, @id::text, @model_name::text, @model_version::text, @sheep::text, @priority::bigint, @tenant::text, @trace_parent::text, @trace_state::text,
			@limits::text, @labels::text, @idempotency::text, @keep::bigint, @state::text, @run::bigint, @attempt::bigint, @spent::bigint, @enqueued_at::timestamptz, @not_before::timestamptz,
			@wait_until::timestamptz, @deadline::timestamptz, @started_at::timestamptz, @finished_at::timestamptz, @changed_at::timestamptz, @delayed::boolean,
			@ended_age::bigint, @kept_for::bigint, @remove_age::bigint, @removal::smallint, @removed_at::timestamptz, @gpu_memory::bigint, @gpu_time::bigint,
			@warnings::text, @failure_type::text, @failure_message::text, @failure_traceback::text, @after_jobs::text, @blocked::boolean, @job_group::text`

	insertAttempt = `INSERT INTO shepherd.attempts (job, run, number, node, sheep, began, started, ended, cause, reason, spent,
			gpu_memory, gpu_time, stage, load, execute, collect, log)
		SELECT @a_job::text, @a_run::bigint, @a_number::bigint, @a_node::text, @a_sheep::text, @a_began::timestamptz, @a_started::timestamptz, @a_ended::timestamptz,
			@a_cause::text, @a_reason::text, @a_spent::boolean, @a_gpu_memory::bigint, @a_gpu_time::bigint, @a_stage::bigint, @a_load::bigint,
			@a_execute::bigint, @a_collect::bigint, @a_log::text`
)

// insertEvent inserts an event of each of the rows s.
func insertEvent(rows string) string {
	return eventOf(`@e_age::bigint, @e_kind::text, @e_attempt::bigint, @e_sheep::text, @e_node::text, @e_cause::text, @e_reason::text`, rows)
}

// eventOf inserts an event of each of the rows s with the given age, kind, attempt,
// holder, node, cause and reason. The numbers of events are given out for the rows
// that were changed, so while they are locked.
func eventOf(values, rows string) string {
	return `INSERT INTO shepherd.events (age, kind, attempt, holder, node, cause, reason, at, job, run, model_name, model_version, sheep, tenant, state, delayed,
			enqueued_at, started_at, finished_at, failure_type, failure_message, failure_traceback)
		SELECT ` + values + `, s.changed_at, s.id, s.run, s.model_name, s.model_version, s.sheep, s.tenant, s.state, s.delayed,
			s.enqueued_at, s.started_at, s.finished_at, s.failure_type, s.failure_message, s.failure_traceback FROM ` + rows
}

// Claims.

// claimCandidates is how many jobs of each kind a claim looks at. Those that other
// claims are about to take are locked and passed over.
const claimCandidates = `32`

// groupCandidates is the same for the groups of a policy, which are more.
const groupCandidates = `8`

// canClaim is the condition on a job that any slot could claim.
const canClaim = `j.claimable AND (j.give_up_at IS NULL OR j.give_up_at > now())`

// head selects the first of the jobs that meet the condition.
func head(condition string) string { return heads(condition, `0`, claimCandidates) }

// heads selects so many of them, each with the share of its tenant.
func heads(condition, share, most string) string {
	return `(SELECT j.seq, j.priority, j.model_name, j.model_version, ` + share + ` AS share FROM shepherd.jobs j WHERE ` + canClaim + ` AND ` + condition +
		` ORDER BY j.priority DESC, j.seq LIMIT ` + most + `)`
}

const ofPreferred = ` AND j.model_name = @prefer_name AND j.model_version = @prefer_version`

// candidates selects the jobs that the slot could claim: of each kind, the first in
// order.
func candidates(slot ledger.Slot) string {
	if slot.Only != "" {
		return head(`j.id = @only AND (j.sheep = ANY(@own::text[]) OR j.sheep = ANY(@open::text[]))`)
	}
	var kinds []string
	first := func(condition string) {
		kinds = append(kinds, head(condition))
		if !slot.Prefer.IsZero() {
			kinds = append(kinds, head(condition+ofPreferred))
		}
	}
	for i := range slot.Owned() {
		first(fmt.Sprintf(`j.sheep = (@own::text[])[%d]`, i+1))
	}
	for i := range slot.Opened() {
		open := fmt.Sprintf(`j.sheep = (@open::text[])[%d]`, i+1)
		if len(slot.Except) == 0 {
			first(open)
			continue
		}
		// Of each model that the sheep can run: the jobs of those that it cannot may be
		// many and come first.
		kinds = append(kinds, fmt.Sprintf(`(SELECT heads.* FROM (
			SELECT DISTINCT model_name, model_version FROM shepherd.tally WHERE claimable AND sheep = (@open::text[])[%d]
			EXCEPT SELECT * FROM unnest(@except_names::text[], @except_versions::text[])) m
			CROSS JOIN LATERAL `, i+1)+head(open+` AND j.model_name = m.model_name AND j.model_version = m.model_version`)+` heads)`)
	}
	return strings.Join(kinds, ` UNION ALL `)
}

// claimQuery makes a claim by the scheduling order without a policy.
func claimQuery(slot ledger.Slot) string { return claimOf(slot, candidates(slot)) }

// boundedClaimQuery makes a claim of a job of the groups that a policy admits, which
// are given with the shares of their tenants. It differs by what claimQuery differs.
func boundedClaimQuery(slot ledger.Slot) string {
	condition := `j.sheep = g.sheep AND j.tenant = g.tenant AND j.model_name = g.name AND j.model_version = g.version`
	if slot.Only != "" {
		condition += ` AND j.id = @only`
	}
	return claimOf(slot, `SELECT heads.* FROM unnest(@g_sheep::text[], @g_tenants::text[], @g_names::text[], @g_versions::text[], @g_shares::bigint[])
			g(sheep, tenant, name, version, share) CROSS JOIN LATERAL `+heads(condition, `g.share`, groupCandidates)+` heads`)
}

// claimOf makes a claim: of the candidates it takes the first that nobody else has
// locked, by priority, preferred model, share and age. They are sorted before one after
// the other is looked at. It answers whether the node may claim (one that joined needs its
// lease), how many candidates there were, and the row or NULL. Where the key was called off
// meanwhile (queryCallOff), it takes none.
func claimOf(slot ledger.Slot, candidates string) string {
	const order = `priority DESC, preferred DESC, share, seq`
	start, kind := ``, `'claimed'`
	if !slot.Ahead {
		start, kind = `, state = 'processing', started_at = greatest(j.changed_at, m.now), wait_until = NULL`, `'started'`
	}
	return `WITH candidates AS MATERIALIZED (` + candidates + `),
		m AS MATERIALIZED (SELECT now, age FROM shepherd.moment),
		leased AS MATERIALIZED (SELECT NOT EXISTS (SELECT FROM shepherd.nodes WHERE name = @node
			AND (expires_at IS NULL OR expires_at < clock_timestamp() OR generation <> @generation::bigint AND @generation <> 0)) AS ok),
		asked AS (INSERT INTO shepherd.claim_keys (key) SELECT @key::uuid FROM leased WHERE ok AND EXISTS (SELECT FROM candidates) ON CONFLICT DO NOTHING RETURNING key),
		chosen AS MATERIALIZED (SELECT locked FROM (
				SELECT c.seq, c.priority, c.model_name = @prefer_name AND c.model_version = @prefer_version AS preferred, c.share FROM asked, candidates c
				ORDER BY ` + order + ` OFFSET 0) c
			CROSS JOIN LATERAL (SELECT j.seq AS locked FROM shepherd.jobs j WHERE j.seq = c.seq AND ` + canClaim + ` FOR UPDATE SKIP LOCKED) j
			ORDER BY ` + order + ` LIMIT 1),
		claimed AS (UPDATE shepherd.jobs j SET version = j.version + 1, changed_by = @key::uuid, claimed_by = @key::uuid,
				token = nextval('shepherd.tokens'), holder = @sheep, node = @node, attempt = j.attempt + 1,
				changed_at = greatest(j.changed_at, m.now), claimed_at = greatest(j.changed_at, m.now)` + start + `
			FROM chosen, m WHERE j.seq = locked RETURNING j.*),
		told AS (` + eventOf(`m.age, `+kind+`, s.attempt, s.holder, s.node, '', ''`, `claimed s, m`) + `)
		SELECT (SELECT ok FROM leased), (SELECT count(*) FROM candidates), ` + columns + ` FROM (VALUES (1)) one LEFT JOIN claimed j ON true`
}

// usedNow is what a row u of used comes to at the moment m: half of it after each
// half-life. (2 to the power of a number below -1074 is an error.)
const usedNow = `(u.used * power(2, -least(greatest(m.age - u.age, 0) / @half_life::float8, 100)))::bigint`

const (
	// Claims under a policy that limits what is held are one after the other, each
	// seeing what is held by the ones before.
	queryClaimLock = `SELECT pg_advisory_xact_lock(` + claimLock + `)`
	// What a policy goes by: the groups of claimable jobs with the given addresses, of
	// which each is found by one search of the index; what is held; and what tenants have
	// used, where there is a half-life.
	queryBounds = `WITH RECURSIVE groups AS (
			SELECT first.* FROM unnest(@addresses::text[]) a(sheep) CROSS JOIN LATERAL (SELECT j.sheep, j.tenant, j.model_name, j.model_version FROM shepherd.jobs j
				WHERE j.claimable AND j.sheep = a.sheep ORDER BY j.tenant, j.model_name, j.model_version LIMIT 1) first
			UNION ALL SELECT next.* FROM groups g CROSS JOIN LATERAL (SELECT j.sheep, j.tenant, j.model_name, j.model_version FROM shepherd.jobs j
				WHERE j.claimable AND j.sheep = g.sheep AND (j.tenant, j.model_name, j.model_version) > (g.tenant, g.model_name, g.model_version)
				ORDER BY j.tenant, j.model_name, j.model_version LIMIT 1) next),
		m AS MATERIALIZED (SELECT now, age FROM shepherd.moment)
		SELECT 'group', sheep, tenant, model_name, model_version, 0, 0 FROM groups
		UNION ALL SELECT 'held', '', j.tenant, j.model_name, j.model_version, count(*), (sum(extract(epoch FROM m.now - j.claimed_at)) * 1000000)::bigint
			FROM shepherd.jobs j, m WHERE j.token > 0 GROUP BY j.tenant, j.model_name, j.model_version
		UNION ALL SELECT 'used', '', u.tenant, '', '', 0, sum(` + usedNow + `)::bigint
			FROM shepherd.used u, m WHERE @half_life::float8 > 0 GROUP BY u.tenant`
	queryQueued = `SELECT count(*) FROM (SELECT FROM shepherd.jobs WHERE tenant = @tenant AND tenant > '' AND state = 'queued' LIMIT @most) queued`

	// Calls off a claim whose outcome is not known, unless it was made; it waits for
	// one that is being made. A claim that was called off is not made later.
	queryCallOff = `INSERT INTO shepherd.claim_keys (key) VALUES (@key::uuid) ON CONFLICT DO NOTHING`
	// The claim that was made with the key, if it is still held.
	queryClaimed = `SELECT ` + columns + ` FROM shepherd.jobs j WHERE j.node = @node AND j.token > 0 AND j.claimed_by = @key::uuid`
)

// Events.
const (
	eventColumns = `e.id, e.at, e.kind, e.job, e.run, e.model_name, e.model_version, e.sheep, e.tenant, e.attempt, e.holder, e.node,
	e.state, e.cause, e.reason, e.delayed, e.enqueued_at, e.started_at, e.finished_at, e.failure_type, e.failure_message, e.failure_traceback`

	// The last number that was given out to an event, and the last event removed.
	queryLastEvent = `SELECT CASE WHEN is_called THEN last_value ELSE 0 END, (SELECT pruned FROM shepherd.ledger) FROM shepherd.event_ids`
	// The numbers of events after one.
	queryEventIDs = `SELECT id FROM shepherd.events WHERE id > @after ORDER BY id LIMIT @limit`
	// The transactions that may hold a number of an event that they have not committed:
	// each locks the table before it gets a number, and until its end.
	queryEventWriters = `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND relation = 'shepherd.events'::regclass
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND mode = 'RowExclusiveLock' AND granted`
	querySetCheckpoint = `INSERT INTO shepherd.checkpoints (consumer, cursor) VALUES (@consumer, @cursor)
		ON CONFLICT (consumer) DO UPDATE SET cursor = excluded.cursor WHERE checkpoints.cursor <> excluded.cursor`
	queryNotify = `SELECT pg_notify('` + channel + `', @from)`
	queryListen = `LISTEN ` + channel
)

// channel is what the doorbell is rung on.
const channel = `shepherd_events`

// eventsQuery reads events after a number, up to another; each row also has the last
// event that was removed, and the event is NULL where there is none.
func eventsQuery(filter ledger.EventFilter) string {
	return `SELECT l.pruned, ` + eventColumns + ` FROM shepherd.ledger l LEFT JOIN LATERAL (
			SELECT * FROM shepherd.events WHERE id > @after AND id <= @last` + eventCondition(filter) + ` ORDER BY id LIMIT @limit) e ON true`
}

// newestEventsQuery reads the events up to a number backwards; its columns are those of
// eventsQuery.
func newestEventsQuery(filter ledger.EventFilter) string {
	return `SELECT 0::bigint, ` + eventColumns + ` FROM shepherd.events e WHERE id <= @last` + eventCondition(filter) + ` ORDER BY id DESC LIMIT @limit`
}

func eventCondition(filter ledger.EventFilter) string {
	condition := ``
	if filter.Job != "" {
		condition += ` AND job = @job`
	}
	if filter.Tenant != "" {
		condition += ` AND tenant = @tenant AND tenant > ''` // so that the index is used
	}
	return condition
}

// Leases and maintenance.
const (
	// Joins at a time are one after the other, each seeing the ones before.
	queryJoinLock = `SELECT pg_advisory_xact_lock(` + joinLock + `)`
	// The other nodes whose leases have not ended.
	queryOthers     = `SELECT name, expires_at FROM shepherd.nodes WHERE name <> @node AND expires_at > clock_timestamp() ORDER BY name LIMIT 1`
	queryPeers      = `SELECT name FROM shepherd.nodes WHERE name <> @node AND expires_at > clock_timestamp() ORDER BY name`
	queryGeneration = `SELECT generation FROM shepherd.nodes WHERE name = @node`
	// Joins as the node that had the generation seen, 0 for none. A statement that
	// arrives late has one that is past.
	queryJoin = `INSERT INTO shepherd.nodes (name, generation, joined_at, expires_at)
			SELECT @node::text, 1, clock_timestamp(), clock_timestamp() + @lease::bigint * interval '1 microsecond'
			WHERE NOT @alone::boolean OR NOT EXISTS (SELECT FROM shepherd.nodes WHERE name <> @node AND expires_at > clock_timestamp())
		ON CONFLICT (name) DO UPDATE SET generation = nodes.generation + 1, joined_at = excluded.joined_at, expires_at = excluded.expires_at
			WHERE nodes.generation = @seen RETURNING generation, draining`
	// Gives the lease up. It goes on for a while where the node holds jobs.
	queryLeave = `UPDATE shepherd.nodes SET expires_at = CASE WHEN EXISTS (SELECT FROM shepherd.jobs WHERE node = @node AND token > 0)
			THEN greatest(expires_at, clock_timestamp() + @grace::bigint * interval '1 microsecond') END
		WHERE name = @node AND generation = @generation AND expires_at > clock_timestamp()`
	// Renews the leases given, unless they have ended, and answers what there is to do.
	queryPulse = `WITH renewed AS (UPDATE shepherd.nodes n SET expires_at = clock_timestamp() + @lease::bigint * interval '1 microsecond'
			FROM unnest(@names::text[], @generations::bigint[]) mine(name, generation)
			WHERE n.name = mine.name AND n.generation = mine.generation AND n.expires_at > clock_timestamp() RETURNING n.name)
		SELECT m.now, m.age, ARRAY(SELECT name FROM renewed),
			(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM shepherd.event_ids),
			least((SELECT min(not_before) FROM shepherd.jobs WHERE delayed AND NOT blocked), (SELECT min(give_up_at) FROM shepherd.jobs WHERE give_up_at IS NOT NULL)),
			EXISTS (SELECT FROM shepherd.needs), EXISTS (SELECT FROM shepherd.needs WHERE ended),
			ARRAY(SELECT name FROM shepherd.nodes WHERE expires_at < clock_timestamp()),
			ARRAY(SELECT name FROM shepherd.nodes WHERE draining),
			(SELECT count(*) FROM (SELECT FROM shepherd.tally LIMIT ` + tallyRows + `) rows)
		FROM shepherd.moment m`
	// Says that all claims of a node whose lease ended were taken back.
	queryLapse = `UPDATE shepherd.nodes SET expires_at = NULL WHERE name = @node AND expires_at < clock_timestamp()`

	queryAnnounce = `UPDATE shepherd.nodes SET about = @about WHERE name = @node AND generation = @generation`
	// The nodes, and how many jobs each holds.
	queryNodes = `SELECT n.name, n.joined_at, n.expires_at, coalesce(n.expires_at > clock_timestamp(), false), n.draining, n.about,
			(SELECT count(*) FROM shepherd.jobs j WHERE j.node = n.name AND j.token > 0)
		FROM shepherd.nodes n ORDER BY n.name`
	querySetDraining = `UPDATE shepherd.nodes SET draining = @draining WHERE name = @node`
	// Has the jobs taken by other nodes that a node holds which gave its lease up.
	queryAbandon = `UPDATE shepherd.nodes SET expires_at = clock_timestamp() - interval '1 second' WHERE name = @node AND expires_at IS NULL
		AND EXISTS (SELECT FROM shepherd.jobs WHERE node = @node AND token > 0)`
	queryForget = `DELETE FROM shepherd.nodes WHERE name = @node AND (expires_at IS NULL OR expires_at < clock_timestamp())
		AND NOT EXISTS (SELECT FROM shepherd.jobs WHERE node = @node AND token > 0)`

	// The jobs whose time to wait is over. The time is looked up once: compared with a
	// function that may change, each entry of the index would be.
	queryOverdue   = `SELECT id FROM shepherd.jobs WHERE give_up_at <= (SELECT clock_timestamp()) ORDER BY give_up_at, seq LIMIT @limit`
	queryNextTimer = `SELECT clock_timestamp(), least((SELECT min(not_before) FROM shepherd.jobs WHERE delayed AND NOT blocked), (SELECT min(give_up_at) FROM shepherd.jobs WHERE give_up_at IS NOT NULL))`

	queryPing = `UPDATE shepherd.ledger SET pruned = pruned`
)

// Makes jobs claimable whose time has come.
var queryRunDue = `WITH m AS MATERIALIZED (SELECT now, age FROM shepherd.moment),
		due AS MATERIALIZED (SELECT seq FROM shepherd.jobs WHERE delayed AND NOT blocked AND not_before <= (SELECT now FROM m) ORDER BY not_before, seq LIMIT @limit FOR UPDATE SKIP LOCKED),
		saved AS (UPDATE shepherd.jobs j SET version = j.version + 1, changed_by = @key::uuid, delayed = false, changed_at = greatest(j.changed_at, m.now)
			FROM due, m WHERE j.seq = due.seq RETURNING j.*),
		told AS (` + eventOf(`m.age, 'due', 0, '', '', '', ''`, `saved s, m ORDER BY s.not_before, s.seq`) + `)
		SELECT count(*) FROM saved`

// The statements of a sweep, in one transaction. Sweeps are one after the other, each
// seeing what the one before removed.
const (
	querySweepLock = `SELECT pg_advisory_xact_lock(` + sweepLock + `)`
	// The age grows by the time since it was kept last, as far as the caller knows it
	// to have passed, or the view moment may have said so: it never goes back.
	queryKeepAge = `UPDATE shepherd.ledger SET age = age + least(greatest((extract(epoch FROM clock_timestamp() - wall) * 1000000)::bigint, 0), greatest(@most::bigint, 120000000)),
		wall = clock_timestamp() RETURNING age`
	// Removes records that ended too long ago, or that are too many.
	queryExpire = `WITH excess AS (SELECT greatest(coalesce(sum(n), 0) - @keep_jobs::bigint, 0)::bigint AS n FROM shepherd.tally
				WHERE state IN ('done', 'failed', 'cancelled') AND NOT retained),
		oldest AS MATERIALIZED (
			(SELECT seq FROM shepherd.jobs WHERE ended_age > 0 AND remove_age = 0 AND ` + unneeded + ` ORDER BY ended_age, seq LIMIT least((SELECT n FROM excess), @limit::bigint))
			UNION (SELECT seq FROM shepherd.jobs WHERE ended_age > 0 AND remove_age = 0 AND ` + unneeded + ` AND ended_age < (SELECT age FROM shepherd.moment) - @keep::bigint
				ORDER BY ended_age, seq LIMIT @limit)),
		gone AS (DELETE FROM shepherd.jobs WHERE seq = ANY(ARRAY(SELECT seq FROM oldest)) AND ended_age > 0 AND remove_age = 0 RETURNING id),
		tried AS (DELETE FROM shepherd.attempts USING gone WHERE job = gone.id)
		SELECT count(*) FROM gone`
	// Removes events that are too old, or too many: numbers that no event has count, too.
	queryPrune = `WITH first AS MATERIALIZED (SELECT id, age FROM shepherd.events ORDER BY id LIMIT @limit),
		unkept AS (SELECT CASE WHEN is_called THEN last_value ELSE 0 END - @keep_events::bigint AS id FROM shepherd.event_ids
			UNION ALL SELECT max(id) FROM first WHERE age < (SELECT age FROM shepherd.moment) - @event_keep::bigint),
		last AS MATERIALIZED (SELECT least(max(id), @settled::bigint, (SELECT max(id) FROM first)) AS id FROM unkept HAVING max(id) IS NOT NULL),
		told AS (UPDATE shepherd.ledger SET pruned = last.id FROM last WHERE last.id > pruned),
		gone AS (DELETE FROM shepherd.events USING last WHERE events.id <= last.id RETURNING 1)
		SELECT count(*) FROM gone`
	// Sums the tally up.
	queryFold = `WITH gone AS (DELETE FROM shepherd.tally RETURNING *)
		INSERT INTO shepherd.tally SELECT state, claimable, retained, model_name, model_version, sheep, sum(n) FROM gone
			GROUP BY state, claimable, retained, model_name, model_version, sheep HAVING sum(n) <> 0`
	// Sums up what tenants have used.
	queryFoldUsed = `WITH m AS MATERIALIZED (SELECT age FROM shepherd.moment), gone AS (DELETE FROM shepherd.used RETURNING *)
		INSERT INTO shepherd.used SELECT tenant, sum(` + usedNow + `), m.age FROM gone u, m GROUP BY tenant, m.age HAVING sum(` + usedNow + `) >= 1`
	queryDropKeys = `DELETE FROM shepherd.claim_keys WHERE at < clock_timestamp() - interval '1 hour'`
)

// The tally is summed up where it has more than foldAbove rows; no more than tallyRows
// are counted.
const (
	foldAbove = 512
	tallyRows = `513`
)

// The keys of advisory locks: "shpl" and a number.
const (
	joinLock  = `1936224364, 1`
	sweepLock = `1936224364, 2`
	claimLock = `1936224364, 3`

	webhookLock = `1936224364, 4`

	migrateLock = 1936224364
)
