package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var _ ledger.Webhooks = (*Ledger)(nil)

// deliveries are the webhooks of jobs and the messages for their receivers.
type deliveries struct{ *database }

// webhooksSchema is a migration. Times are microseconds since 1970, 0 for none.
const webhooksSchema = `
	-- The webhook of a run, for as long as its messages are not complete or the job has
	-- a record of the run.
	CREATE TABLE job_webhooks (
		job      TEXT NOT NULL,
		run      INTEGER NOT NULL,
		webhook  TEXT NOT NULL, -- JSON of job.Webhook
		complete INTEGER NOT NULL DEFAULT 0,
		PRIMARY KEY (job, run)
	) STRICT, WITHOUT ROWID;
	CREATE TRIGGER job_webhooks_removed AFTER DELETE ON jobs BEGIN
		DELETE FROM job_webhooks WHERE job = old.id AND complete = 1;
	END;

	-- One row per message for a receiver. A message waits until settled_age is set; it is
	-- due at due_at, 0 while one ahead of it waits.
	CREATE TABLE deliveries (
		seq         INTEGER PRIMARY KEY,
		id          TEXT NOT NULL UNIQUE,
		receiver    TEXT NOT NULL,
		job         TEXT NOT NULL,
		run         INTEGER NOT NULL,
		tenant      TEXT NOT NULL,
		kind        TEXT NOT NULL,
		state       TEXT NOT NULL DEFAULT 'waiting',
		created_at  INTEGER NOT NULL,
		began_at    INTEGER NOT NULL,
		due_at      INTEGER NOT NULL,
		settled_at  INTEGER NOT NULL DEFAULT 0,
		settled_age INTEGER NOT NULL DEFAULT 0, -- the ledger's age (see age.go)
		again       INTEGER NOT NULL DEFAULT 0, -- out of order, on request
		tries       INTEGER NOT NULL DEFAULT 0,
		status      INTEGER NOT NULL DEFAULT 0,
		problem     TEXT NOT NULL DEFAULT '',
		payload     TEXT NOT NULL
	) STRICT;
	CREATE INDEX deliveries_due ON deliveries (due_at, receiver) WHERE due_at > 0;
	CREATE INDEX deliveries_in_order ON deliveries (receiver, job) WHERE state = 'waiting' AND again = 0;
	CREATE INDEX deliveries_settled ON deliveries (settled_age) WHERE settled_age > 0;
	CREATE INDEX deliveries_of_job ON deliveries (job);
	CREATE INDEX deliveries_of_tenant ON deliveries (tenant) WHERE tenant > '';`

// webhookStatements are those of the writer.
type webhookStatements struct {
	add, complete, dropUnknown              *sql.Stmt
	checkpoint                              *sql.Stmt
	queue, due, next, claim                 *sql.Stmt
	settle, postpone, advance, find, again  *sql.Stmt
	expireByAge, expireByNumber, lastQueued *sql.Stmt
}

const (
	deliveryColumns = `seq, id, receiver, job, run, tenant, kind, state, created_at, began_at, due_at, settled_at, tries, status, problem`
	queryNextDue    = `SELECT due_at FROM deliveries WHERE due_at > 0 AND receiver NOT IN (SELECT value FROM json_each(?)) ORDER BY due_at LIMIT 1`
	queryJobWebhook = `SELECT webhook FROM job_webhooks WHERE job = ? AND run = ?`
)

