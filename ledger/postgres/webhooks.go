package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var _ ledger.Webhooks = (*Ledger)(nil)

const (
	deliveryColumns = `d.seq, d.id, d.receiver, d.job, d.run, d.tenant, d.kind, d.state, d.created_at, d.began_at, d.due_at, d.settled_at, d.tries, d.status, d.problem`

	queryJobWebhooks = `SELECT w.job, w.run, w.webhook FROM unnest(@jobs::text[], @runs::bigint[]) r(job, run)
		JOIN shepherd.job_webhooks w ON w.job = r.job AND w.run = r.run`
	queryAddWebhook = `INSERT INTO shepherd.job_webhooks (job, run, webhook) SELECT @id::text, @run::bigint, @webhook::text`

	// Serializes queueing and settling: a message that is queued behind another sees
	// either that one waiting or its result.
	queryWebhookLock = `SELECT pg_advisory_xact_lock(` + webhookLock + `)`
	// Moves a checkpoint, unless another has.
	queryMoveCheckpoint = `INSERT INTO shepherd.checkpoints (consumer, cursor) SELECT @consumer::text, @to::text
			WHERE (@from::text = '') <> EXISTS (SELECT FROM shepherd.checkpoints WHERE consumer = @consumer)
		ON CONFLICT (consumer) DO UPDATE SET cursor = excluded.cursor WHERE checkpoints.cursor = @from RETURNING 1`
	queryQueueDelivery = `INSERT INTO shepherd.deliveries (id, receiver, job, run, tenant, kind, payload, created_at, began_at, due_at)
		SELECT @id::text, @receiver::text, @job::text, @run::bigint, @tenant::text, @kind::text, @payload::text, m.now, m.now,
			CASE WHEN NOT EXISTS (SELECT FROM shepherd.deliveries WHERE receiver = @receiver AND job = @job AND state = 'waiting' AND NOT again) THEN m.now END
		FROM shepherd.moment m ON CONFLICT (id) DO NOTHING`
	queryCompleteWebhook = `UPDATE shepherd.job_webhooks SET complete = true WHERE job = @job AND run = @run`
	queryDropWebhook     = `DELETE FROM shepherd.job_webhooks WHERE job = @job AND run = @run
		AND NOT EXISTS (SELECT FROM shepherd.jobs WHERE id = @job AND run = @run)`

	queryClaimDeliveries = `WITH chosen AS (SELECT seq FROM shepherd.deliveries WHERE due_at <= statement_timestamp() AND receiver <> ALL(@except::text[])
				ORDER BY due_at LIMIT @limit FOR UPDATE SKIP LOCKED)
		UPDATE shepherd.deliveries d SET due_at = clock_timestamp() + @hold::bigint * interval '1 microsecond', tries = d.tries + 1
		WHERE d.seq = ANY(ARRAY(SELECT seq FROM chosen)) RETURNING ` + deliveryColumns + `, d.payload`
	queryNextDelivery = `SELECT clock_timestamp(), (SELECT due_at FROM shepherd.deliveries WHERE due_at IS NOT NULL AND receiver <> ALL(@except::text[]) ORDER BY due_at LIMIT 1)`

	queryPostponeDelivery = `UPDATE shepherd.deliveries SET due_at = clock_timestamp() + @pause::bigint * interval '1 microsecond', status = @status, problem = @problem
		WHERE id = @id AND tries = @try AND state = 'waiting'`
	querySettleDelivery = `UPDATE shepherd.deliveries d SET state = @state, due_at = NULL, settled_at = m.now, settled_age = m.age, status = @status, problem = @problem
		FROM shepherd.moment m WHERE d.id = @id AND d.tries = @try AND d.state = 'waiting'`
	// Makes the message due that others about its job for its receiver wait for.
	queryAdvance = `UPDATE shepherd.deliveries d SET due_at = clock_timestamp(), began_at = clock_timestamp() WHERE d.due_at IS NULL AND d.seq =
		(SELECT n.seq FROM shepherd.deliveries s JOIN shepherd.deliveries n ON n.receiver = s.receiver AND n.job = s.job AND n.state = 'waiting' AND NOT n.again
			WHERE s.id = @id ORDER BY n.seq LIMIT 1)`

	// The message as it is after, none where there is none of the tenant.
	queryRedeliver = `UPDATE shepherd.deliveries d SET
			state = 'waiting', due_at = CASE WHEN d.state = 'waiting' AND d.due_at IS NULL THEN NULL ELSE clock_timestamp() END,
			began_at = CASE WHEN d.state = 'waiting' AND d.due_at IS NULL THEN d.began_at ELSE clock_timestamp() END,
			again = d.again OR d.state <> 'waiting', settled_at = NULL, settled_age = 0, tries = 0
		WHERE d.id = @id AND (@tenant::text = '' OR d.tenant = @tenant) RETURNING ` + deliveryColumns

	// Each part reads an index of messages that wait alone.
	queryUndelivered = `SELECT CASE WHEN position('://' IN receiver) > 0 THEN '' ELSE receiver END COLLATE "C" AS who, count(*), min(created_at) FROM (
			SELECT receiver, created_at FROM shepherd.deliveries WHERE state = 'waiting' AND NOT again
			UNION ALL SELECT receiver, created_at FROM shepherd.deliveries WHERE due_at IS NOT NULL AND state = 'waiting' AND again) d
		GROUP BY who ORDER BY who`
	queryExpireDeliveries = `WITH gone AS (
			(SELECT seq FROM shepherd.deliveries WHERE settled_age > 0 AND settled_age < (SELECT age FROM shepherd.moment) - @age::bigint ORDER BY settled_age LIMIT @limit)
			UNION (SELECT seq FROM shepherd.deliveries WHERE seq <= (SELECT max(seq) FROM shepherd.deliveries) - @keep::bigint AND settled_age > 0 ORDER BY seq LIMIT @limit)
			LIMIT @limit)
		DELETE FROM shepherd.deliveries WHERE seq = ANY(ARRAY(SELECT seq FROM gone)) AND settled_age > 0`
)

