package ledgertest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// webhooks is the ledger's part that keeps messages.
func (f *fixture) webhooks() ledger.Webhooks {
	f.Helper()
	w, ok := f.Ledger.(ledger.Webhooks)
	if !ok {
		f.Fatalf("a %T is no ledger.Webhooks", f.Ledger)
	}
	return w
}

func webhook(w job.Webhook) func(*job.Record) { return func(r *job.Record) { r.Webhook = w } }

// hooked is the webhook of a run.
func (f *fixture) hooked(id string, run int) job.Webhook {
	f.Helper()
	key := ledger.JobRun{Job: job.ID(id), Run: run}
	found, err := f.webhooks().JobWebhooks(f.Context(), []ledger.JobRun{{Job: "none", Run: 1}, key, {Job: key.Job, Run: 99}})
	if err != nil || len(found) > 1 {
		f.Fatalf("JobWebhooks(%v): %v, %v", key, found, err)
	}
	return found[key]
}

// message is one about a job.
func message(id, receiver, about string) job.Delivery {
	return job.Delivery{ID: id, Receiver: receiver, Job: job.ID(about), Run: 1, Kind: job.EventEnded, Tenant: "wool", Payload: []byte(`{"id":"` + id + `"}`)}
}

// queue queues messages for the consumer "c", which is at the cursor from.
func (f *fixture) queue(from, to job.Cursor, messages ...job.Delivery) {
	f.Helper()
	if moved, err := f.webhooks().QueueDeliveries(f.Context(), "c", from, to, messages, nil); err != nil || !moved {
		f.Fatalf("QueueDeliveries: %v, %v", moved, err)
	}
}