func (s *webhookStatements) list() []statement {
	return []statement{
		{"addWebhook", &s.add, `INSERT INTO job_webhooks (job, run, webhook) VALUES (?, ?, ?)`},
		{"completeWebhook", &s.complete, `UPDATE job_webhooks SET complete = 1 WHERE job = ? AND run = ?`},
		{"dropUnknownWebhook", &s.dropUnknown, `DELETE FROM job_webhooks WHERE job = ?1 AND run = ?2
			AND NOT EXISTS (SELECT 1 FROM jobs WHERE id = ?1 AND run = ?2)`},
		{"checkpoint of a consumer", &s.checkpoint, queryCheckpoint},
		{"queueDelivery", &s.queue, `INSERT INTO deliveries (id, receiver, job, run, tenant, kind, payload, created_at, began_at, due_at)
			SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8,
				iif(EXISTS (SELECT 1 FROM deliveries WHERE receiver = ?2 AND job = ?3 AND state = 'waiting' AND again = 0), 0, ?8)
			WHERE true ON CONFLICT (id) DO NOTHING`},
		{"dueDeliveries", &s.due, `SELECT ` + deliveryColumns + `, payload FROM deliveries WHERE due_at > 0 AND due_at <= ?
			AND receiver NOT IN (SELECT value FROM json_each(?)) ORDER BY due_at LIMIT ?`},
		{"nextDelivery", &s.next, queryNextDue},
		{"claimDelivery", &s.claim, `UPDATE deliveries SET due_at = ?, tries = tries + 1 WHERE seq = ?`},
		{"settleDelivery", &s.settle, `UPDATE deliveries SET state = ?, due_at = 0, settled_at = ?, settled_age = ?, status = ?, problem = ?
			WHERE id = ? AND tries = ? AND state = 'waiting' RETURNING receiver, job, again`},
		{"postponeDelivery", &s.postpone, `UPDATE deliveries SET due_at = ?, status = ?, problem = ?
			WHERE id = ? AND tries = ? AND state = 'waiting'`},
		{"advanceDeliveries", &s.advance, `UPDATE deliveries SET due_at = ?3, began_at = ?3 WHERE seq =
			(SELECT seq FROM deliveries WHERE receiver = ?1 AND job = ?2 AND state = 'waiting' AND again = 0 ORDER BY seq LIMIT 1) AND due_at = 0`},
		{"findDelivery", &s.find, `SELECT ` + deliveryColumns + ` FROM deliveries WHERE id = ?`},
		{"deliverAgain", &s.again, `UPDATE deliveries SET state = 'waiting', due_at = ?1, began_at = ?1, settled_at = 0, settled_age = 0, tries = 0,
			again = iif(state = 'waiting', again, 1) WHERE seq = ?2`},
		{"expireDeliveriesByAge", &s.expireByAge, `DELETE FROM deliveries WHERE seq IN
			(SELECT seq FROM deliveries WHERE settled_age > 0 AND settled_age < ? ORDER BY settled_age LIMIT ?)`},
		{"expireDeliveriesByNumber", &s.expireByNumber, `DELETE FROM deliveries WHERE seq IN
			(SELECT seq FROM deliveries WHERE seq <= ? AND +settled_age > 0 ORDER BY seq LIMIT ?)`},
		{"lastDelivery", &s.lastQueued, `SELECT coalesce(max(seq), 0) FROM deliveries`},
	}
}

// addWebhook writes the webhook of a new run.
func (t *tx) addWebhook(r *row) error {
	if r.Webhook.IsZero() {
		return nil
	}
	text, err := r.Webhook.MarshalText()
	if err != nil {
		return err
	}
	_, err = t.exec(t.stmts.webhooks.add, string(r.ID), r.Run, string(text))
	r.Webhook = job.Webhook{} // it has a table of its own
	return err
}