// deliveries are the webhooks of jobs, and the messages for their receivers.
type deliveries struct{ *database }

// webhookText is a webhook as the ledger keeps it, empty for none.
func webhookText(w job.Webhook) (string, error) {
	encoded, err := w.MarshalText()
	return text(string(encoded)), err
}

// JobWebhooks implements ledger.Webhooks.
func (d *deliveries) JobWebhooks(ctx context.Context, runs []ledger.JobRun) (map[ledger.JobRun]job.Webhook, error) {
	jobs, numbers := make([]string, len(runs)), make([]int64, len(runs))
	for i, run := range runs {
		jobs[i], numbers[i] = text(run.Job), int64(run.Run)
	}
	return read(ctx, d.database, "look up webhooks of jobs", func(ctx context.Context) (map[ledger.JobRun]job.Webhook, error) {
		found := map[ledger.JobRun]job.Webhook{}
		err := d.query(ctx, queryJobWebhooks, pgx.NamedArgs{"jobs": jobs, "runs": numbers}, func(rows pgx.Rows) error {
			var run ledger.JobRun
			var encoded string
			var webhook job.Webhook
			if err := rows.Scan(&run.Job, &run.Run, &encoded); err != nil {
				return err
			}
			if err := webhook.UnmarshalText([]byte(encoded)); err != nil {
				return err
			}
			found[run] = webhook
			return nil
		})
		return found, err
	})
}

// QueueDeliveries implements ledger.Webhooks.
func (d *deliveries) QueueDeliveries(ctx context.Context, consumer string, from, to job.Cursor, messages []job.Delivery, complete []ledger.JobRun) (bool, error) {
	return read(ctx, d.database, "queue messages for receivers of webhooks", func(ctx context.Context) (moved bool, err error) {
		err = d.transact(ctx, func(tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(queryWebhookLock)
			batch.Queue(queryMoveCheckpoint, pgx.NamedArgs{"consumer": text(consumer), "from": text(from), "to": text(to)}).Exec(func(tag pgconn.CommandTag) error {
				moved = tag.RowsAffected() > 0
				return nil
			})
			if err := d.send(ctx, tx, batch); err != nil || !moved {
				return err
			}
			return d.send(ctx, tx, queueBatch(messages, complete))
		})
		return moved && err == nil, err
	})
}

