package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// request is a request that a receiver got.
type request struct {
	at                       time.Time
	url, id, stamp, sign     string
	kind, about, contentType string
	body                     []byte
}

// wire is a transport that records requests and answers them.
type wire struct {
	mu     sync.Mutex
	got    []request
	answer func(request) (status int, header http.Header)
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var said struct {
		Type string
		Data struct{ Job string }
	}
	if err := json.Unmarshal(body, &said); err != nil {
		return nil, err
	}
	got := request{
		at: time.Now(), url: r.URL.String(), id: r.Header.Get("webhook-id"), stamp: r.Header.Get("webhook-timestamp"), sign: r.Header.Get("webhook-signature"),
		kind: said.Type, about: said.Data.Job, contentType: r.Header.Get("Content-Type"), body: body,
	}
	w.mu.Lock()
	w.got = append(w.got, got)
	w.mu.Unlock()
	status, header := 204, http.Header{}
	if w.answer != nil {
		status, header = w.answer(got)
	}
	return &http.Response{StatusCode: status, Header: header, Body: http.NoBody, Request: r}, nil
}

// said returns the messages that a URL got, as "JOB KIND".
func (w *wire) said(url string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var said []string
	for _, r := range w.got {
		if r.url == url {
			said = append(said, r.about+" "+strings.TrimPrefix(r.kind, "job."))
		}
	}
	return said
}

var testSecret = Secret("0123456789abcdef0123456789abcdef")

func secrets() ([]Secret, error) { return []Secret{testSecret}, nil }

// config has the receivers "all", of every event, and "wool", of the ends of one tenant's
// jobs.
func config(l *memory.Ledger, w *wire) Config {
	return Config{
		Ledger: l, Transport: w, Log: slog.New(slog.DiscardHandler), UserAgent: "shepherd/test",
		JobSecrets: func(tenant string) ([]Secret, error) { return []Secret{testSecret.ForTenant(tenant)}, nil },
		Event: func(e job.Event) (json.RawMessage, error) {
			return json.Marshal(map[string]any{"job": e.Job, "run": e.Run})
		},
		Receivers: []Receiver{
			{Name: "all", URL: "https://all.example", Secrets: secrets, Events: job.WebhookEvents()},
			{Name: "wool", URL: "https://wool.example", Secrets: secrets, Tenant: "wool"},
		},
	}
}

func create(t *testing.T, l ledger.Ledger, rec job.Record) {
	t.Helper()
	rec.Model = job.Model{Name: "m"}
	if _, err := l.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
}

func cancel(t *testing.T, l ledger.Ledger, id job.ID) {
	t.Helper()
	if _, err := l.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, w *wire, url string, said ...string) {
	t.Helper()
	got := w.said(url)
	slices.Sort(got) // messages about several jobs have no order
	slices.Sort(said)
	if !slices.Equal(got, said) {
		t.Fatalf("%s got %q, want %q", url, got, said)
	}
}