// take claims messages, and wants these.
func (f *fixture) take(hold time.Duration, want ...string) []job.Delivery {
	f.Helper()
	due, _, err := f.webhooks().ClaimDeliveries(f.Context(), 100, nil, hold)
	if err != nil {
		f.Fatalf("ClaimDeliveries: %v", err)
	}
	got := make([]string, len(due))
	for i, d := range due {
		got[i] = d.ID
		if string(d.Payload) != `{"id":"`+d.ID+`"}` {
			f.Fatalf("payload %q of %s", d.Payload, d.ID)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		f.Fatalf("claimed %q, want %q", got, want)
	}
	return due
}

func (f *fixture) settle(d job.Delivery, result ledger.DeliveryResult) {
	f.Helper()
	if err := f.webhooks().SettleDelivery(f.Context(), d.ID, d.Tries, result); err != nil {
		f.Fatalf("SettleDelivery(%s): %v", d.ID, err)
	}
}

// delivery is a message as it is listed.
func (f *fixture) delivery(id string) job.Delivery {
	f.Helper()
	for cursor := int64(0); ; {
		page, next, err := f.webhooks().Deliveries(f.Context(), job.DeliveryFilter{}, cursor, 2)
		if err != nil {
			f.Fatalf("Deliveries: %v", err)
		}
		for _, d := range page {
			if d.ID == id {
				return d
			}
		}
		if cursor = next; cursor == 0 {
			f.Fatalf("no message %s", id)
		}
	}
}

// testJobWebhooks follows the webhook of a run from its creation until its messages are
// complete and its record is gone.
func (s suite) testJobWebhooks(t *testing.T) {
	f := s.open(t, Options{KeepJobs: 2})
	first := job.Webhook{URL: "https://example.com/größe?a=1", Events: "ended,started"}
	second := job.Webhook{URL: "http://example.com"}
	if rec := f.create("x", webhook(first)); !rec.Webhook.IsZero() || !f.get("x").Webhook.IsZero() {
		t.Fatalf("the record has the webhook %v", rec.Webhook)
	}
	f.create("y")
	if got := f.hooked("x", 1); got != first || !f.hooked("y", 1).IsZero() {
		t.Fatalf("the webhook of x is %v, of y %v", got, f.hooked("y", 1))
	}
	if _, err := f.Create(f.Context(), job.Record{ID: "x", Model: red, Webhook: second}); !errors.Is(err, ledger.ErrExists) {
		t.Fatal(err)
	}
	f.cancel("x")
	f.create("x", webhook(second)) // before the messages of the first run are complete
	for _, again := range []func(){func() {}, f.crash, f.reopen} {
		again()
		if got := [2]job.Webhook{f.hooked("x", 1), f.hooked("x", 2)}; got != [2]job.Webhook{first, second} {
			t.Fatalf("the webhooks of x are %v", got)
		}
	}
	complete := func(from, to job.Cursor, run int) {
		t.Helper()
		moved, err := f.webhooks().QueueDeliveries(f.Context(), "c", from, to, nil, []ledger.JobRun{{Job: "x", Run: run}, {Job: "none", Run: 1}})
		if err != nil || !moved {
			t.Fatalf("QueueDeliveries: %v, %v", moved, err)
		}
	}
	complete("", "1", 1)
	if got := [2]job.Webhook{f.hooked("x", 1), f.hooked("x", 2)}; got != [2]job.Webhook{{}, second} {
		t.Fatalf("the webhooks of x are %v", got)
	}
	complete("1", "2", 2)
	f.cancel("x")
	if got := f.hooked("x", 2); got != second { // whoever runs the job again wants it
		t.Fatalf("the webhook of the last run is %v", got)
	}
	third := job.Webhook{URL: "https://example.com/3"}
	f.create("x", webhook(third))
	if got := [2]job.Webhook{f.hooked("x", 2), f.hooked("x", 3)}; got != [2]job.Webhook{{}, third} {
		t.Fatalf("the webhooks of x are %v", got)
	}
}

// testDeliveries queues, claims and settles messages: each as often as it is to be, and
// those of one job for one receiver in order.
func (s suite) testDeliveries(t *testing.T) {
	f := s.open(t, Options{})
	if due, next, err := f.webhooks().ClaimDeliveries(f.Context(), 1, nil, time.Hour); err != nil || len(due) != 0 || next != 0 {
		t.Fatalf("claimed %v, next in %v, %v", due, next, err)
	}
	f.queue("", "1", message("a1", "r", "x"), message("a2", "r", "x"), message("b1", "r", "y"))
	f.queue("1", "2", message("a1", "r", "x"), message("c1", "https://example.com", "x"))
	for _, from := range []job.Cursor{"", "1", "3"} {
		moved, err := f.webhooks().QueueDeliveries(f.Context(), "c", from, "2", []job.Delivery{message("none", "r", "z")}, nil)
		if err != nil || moved {
			t.Fatalf("QueueDeliveries from %q: %v, %v", from, moved, err)
		}
	}
	if moved, err := f.webhooks().QueueDeliveries(f.Context(), "other", "1", "2", nil, nil); err != nil || moved {
		t.Fatalf("QueueDeliveries of a consumer without a checkpoint: %v, %v", moved, err)
	}
	if at, err := f.Checkpoint(f.Context(), "c"); err != nil || at != "2" {
		t.Fatalf("the checkpoint is %q, %v", at, err)
	}
	f.reopen()
	if due, _, err := f.webhooks().ClaimDeliveries(f.Context(), 5, []string{"r", "none"}, time.Hour); err != nil || len(due) != 1 || due[0].ID != "c1" {
		t.Fatalf("claimed but for r: %+v, %v", due, err)
	} else {
		f.settle(due[0], ledger.DeliveryResult{State: job.DeliveryGivenUp, Status: 410, Problem: strings.Repeat("ö", 400)})
	}
	if d := f.delivery("c1"); d.State != job.DeliveryGivenUp || d.Status != 410 || d.Problem != strings.Repeat("ö", 256) || d.Settled.IsZero() || !d.Due.IsZero() || d.Tries != 1 {
		t.Fatalf("given up: %+v", d)
	}
	claimed := f.take(time.Hour, "a1", "b1")
	f.take(time.Hour)
	byID := map[string]job.Delivery{}
	for _, d := range claimed {
		byID[d.ID] = d
		if want := message(d.ID, "r", string(d.Job)); d.Run != 1 || d.Kind != want.Kind || d.Tenant != "wool" || d.Receiver != "r" || d.Tries != 1 || d.State != job.DeliveryWaiting || d.Created.IsZero() || d.Began.Before(d.Created) {
			t.Fatalf("claimed %+v", d)
		}
	}
	_, next, err := f.webhooks().ClaimDeliveries(f.Context(), 1, nil, time.Hour)
	if err != nil || next <= 0 || next > time.Hour {
		t.Fatalf("the next is due in %v, %v", next, err)
	}

	// One that is to be tried again keeps the one behind it waiting.
	f.settle(byID["a1"], ledger.DeliveryResult{State: job.DeliveryWaiting, Pause: time.Hour, Status: 500, Problem: "no"})
	f.take(time.Hour)
	if d := f.delivery("a1"); d.State != job.DeliveryWaiting || d.Status != 500 || d.Problem != "no" || !d.Due.After(d.Created) {
		t.Fatalf("to be tried again: %+v", d)
	}
	if d := f.delivery("a2"); d.State != job.DeliveryWaiting || !d.Due.IsZero() || d.Tries != 0 {
		t.Fatalf("waits for another: %+v", d)
	}
	f.crash()
	again, err := f.webhooks().Redeliver(f.Context(), "a1", "wool")
	if err != nil || again.ID != "a1" || again.Due.IsZero() {
		t.Fatalf("Redeliver: %+v, %v", again, err)
	}
	second := f.take(0, "a1")
	if second[0].Tries != 1 {
		t.Fatalf("tries begin again on request: %+v", second[0])
	}
	third := f.take(time.Hour, "a1") // its hold is over
	f.settle(second[0], ledger.DeliveryResult{State: job.DeliveryDelivered, Status: 200})
	if d := f.delivery("a1"); d.State != job.DeliveryWaiting || third[0].Tries != 2 {
		t.Fatalf("a try that was given up settled %+v", d)
	}
	for range 2 { // settling again changes nothing
		f.settle(third[0], ledger.DeliveryResult{State: job.DeliveryDelivered, Status: 204})
	}
	behind := f.take(time.Hour, "a2")
	f.queue("2", "4", message("a3", "r", "x"), message("a4", "r", "x"))
	f.take(time.Hour)

	// One that is delivered again is out of order, and holds up nothing.
	if _, err := f.webhooks().Redeliver(f.Context(), "a1", ""); err != nil {
		t.Fatal(err)
	}
	f.undelivered()
	outOfOrder := f.take(time.Hour, "a1")
	f.undelivered()
	f.settle(behind[0], ledger.DeliveryResult{State: job.DeliveryGivenUp, Problem: "no answer"})
	f.take(time.Hour, "a3")
	f.settle(outOfOrder[0], ledger.DeliveryResult{State: job.DeliveryDelivered, Status: 200})
	f.take(time.Hour)
	if waiting, err := f.webhooks().Redeliver(f.Context(), "a4", ""); err != nil || !waiting.Due.IsZero() {
		t.Fatalf("Redeliver of one that waits for another: %+v, %v", waiting, err)
	}
	f.take(time.Hour)
	for _, unknown := range [][2]string{{"none", ""}, {"a1", "meat"}} {
		if _, err := f.webhooks().Redeliver(f.Context(), unknown[0], unknown[1]); !errors.Is(err, ledger.ErrNoDelivery) || !errdefs.IsNotFound(err) {
			t.Fatalf("Redeliver(%q): %v", unknown, err)
		}
	}
}

// undelivered checks the count of messages that wait against their list.
func (f *fixture) undelivered() {
	f.Helper()
	listed, _, err := f.webhooks().Deliveries(f.Context(), job.DeliveryFilter{State: job.DeliveryWaiting}, 0, 1000)
	if err != nil {
		f.Fatalf("list messages that wait: %v", err)
	}
	want := map[string]ledger.Backlog{}
	for _, d := range listed {
		b := want[d.Receiver]
		if d.Receiver == "https://example.com" {
			b = want[""]
		} else {
			b.Receiver = d.Receiver
		}
		if b.Messages++; b.Oldest.IsZero() || d.Created.Before(b.Oldest) {
			b.Oldest = d.Created
		}
		want[b.Receiver] = b
	}
	got, err := f.webhooks().Undelivered(f.Context())
	if err != nil || len(got) != len(want) || !slices.IsSortedFunc(got, func(a, b ledger.Backlog) int { return cmp.Compare(a.Receiver, b.Receiver) }) {
		f.Fatalf("%+v wait, %v; want %+v", got, err, want)
	}
	for _, b := range got {
		if w := want[b.Receiver]; b.Messages != w.Messages || !b.Oldest.Equal(w.Oldest) {
			f.Fatalf("%+v wait, want %+v", b, w)
		}
	}
}

// testDeliveriesListed lists and removes messages.
func (s suite) testDeliveriesListed(t *testing.T) {
	f := s.open(t, Options{})
	if _, _, err := f.webhooks().Deliveries(f.Context(), job.DeliveryFilter{}, 0, 0); !errdefs.IsInternal(err) {
		t.Fatalf("a page of none: %v", err)
	}
	var all []job.Delivery
	for i := range 24 {
		m := message(fmt.Sprint("m", i), []string{"r", "https://example.com"}[i%2], fmt.Sprint("job", i%3))
		m.Tenant = []string{"", "wool", "meat", "wool"}[i%4]
		all = append(all, m)
	}
	f.queue("", "1", all...)
	for _, d := range f.take(time.Hour, "m0", "m1", "m2", "m3", "m4", "m5") {
		if d.ID != "m0" {
			f.settle(d, ledger.DeliveryResult{State: job.DeliveryDelivered, Status: 200})
		}
	}
	f.undelivered()
	for _, filter := range []job.DeliveryFilter{
		{}, {Job: "job1"}, {Tenant: "wool"}, {Job: "job2", Tenant: "wool"}, {Receiver: "r"}, {State: job.DeliveryDelivered},
		{State: job.DeliveryWaiting, Receiver: "r", Job: "job0", Tenant: "meat"}, {Tenant: "none"}, {State: job.DeliveryGivenUp},
	} {
		var want []string
		for i, m := range slices.Backward(all) {
			m.State = job.DeliveryWaiting
			if i >= 1 && i <= 5 {
				m.State = job.DeliveryDelivered
			}
			if filter.Match(m) {
				want = append(want, m.ID)
			}
		}
		for _, limit := range []int{1, 5, 100} {
			var got []string
			for cursor := int64(0); ; {
				page, next, err := f.webhooks().Deliveries(f.Context(), filter, cursor, limit)
				if err != nil || len(page) > limit || next != 0 && len(page) == 0 {
					t.Fatalf("%d messages, next %d, %v", len(page), next, err)
				}
				for _, d := range page {
					got = append(got, d.ID)
					if d.Payload != nil {
						t.Fatalf("listed with payload: %+v", d)
					}
				}
				if cursor = next; cursor == 0 {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%+v by %d: %q, want %q", filter, limit, got, want)
			}
		}
	}
	expire := func(age time.Duration, keep, limit, want int) {
		t.Helper()
		if gone, err := f.webhooks().ExpireDeliveries(f.Context(), age, keep, limit); err != nil || gone != want {
			t.Fatalf("%d are gone, %v; want %d", gone, err, want)
		}
	}
	expire(time.Hour, 100, 10, 0)
	expire(time.Hour, 21, 10, 2) // m1 and m2: m0 is not settled
	expire(0, 100, 2, 2)
	expire(0, 100, 2, 1)
	expire(0, 0, 100, 0)
	if f.delivery("m0").State != job.DeliveryWaiting {
		t.Fatal("a message that waits has another state")
	}
}

// testDeliveriesConcurrent has many queue, claim and settle messages at once: each is
// claimed once, and in the order of its job.
func (s suite) testDeliveriesConcurrent(t *testing.T) {
	f := s.open(t, Options{})
	const jobs, each, workers = 10, 5, 4
	w := f.webhooks()
	var mu sync.Mutex
	claimed := map[job.ID][]string{}
	total := 0
	var group sync.WaitGroup
	group.Go(func() {
		at := job.Cursor("")
		for n := range each {
			var messages []job.Delivery
			for j := range jobs {
				messages = append(messages, message(fmt.Sprintf("%d-%d", j, n), "r", fmt.Sprint("job", j)))
			}
			next := job.Cursor(fmt.Sprint(n + 1))
			if moved, err := w.QueueDeliveries(t.Context(), "c", at, next, messages, nil); err != nil || !moved {
				t.Errorf("QueueDeliveries: %v, %v", moved, err)
			}
			at = next
		}
	})
	hung := time.Now().Add(patience)
	for range workers {
		group.Go(func() {
			for time.Now().Before(hung) && !t.Failed() {
				mu.Lock()
				over := total == jobs*each
				mu.Unlock()
				if over {
					return
				}
				due, _, err := w.ClaimDeliveries(t.Context(), 3, nil, time.Hour)
				if err != nil {
					t.Errorf("ClaimDeliveries: %v", err)
				}
				for _, d := range due {
					mu.Lock()
					claimed[d.Job] = append(claimed[d.Job], d.ID)
					total++
					mu.Unlock()
					if err := w.SettleDelivery(t.Context(), d.ID, d.Tries, ledger.DeliveryResult{State: job.DeliveryDelivered}); err != nil {
						t.Errorf("SettleDelivery: %v", err)
					}
				}
				if len(due) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	group.Wait()
	for j := range jobs {
		var want []string
		for n := range each {
			want = append(want, fmt.Sprintf("%d-%d", j, n))
		}
		if got := claimed[job.ID(fmt.Sprint("job", j))]; !slices.Equal(got, want) {
			t.Errorf("the messages about job %d were claimed as %q", j, got)
		}
	}
}