// JobWebhooks implements ledger.Webhooks.
func (d *deliveries) JobWebhooks(ctx context.Context, runs []ledger.JobRun) (map[ledger.JobRun]job.Webhook, error) {
	found := map[ledger.JobRun]job.Webhook{}
	err := d.call("look up webhooks of jobs", func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, run := range runs {
			var text string
			err := d.read.webhook.QueryRowContext(context.WithoutCancel(ctx), string(run.Job), run.Run).Scan(&text)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			var webhook job.Webhook
			if err := cmp.Or(err, webhook.UnmarshalText([]byte(text))); err != nil {
				return err
			}
			found[run] = webhook
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// QueueDeliveries implements ledger.Webhooks.
func (d *deliveries) QueueDeliveries(ctx context.Context, consumer string, from, to job.Cursor, messages []job.Delivery, complete []ledger.JobRun) (bool, error) {
	var moved bool
	err := d.change(ctx, "queue messages for receivers of webhooks", func(t *tx) error {
		var at string
		if _, err := t.queryOne([]any{&at}, t.stmts.webhooks.checkpoint, consumer); err != nil {
			return err
		}
		if moved = at == string(from); !moved {
			return nil
		}
		if _, err := t.exec(t.stmts.setCheckpoint, consumer, string(to)); err != nil {
			return err
		}
		for _, m := range messages {
			_, err := t.exec(t.stmts.webhooks.queue, m.ID, m.Receiver, string(m.Job), m.Run, m.Tenant, string(m.Kind), string(m.Payload), fromTime(t.now))
			if err != nil {
				return err
			}
		}
		for _, run := range complete {
			for _, s := range []*sql.Stmt{t.stmts.webhooks.complete, t.stmts.webhooks.dropUnknown} {
				if _, err := t.exec(s, string(run.Job), run.Run); err != nil {
					return err
				}
			}
		}
		return nil
	}, nil)
	return moved && err == nil, err
}

// ClaimDeliveries implements ledger.Webhooks. It writes nothing where no message is due.
func (d *deliveries) ClaimDeliveries(ctx context.Context, limit int, except []string, hold time.Duration) ([]job.Delivery, time.Duration, error) {
	const doing = "claim messages for receivers of webhooks"
	left, err := json.Marshal(append([]string{}, except...))
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", doing, err)
	}
	var next time.Duration
	idle := false
	err = d.call(doing, func() error {
		var at int64
		err := d.read.nextDue.QueryRowContext(ctx, string(left)).Scan(&at)
		switch now := fromTime(d.writer.now()); {
		case errors.Is(err, sql.ErrNoRows):
			idle = true
		case err != nil:
			return err
		case at > now:
			idle, next = true, time.Duration(at-now)*time.Microsecond
		}
		return nil
	})
	if err != nil || idle {
		return nil, next, err
	}
	var due []job.Delivery
	err = d.change(ctx, doing, func(t *tx) error {
		due, next = nil, 0 // the transaction may run again
		now := fromTime(t.now)
		err := t.query(func(scan func(...any) error) error {
			var payload string
			m, err := scanDelivery(scan, &payload)
			m.Payload = []byte(payload)
			due = append(due, m)
			return err
		}, t.stmts.webhooks.due, now, string(left), limit)
		if err != nil {
			return err
		}
		until := now + hold.Microseconds()
		for i := range due {
			if _, err := t.exec(t.stmts.webhooks.claim, until, due[i].Seq); err != nil {
				return err
			}
			due[i].Tries++
			due[i].Due = toTime(until)
		}
		var at int64
		found, err := t.queryOne([]any{&at}, t.stmts.webhooks.next, string(left))
		if found {
			next = max(time.Duration(at-now)*time.Microsecond, 1)
		}
		return err
	}, nil)
	if err != nil {
		return nil, 0, err
	}
	return due, next, nil
}

// SettleDelivery implements ledger.Webhooks.
func (d *deliveries) SettleDelivery(ctx context.Context, id string, try int, result ledger.DeliveryResult) error {
	problem := ledger.ClipProblem(result.Problem)
	return d.change(ctx, "settle message "+id, func(t *tx) error {
		now := fromTime(t.now)
		if result.State == job.DeliveryWaiting {
			_, err := t.exec(t.stmts.webhooks.postpone, now+max(result.Pause.Microseconds(), 1), result.Status, problem, id, try)
			return err
		}
		var receiver, of string
		var again bool
		t.writes++
		found, err := t.queryOne([]any{&receiver, &of, &again}, t.stmts.webhooks.settle, string(result.State), now, t.age, result.Status, problem, id, try)
		if err != nil || !found || again {
			return err
		}
		_, err = t.exec(t.stmts.webhooks.advance, receiver, of, now)
		return err
	}, nil)
}

// Redeliver implements ledger.Webhooks.
func (d *deliveries) Redeliver(ctx context.Context, id, tenant string) (job.Delivery, error) {
	var again job.Delivery
	err := d.change(ctx, "deliver message "+id+" again", func(t *tx) error {
		found := false
		find := func() error {
			return t.query(func(scan func(...any) error) (err error) {
				found = true
				again, err = scanDelivery(scan)
				return err
			}, t.stmts.webhooks.find, id)
		}
		if err := find(); err != nil {
			return err
		}
		if !found || tenant != "" && again.Tenant != tenant {
			return ledger.ErrNoDelivery
		}
		if again.State == job.DeliveryWaiting && again.Due.IsZero() {
			return nil
		}
		if _, err := t.exec(t.stmts.webhooks.again, fromTime(t.now), again.Seq); err != nil {
			return err
		}
		return find()
	}, nil)
	if err != nil {
		return job.Delivery{}, err
	}
	return again, nil
}

// Deliveries implements ledger.Webhooks.
func (d *deliveries) Deliveries(ctx context.Context, filter job.DeliveryFilter, cursor int64, limit int) ([]job.Delivery, int64, error) {
	const doing = "list messages for receivers of webhooks"
	if limit < 1 {
		return nil, 0, fmt.Errorf("%s: a page of %d: %w", doing, limit, errdefs.ErrInternal)
	}
	var listed []job.Delivery
	err := d.call(doing, func() error {
		query, args := deliveriesQuery(filter, cursor, limit+1)
		rows, err := d.reads.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			m, err := scanDelivery(rows.Scan)
			if err != nil {
				return err
			}
			listed = append(listed, m)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, 0, err
	}
	if len(listed) > limit {
		return listed[:limit], listed[limit].Seq, nil
	}
	return listed, 0, nil
}

func deliveriesQuery(filter job.DeliveryFilter, cursor int64, limit int) (string, []any) {
	var query strings.Builder
	query.WriteString(`SELECT ` + deliveryColumns + ` FROM deliveries WHERE true`)
	var args []any
	where := func(condition string, value any) {
		query.WriteString(` AND ` + condition)
		args = append(args, value)
	}
	if cursor > 0 {
		where(`seq <= ?`, cursor)
	}
	if filter.Job != "" {
		where(`job = ?`, string(filter.Job))
	}
	switch {
	case filter.Tenant != "" && filter.Job != "":
		where(`+tenant = ?`, filter.Tenant)
	case filter.Tenant != "":
		where(`tenant > '' AND tenant = ?`, filter.Tenant)
	}
	if filter.Receiver != "" {
		where(`+receiver = ?`, filter.Receiver)
	}
	if filter.State != "" {
		where(`+state = ?`, string(filter.State))
	}
	query.WriteString(` ORDER BY seq DESC LIMIT ?`)
	return query.String(), append(args, limit)
}

// undeliveredQuery counts the messages that wait, by receiver, and lists each one that is
// delivered out of order. Each part reads an index that has only messages that wait.
const undeliveredQuery = `SELECT receiver, count(*), min(created_at) FROM deliveries INDEXED BY deliveries_in_order WHERE state = 'waiting' AND again = 0 GROUP BY receiver
	UNION ALL SELECT receiver, 1, created_at FROM deliveries WHERE due_at > 0 AND state = 'waiting' AND again = 1`

// Undelivered implements ledger.Webhooks.
func (d *deliveries) Undelivered(ctx context.Context) ([]ledger.Backlog, error) {
	waiting := make(map[string]ledger.Backlog)
	err := d.call("count messages for receivers of webhooks", func() error {
		rows, err := d.reads.QueryContext(ctx, undeliveredQuery)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var receiver string
			var messages int
			var created int64
			if err := rows.Scan(&receiver, &messages, &created); err != nil {
				return err
			}
			if strings.Contains(receiver, "://") {
				receiver = ""
			}
			b, oldest := waiting[receiver], toTime(created)
			if b.Oldest.IsZero() || oldest.Before(b.Oldest) {
				b.Oldest = oldest
			}
			b.Receiver, b.Messages = receiver, b.Messages+messages
			waiting[receiver] = b
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(waiting), func(a, b ledger.Backlog) int { return cmp.Compare(a.Receiver, b.Receiver) }), nil
}

// ExpireDeliveries implements ledger.Webhooks.
func (d *deliveries) ExpireDeliveries(ctx context.Context, age time.Duration, keep, limit int) (int, error) {
	var gone int64
	err := d.change(ctx, "remove messages for receivers of webhooks", func(t *tx) error {
		gone = 0 // the transaction may run again
		var last int64
		if _, err := t.queryOne([]any{&last}, t.stmts.webhooks.lastQueued); err != nil {
			return err
		}
		for _, expire := range []struct {
			by    *sql.Stmt
			bound int64
		}{{t.stmts.webhooks.expireByAge, t.age - age.Microseconds()}, {t.stmts.webhooks.expireByNumber, last - int64(keep)}} {
			result, err := t.exec(expire.by, expire.bound, int64(limit)-gone)
			if err != nil {
				return err
			}
			n, err := result.RowsAffected()
			if err != nil {
				return err
			}
			gone += n
		}
		return nil
	}, nil)
	if err != nil {
		return 0, err
	}
	return int(gone), nil
}

// scanDelivery reads the deliveryColumns and the columns after them.
func scanDelivery(scan func(...any) error, more ...any) (job.Delivery, error) {
	var d job.Delivery
	var created, began, due, settled int64
	err := scan(append([]any{&d.Seq, &d.ID, &d.Receiver, &d.Job, &d.Run, &d.Tenant, &d.Kind, &d.State, &created, &began, &due, &settled, &d.Tries, &d.Status, &d.Problem}, more...)...)
	d.Created, d.Began, d.Due, d.Settled = toTime(created), toTime(began), toTime(due), toTime(settled)
	return d, err
}