// Receivers get messages about all events from the first start on, also those while no daemon
// ran, and none twice.
func TestDeliver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := memory.New(memory.Config{}), &wire{}
		defer l.Close()
		create(t, l, job.Record{ID: "before"})
		d := New(config(l, w))
		d.Start()
		synctest.Wait()
		create(t, l, job.Record{ID: "a", Tenant: "wool", Webhook: job.Webhook{URL: "https://job.example/a?x=1"}})
		create(t, l, job.Record{ID: "b", Tenant: "meat", Webhook: job.Webhook{URL: "https://job.example/b", Events: "ended,queued"}})
		synctest.Wait()
		d.Stop()
		d.Stop()
		cancel(t, l, "a")
		cancel(t, l, "b")
		create(t, l, job.Record{ID: "b"}) // the next run has no webhook
		cancel(t, l, "b")
		want(t, w, "https://all.example", "a queued", "b queued")
		d = New(config(l, w))
		d.Start()
		synctest.Wait()
		d.Stop()
		if got := w.said("https://all.example"); len(got) != 6 {
			t.Fatalf("all got %q", got)
		}
		want(t, w, "https://wool.example", "a ended")
		want(t, w, "https://job.example/a?x=1", "a ended")
		if got := w.said("https://job.example/b"); !slices.Equal(got, []string{"b queued", "b ended"}) {
			t.Fatalf("the messages about b came as %q", got)
		}
		for _, r := range w.got {
			secret := testSecret
			if strings.HasPrefix(r.url, "https://job.example") {
				secret = testSecret.ForTenant(map[string]string{"a": "wool", "b": "meat"}[r.about])
			}
			var seconds int64
			if _, err := fmt.Sscan(r.stamp, &seconds); err != nil || seconds != r.at.Unix() {
				t.Fatalf("timestamp %q at %v", r.stamp, r.at)
			}
			if want := Sign([]Secret{secret}, r.id, r.at, r.body); r.sign != want || r.contentType != "application/json" {
				t.Fatalf("%s: signature %q, want %q", r.url, r.sign, want)
			}
		}
		for tenant, n := range map[string]int{"wool": 2, "meat": 2, "": 10} {
			listed, _, err := d.Deliveries(t.Context(), job.DeliveryFilter{Tenant: tenant}, 0, 100)
			if err != nil || len(listed) != n {
				t.Errorf("%d messages of tenant %q, %v; want %d", len(listed), tenant, err, n)
			}
		}
	})
}

// A message that is refused is tried with growing pauses for a day, with one id. Later
// messages about the same job for the same receiver wait for it, and no others.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memory.New(memory.Config{})
		defer l.Close()
		w := &wire{answer: func(r request) (int, http.Header) {
			if r.about == "bad" && r.kind == "job.queued" && r.url == "https://all.example" {
				return 500, nil
			}
			return 200, nil
		}}
		d := New(config(l, w))
		d.Start()
		defer d.Stop()
		synctest.Wait()
		begin := time.Now()
		create(t, l, job.Record{ID: "bad", Tenant: "wool"})
		cancel(t, l, "bad")
		create(t, l, job.Record{ID: "good"})
		synctest.Wait()
		want(t, w, "https://all.example", "bad queued", "good queued")
		want(t, w, "https://wool.example", "bad ended")
		time.Sleep(giveUpAfter + time.Hour)
		synctest.Wait()
		var tries []request
		for _, r := range w.got {
			if r.about == "bad" && r.kind == "job.queued" {
				tries = append(tries, r)
			}
		}
		if len(tries) < 28 || len(tries) > 45 {
			t.Fatalf("%d tries in a day", len(tries))
		}
		for i, r := range tries {
			if r.id != tries[0].id || string(r.body) != string(tries[0].body) || i > 0 && r.at.Sub(tries[i-1].at) > longestPause*6/5+time.Second {
				t.Fatalf("try %d: %+v after %v", i+1, r, tries[max(i-1, 0)].at)
			}
		}
		if first, last := tries[1].at.Sub(tries[0].at), tries[len(tries)-1].at.Sub(begin); first < 3*time.Second || first > 7*time.Second || last < 22*time.Hour || last > giveUpAfter {
			t.Fatalf("the second try was %s after the first, the last after %s", first, last)
		}
		if got := w.said("https://all.example"); got[len(got)-1] != "bad ended" {
			t.Fatalf("what waited behind the message is not sent: %q", got[len(got)-3:])
		}

		// On request it is sent again, out of order.
		listed, _, err := d.Deliveries(t.Context(), job.DeliveryFilter{State: job.DeliveryGivenUp}, 0, 10)
		if err != nil || len(listed) != 1 || listed[0].Status != 500 || !strings.Contains(listed[0].Problem, "500 Internal Server Error") {
			t.Fatalf("given up: %+v, %v", listed, err)
		}
		w.answer = nil
		if _, err := d.Redeliver(t.Context(), listed[0].ID, ""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		last := w.got[len(w.got)-1]
		if last.id != listed[0].ID {
			t.Fatalf("sent again: %+v", last)
		}
		if _, err := d.Redeliver(t.Context(), listed[0].ID, "meat"); err != job.ErrNoMessage {
			t.Fatalf("another tenant's: %v", err)
		}
	})
}

