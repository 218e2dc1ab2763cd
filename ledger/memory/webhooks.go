package memory

import (
	"cmp"
	"context"
	"fmt"
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

// webhooks are the webhooks of runs, and the messages for receivers.
type webhooks struct {
	ofRuns     map[ledger.JobRun]*runWebhook
	deliveries []*delivery // by Seq
	last       int64       // Seq that was given out
}

type runWebhook struct {
	job.Webhook
	complete bool
}

type delivery struct {
	job.Delivery
	again      bool  // out of order, on request
	settledAge int64 // the ledger's age when it was settled, 0 before
}

// add adds the webhook of a new run.
func (w *webhooks) add(r *record, webhook job.Webhook) {
	if !webhook.IsZero() {
		w.ofRuns[ledger.JobRun{Job: r.ID, Run: r.Run}] = &runWebhook{Webhook: webhook}
	}
}

// removed drops the webhooks of a job whose record is removed, unless messages of a run
// are not complete.
func (w *webhooks) removed(id job.ID) {
	for run, webhook := range w.ofRuns {
		if run.Job == id && webhook.complete {
			delete(w.ofRuns, run)
		}
	}
}

// first is the message that the others about a job for a receiver wait for; nil for none.
func (w *webhooks) first(receiver string, id job.ID) *delivery {
	for _, d := range w.deliveries {
		if d.Receiver == receiver && d.Job == id && d.State == job.DeliveryWaiting && !d.again {
			return d
		}
	}
	return nil
}

func (w *webhooks) find(id string) *delivery {
	for _, d := range w.deliveries {
		if d.ID == id {
			return d
		}
	}
	return nil
}

// JobWebhooks implements ledger.Webhooks.
func (ds *deliveries) JobWebhooks(ctx context.Context, runs []ledger.JobRun) (map[ledger.JobRun]job.Webhook, error) {
	found := map[ledger.JobRun]job.Webhook{}
	err := ds.call(ctx, "look up webhooks of jobs", func() error {
		for _, run := range runs {
			if webhook := ds.webhooks.ofRuns[run]; webhook != nil {
				found[run] = webhook.Webhook
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// QueueDeliveries implements ledger.Webhooks.
func (ds *deliveries) QueueDeliveries(ctx context.Context, consumer string, from, to job.Cursor, messages []job.Delivery, complete []ledger.JobRun) (bool, error) {
	moved := false
	err := ds.call(ctx, "queue messages for receivers of webhooks", func() error {
		if moved = ds.events.checkpoints[consumer] == from; !moved {
			return nil
		}
		ds.events.checkpoints[consumer] = to
		now := ds.moment().Now
		for _, m := range messages {
			if ds.webhooks.find(m.ID) != nil {
				continue
			}
			d := &delivery{Delivery: m}
			d.State, d.Created, d.Began, d.Payload = job.DeliveryWaiting, now, now, slices.Clone(m.Payload)
			if ds.webhooks.first(m.Receiver, m.Job) == nil {
				d.Due = now
			}
			ds.webhooks.last++
			d.Seq = ds.webhooks.last
			ds.webhooks.deliveries = append(ds.webhooks.deliveries, d)
		}
		for _, run := range complete {
			if webhook := ds.webhooks.ofRuns[run]; webhook != nil {
				webhook.complete = true
				if r := ds.find(run.Job); r == nil || r.Run != run.Run {
					delete(ds.webhooks.ofRuns, run)
				}
			}
		}
		return nil
	})
	return moved && err == nil, err
}

// ClaimDeliveries implements ledger.Webhooks.
func (ds *deliveries) ClaimDeliveries(ctx context.Context, limit int, except []string, hold time.Duration) (due []job.Delivery, next time.Duration, err error) {
	err = ds.call(ctx, "claim messages for receivers of webhooks", func() error {
		now := ds.moment().Now
		var waiting []*delivery
		for _, d := range ds.webhooks.deliveries {
			if !d.Due.IsZero() && !slices.Contains(except, d.Receiver) {
				waiting = append(waiting, d)
			}
		}
		slices.SortStableFunc(waiting, func(a, b *delivery) int { return a.Due.Compare(b.Due) })
		for _, d := range waiting {
			if !d.Due.After(now) && len(due) < limit {
				d.Tries++
				d.Due = now.Add(hold)
				claimed := d.Delivery
				claimed.Payload = slices.Clone(d.Payload)
				due = append(due, claimed)
			}
			if wait := max(d.Due.Sub(now), time.Microsecond); next == 0 || wait < next {
				next = wait
			}
		}
		return nil
	})
	return due, next, err
}

// SettleDelivery implements ledger.Webhooks.
func (ds *deliveries) SettleDelivery(ctx context.Context, id string, try int, result ledger.DeliveryResult) error {
	return ds.call(ctx, "settle message "+id, func() error {
		d := ds.webhooks.find(id)
		if d == nil || d.Tries != try || d.State != job.DeliveryWaiting {
			return nil
		}
		m := ds.moment()
		d.Status, d.Problem = result.Status, ledger.ClipProblem(result.Problem)
		if result.State == job.DeliveryWaiting {
			d.Due = m.Now.Add(max(result.Pause.Truncate(time.Microsecond), time.Microsecond))
			return nil
		}
		d.State, d.Due, d.Settled, d.settledAge = result.State, time.Time{}, m.Now, m.Age
		if first := ds.webhooks.first(d.Receiver, d.Job); !d.again && first != nil && first.Due.IsZero() {
			first.Due, first.Began = m.Now, m.Now
		}
		return nil
	})
}

// Redeliver implements ledger.Webhooks.
func (ds *deliveries) Redeliver(ctx context.Context, id, tenant string) (job.Delivery, error) {
	var again job.Delivery
	err := ds.call(ctx, "deliver message "+id+" again", func() error {
		d := ds.webhooks.find(id)
		if d == nil || tenant != "" && d.Tenant != tenant {
			return ledger.ErrNoDelivery
		}
		waiting := d.State == job.DeliveryWaiting
		if !waiting || !d.Due.IsZero() {
			now := ds.moment().Now
			d.State, d.Due, d.Began, d.Settled, d.settledAge, d.Tries = job.DeliveryWaiting, now, now, time.Time{}, 0, 0
			d.again = d.again || !waiting
		}
		again = d.Delivery
		again.Payload = nil
		return nil
	})
	return again, err
}

// Deliveries implements ledger.Webhooks.
func (ds *deliveries) Deliveries(ctx context.Context, filter job.DeliveryFilter, cursor int64, limit int) (listed []job.Delivery, next int64, err error) {
	const doing = "list messages for receivers of webhooks"
	if limit < 1 {
		return nil, 0, fmt.Errorf("%s: a page of %d: %w", doing, limit, errdefs.ErrInternal)
	}
	err = ds.call(ctx, doing, func() error {
		for _, d := range slices.Backward(ds.webhooks.deliveries) {
			if cursor > 0 && d.Seq > cursor || !filter.Match(d.Delivery) {
				continue
			}
			if len(listed) == limit {
				next = d.Seq
				break
			}
			shown := d.Delivery
			shown.Payload = nil
			listed = append(listed, shown)
		}
		return nil
	})
	return listed, next, err
}

// Undelivered implements ledger.Webhooks.
func (ds *deliveries) Undelivered(ctx context.Context) (waiting []ledger.Backlog, err error) {
	err = ds.call(ctx, "count messages for receivers of webhooks", func() error {
		for _, d := range ds.webhooks.deliveries {
			if d.State != job.DeliveryWaiting {
				continue
			}
			receiver := d.Receiver
			if strings.Contains(receiver, "://") {
				receiver = ""
			}
			i := slices.IndexFunc(waiting, func(b ledger.Backlog) bool { return b.Receiver == receiver })
			if i < 0 {
				i, waiting = len(waiting), append(waiting, ledger.Backlog{Receiver: receiver, Oldest: d.Created})
			}
			waiting[i].Messages++
		}
		slices.SortFunc(waiting, func(a, b ledger.Backlog) int { return cmp.Compare(a.Receiver, b.Receiver) })
		return nil
	})
	return waiting, err
}

// ExpireDeliveries implements ledger.Webhooks.
func (ds *deliveries) ExpireDeliveries(ctx context.Context, age time.Duration, keep, limit int) (gone int, err error) {
	err = ds.call(ctx, "remove messages for receivers of webhooks", func() error {
		oldest := ds.moment().Age - age.Microseconds()
		settled := slices.Clone(ds.webhooks.deliveries)
		slices.SortStableFunc(settled, func(a, b *delivery) int { return cmp.Compare(a.settledAge, b.settledAge) })
		for _, d := range settled {
			if gone < limit && d.settledAge > 0 && (d.settledAge < oldest || d.Seq <= ds.webhooks.last-int64(keep)) {
				ds.webhooks.deliveries = slices.DeleteFunc(ds.webhooks.deliveries, func(other *delivery) bool { return other == d })
				gone++
			}
		}
		return nil
	})
	return gone, err
}