// queueBatch adds messages, and drops the webhooks of runs whose messages are complete.
func queueBatch(messages []job.Delivery, complete []ledger.JobRun) *pgx.Batch {
	batch := &pgx.Batch{}
	for _, m := range messages {
		batch.Queue(queryQueueDelivery, pgx.NamedArgs{
			"id": text(m.ID), "receiver": text(m.Receiver), "job": text(m.Job), "run": m.Run, "tenant": text(m.Tenant), "kind": string(m.Kind), "payload": text(string(m.Payload)),
		})
	}
	for _, run := range complete {
		args := pgx.NamedArgs{"job": text(run.Job), "run": run.Run}
		batch.Queue(queryCompleteWebhook, args)
		batch.Queue(queryDropWebhook, args)
	}
	return batch
}

// send sends statements in a transaction.
func (d *deliveries) send(ctx context.Context, tx pgx.Tx, batch *pgx.Batch) error {
	d.statements.Add(int64(batch.Len()))
	return tx.SendBatch(ctx, batch).Close()
}

// claimedDeliveries are messages to try.
type claimedDeliveries struct {
	messages []job.Delivery
	next     time.Duration
}

// ClaimDeliveries implements ledger.Webhooks. It writes nothing where no message is due.
func (d *deliveries) ClaimDeliveries(ctx context.Context, limit int, except []string, hold time.Duration) ([]job.Delivery, time.Duration, error) {
	args := pgx.NamedArgs{"limit": limit, "except": append([]string{}, except...), "hold": hold.Microseconds()}
	c, err := read(ctx, d.database, "claim messages for receivers of webhooks", func(ctx context.Context) (claimedDeliveries, error) {
		var c claimedDeliveries
		next, err := d.nextDelivery(ctx, args)
		if err != nil || next != dueNow {
			c.next = next
			return c, err
		}
		err = d.query(ctx, queryClaimDeliveries, args, func(rows pgx.Rows) error {
			var payload string
			d, err := scanDelivery(rows, &payload)
			d.Payload = []byte(payload)
			c.messages = append(c.messages, d)
			return err
		})
		if err != nil {
			return c, err
		}
		if next, err := d.nextDelivery(ctx, args); err == nil { // what was claimed is handed out in any case
			c.next = next
		}
		return c, nil
	})
	return c.messages, c.next, err
}

// dueNow is how long until a message is due that is.
const dueNow = time.Microsecond

// nextDelivery is how long until a message is due, 0 where there is none.
func (d *deliveries) nextDelivery(ctx context.Context, args pgx.NamedArgs) (time.Duration, error) {
	var now time.Time
	var at *time.Time
	if _, err := d.queryOne(ctx, queryNextDelivery, args, &now, &at); err != nil || at == nil {
		return 0, err
	}
	return max(at.Sub(now), dueNow), nil
}

// SettleDelivery implements ledger.Webhooks.
func (d *deliveries) SettleDelivery(ctx context.Context, id string, try int, result ledger.DeliveryResult) error {
	args := pgx.NamedArgs{
		"id": text(id), "try": try, "state": string(result.State), "status": result.Status, "problem": text(ledger.ClipProblem(result.Problem)),
		"pause": max(result.Pause.Microseconds(), 1),
	}
	return d.call(ctx, "settle message "+id, func(ctx context.Context) error {
		if result.State == job.DeliveryWaiting {
			_, err := d.exec(ctx, queryPostponeDelivery, args)
			return err
		}
		batch := &pgx.Batch{}
		batch.Queue(queryWebhookLock)
		batch.Queue(querySettleDelivery, args)
		batch.Queue(queryAdvance, args)
		return d.batch(ctx, batch)
	})
}