// The response of a receiver decides whether a message is tried again.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		status  int
		header  http.Header
		state   job.DeliveryState
		atLeast time.Duration
		problem string
	}{
		{status: 200, state: job.DeliveryDelivered},
		{status: 299, state: job.DeliveryDelivered},
		{status: 302, header: http.Header{"Location": {"https://other.example"}}, state: job.DeliveryWaiting, problem: "302 Found; redirects are not followed"},
		{status: 410, state: job.DeliveryGivenUp, problem: "410 Gone"},
		{status: 404, state: job.DeliveryWaiting, problem: "404 Not Found"},
		{status: 429, header: http.Header{"Retry-After": {"600"}}, state: job.DeliveryWaiting, atLeast: 10 * time.Minute, problem: "429"},
		{status: 503, header: http.Header{"Retry-After": {"Sat, 01 Jan 2000 00:20:00 GMT"}}, state: job.DeliveryWaiting, atLeast: 19 * time.Minute, problem: "503"},
		{status: 503, header: http.Header{"Retry-After": {"99999999999"}}, state: job.DeliveryWaiting, problem: "503"},
		{status: 599, state: job.DeliveryWaiting, problem: "the receiver answered 599"},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := memory.New(memory.Config{})
			defer l.Close()
			w := &wire{answer: func(request) (int, http.Header) { return c.status, c.header }}
			cfg := config(l, w)
			cfg.Receivers = nil
			d := New(cfg)
			d.Start()
			defer d.Stop()
			synctest.Wait()
			create(t, l, job.Record{ID: "x", Webhook: job.Webhook{URL: "http://job.example", Events: "queued"}})
			synctest.Wait()
			listed, _, err := d.Deliveries(t.Context(), job.DeliveryFilter{}, 0, 10)
			if err != nil || len(listed) != 1 {
				t.Fatalf("%+v, %v", listed, err)
			}
			m := listed[0]
			if m.State != c.state || m.Status != c.status || !strings.Contains(m.Problem, c.problem) || m.Tries != 1 {
				t.Errorf("%d: %+v", c.status, m)
			}
			if c.state == job.DeliveryWaiting && (m.Due.Sub(m.Created) < max(c.atLeast, 4*time.Second) || m.Due.Sub(m.Created) > longestPause) {
				t.Errorf("%d: tried again after %s", c.status, m.Due.Sub(m.Created))
			}
			if len(w.got) != 1 {
				t.Errorf("%d: %d requests", c.status, len(w.got))
			}
		})
	}
}

// A receiver that does not answer does not delay others.
func TestSlowReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := memory.New(memory.Config{}), &wire{}
		defer l.Close()
		cfg := config(l, w)
		cfg.Receivers = nil
		cfg.Transport = hanging{w}
		d := New(cfg)
		d.Start()
		defer d.Stop()
		synctest.Wait()
		for i := range 500 {
			create(t, l, job.Record{ID: job.ID(fmt.Sprint("hangs", i)), Webhook: job.Webhook{URL: "https://hangs.example", Events: "queued"}})
		}
		create(t, l, job.Record{ID: "fine", Webhook: job.Webhook{URL: "https://fine.example", Events: "queued"}})
		synctest.Wait()
		want(t, w, "https://fine.example", "fine queued")
	})
}

// hanging answers no request to hangs.example.
type hanging struct{ *wire }

func (h hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == "hangs.example" {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return h.wire.RoundTrip(r)
}

// Events that are no longer kept are skipped; there are messages about those after them.
func TestEventsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := memory.New(memory.Config{EventNumber: 4}), &wire{}
		defer l.Close()
		d := New(config(l, w))
		d.Start()
		synctest.Wait()
		create(t, l, job.Record{ID: "first"})
		synctest.Wait()
		d.Stop()
		for i := range 6 {
			create(t, l, job.Record{ID: job.ID(fmt.Sprint("x", i))})
		}
		d = New(config(l, w))
		d.Start()
		defer d.Stop()
		synctest.Wait()
		create(t, l, job.Record{ID: "last"})
		synctest.Wait()
		want(t, w, "https://all.example", "first queued", "last queued")
	})
}