// Redeliver implements ledger.Webhooks.
func (d *deliveries) Redeliver(ctx context.Context, id, tenant string) (job.Delivery, error) {
	return read(ctx, d.database, "deliver message "+id+" again", func(ctx context.Context) (again job.Delivery, err error) {
		found := false
		err = d.query(ctx, queryRedeliver, pgx.NamedArgs{"id": text(id), "tenant": text(tenant)}, func(rows pgx.Rows) (err error) {
			found = true
			again, err = scanDelivery(rows)
			return err
		})
		if err == nil && !found {
			err = ledger.ErrNoDelivery
		}
		return again, err
	})
}

// Deliveries implements ledger.Webhooks.
func (d *deliveries) Deliveries(ctx context.Context, filter job.DeliveryFilter, cursor int64, limit int) ([]job.Delivery, int64, error) {
	const doing = "list messages for receivers of webhooks"
	if limit < 1 {
		return nil, 0, fmt.Errorf("%s: a page of %d: %w", doing, limit, errdefs.ErrInternal)
	}
	query, args := deliveriesQuery(filter, cursor, limit+1)
	listed, err := read(ctx, d.database, doing, func(ctx context.Context) ([]job.Delivery, error) {
		var listed []job.Delivery
		err := d.query(ctx, query, args, func(rows pgx.Rows) error {
			d, err := scanDelivery(rows)
			listed = append(listed, d)
			return err
		})
		return listed, err
	})
	if err != nil {
		return nil, 0, err
	}
	if len(listed) > limit {
		return listed[:limit], listed[limit].Seq, nil
	}
	return listed, 0, nil
}

func deliveriesQuery(filter job.DeliveryFilter, cursor int64, limit int) (string, pgx.NamedArgs) {
	query := `SELECT ` + deliveryColumns + ` FROM shepherd.deliveries d WHERE true`
	if cursor > 0 {
		query += ` AND d.seq <= @cursor`
	}
	if filter.Job != "" {
		query += ` AND d.job = @job`
	}
	if filter.Tenant != "" {
		query += ` AND d.tenant = @tenant AND d.tenant > ''` // so that the index is used
	}
	if filter.Receiver != "" {
		query += ` AND d.receiver = @receiver`
	}
	if filter.State != "" {
		query += ` AND d.state = @state`
	}
	return query + ` ORDER BY d.seq DESC LIMIT @limit`, pgx.NamedArgs{
		"cursor": cursor, "job": text(filter.Job), "tenant": text(filter.Tenant), "receiver": text(filter.Receiver), "state": string(filter.State), "limit": limit,
	}
}

// Undelivered implements ledger.Webhooks.
func (d *deliveries) Undelivered(ctx context.Context) ([]ledger.Backlog, error) {
	return read(ctx, d.database, "count messages for receivers of webhooks", func(ctx context.Context) ([]ledger.Backlog, error) {
		var waiting []ledger.Backlog
		err := d.query(ctx, queryUndelivered, nil, func(rows pgx.Rows) error {
			var b ledger.Backlog
			err := rows.Scan(&b.Receiver, &b.Messages, &b.Oldest)
			b.Oldest = b.Oldest.UTC()
			waiting = append(waiting, b)
			return err
		})
		return waiting, err
	})
}

// ExpireDeliveries implements ledger.Webhooks.
func (d *deliveries) ExpireDeliveries(ctx context.Context, age time.Duration, keep, limit int) (int, error) {
	args := pgx.NamedArgs{"age": age.Microseconds(), "keep": keep, "limit": limit}
	return read(ctx, d.database, "remove messages for receivers of webhooks", func(ctx context.Context) (int, error) {
		gone, err := d.exec(ctx, queryExpireDeliveries, args)
		return int(gone), err
	})
}

// scanDelivery reads the deliveryColumns and what follows them.
func scanDelivery(rows pgx.Rows, more ...any) (job.Delivery, error) {
	var d job.Delivery
	var due, settled *time.Time
	err := rows.Scan(append([]any{&d.Seq, &d.ID, &d.Receiver, &d.Job, &d.Run, &d.Tenant, &d.Kind, &d.State, &d.Created, &d.Began, &due, &settled, &d.Tries, &d.Status, &d.Problem}, more...)...)
	d.Created, d.Began, d.Due, d.Settled = d.Created.UTC(), d.Began.UTC(), toTime(due), toTime(settled)
	return d, err
}