// A cursor is stored from time to time while no receiver wants the events.
func TestCheckpointKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := memory.New(memory.Config{}), &wire{}
		defer l.Close()
		cfg := config(l, w)
		cfg.JobSecrets, cfg.Receivers = nil, cfg.Receivers[1:]
		d := New(cfg)
		d.Start()
		defer d.Stop()
		synctest.Wait()
		at := func() job.Cursor {
			kept, err := l.Checkpoint(context.Background(), "webhook/wool")
			if err != nil {
				t.Fatal(err)
			}
			return kept
		}
		begin := at()
		create(t, l, job.Record{ID: "x", Tenant: "wool"})
		time.Sleep(checkpointEvery / 2)
		synctest.Wait()
		if at() != begin {
			t.Fatal("the cursor is kept at each event")
		}
		time.Sleep(checkpointEvery)
		synctest.Wait()
		if at() == begin {
			t.Fatal("the cursor is not kept")
		}
	})
}

// unsure is a ledger whose connection breaks when messages have just been queued: it does
// so, and says that it failed, or that another node was faster.
type unsure struct {
	*memory.Ledger
	err error
}

func (u unsure) QueueDeliveries(ctx context.Context, consumer string, from, to job.Cursor, messages []job.Delivery, complete []ledger.JobRun) (bool, error) {
	moved, err := u.Ledger.QueueDeliveries(ctx, consumer, from, to, messages, complete)
	if err == nil && len(messages) > 0 {
		return false, u.err
	}
	return moved, err
}

// A message that was queued, although the ledger does not say so, is sent soon.
func TestQueuedUnawares(t *testing.T) {
	for name, answer := range map[string]error{"an error": errdefs.ErrUnavailable, "another node": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, w := memory.New(memory.Config{}), &wire{}
				defer l.Close()
				cfg := config(l, w)
				cfg.Ledger, cfg.JobSecrets, cfg.Receivers = unsure{l, answer}, nil, cfg.Receivers[:1]
				d := New(cfg)
				d.Start()
				defer d.Stop()
				synctest.Wait()
				create(t, l, job.Record{ID: "a"})
				time.Sleep(time.Minute)
				synctest.Wait()
				want(t, w, "https://all.example", "a queued")
			})
		})
	}
}

func TestNotStarted(t *testing.T) {
	l := memory.New(memory.Config{})
	defer l.Close()
	d := New(config(l, &wire{}))
	d.Stop()
	d.Start()
	d.Stop()
}

// The receiver of a group gets one message when all its jobs have ended, also where several
// end at the same time, and another after one of them ran again.
func TestGroupEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := memory.New(memory.Config{}), &wire{}
		defer l.Close()
		cfg := config(l, w)
		cfg.Receivers = nil
		d := New(cfg)
		d.Start()
		synctest.Wait()
		hook := job.Webhook{URL: "https://job.example/group", Group: "g"}
		var recs []job.Record
		for _, id := range []job.ID{"a", "b", "c"} {
			recs = append(recs, job.Record{ID: id, Model: job.Model{Name: "m"}, Tenant: "wool", Group: "g", Webhook: hook})
		}
		if _, err := l.CreateAll(t.Context(), recs); err != nil {
			t.Fatal(err)
		}
		create(t, l, job.Record{ID: "another's", Tenant: "meat", Group: "g"})
		cancel(t, l, "a")
		synctest.Wait()
		want(t, w, hook.URL)
		d.Stop()
		cancel(t, l, "b")
		cancel(t, l, "c")
		d = New(cfg)
		d.Start()
		synctest.Wait()
		want(t, w, hook.URL, " group.ended")
		var said struct {
			Timestamp string
			Data      map[string]any
		}
		if err := json.Unmarshal(w.got[0].body, &said); err != nil || fmt.Sprint(said.Data) != "map[cancelled:3 done:0 failed:0 group:g]" || said.Timestamp == "" {
			t.Errorf("%s, %v", w.got[0].body, err)
		}
		create(t, l, recs[1])
		synctest.Wait()
		want(t, w, hook.URL, " group.ended")
		cancel(t, l, "b")
		synctest.Wait()
		want(t, w, hook.URL, " group.ended", " group.ended")
		d.Stop()
	})
}
