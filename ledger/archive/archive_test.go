package archive_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/archive"
	"github.com/iterait/shepherd/ledger/sqlite"
)

var update = flag.Bool("update", false, "write the golden files")

func open(t *testing.T) *sqlite.Ledger {
	t.Helper()
	l, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Retention: func(rec job.Record) time.Duration {
		if rec.Keep != nil {
			return *rec.Keep
		}
		return 0
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func write(t *testing.T, l archive.Source) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := archive.Write(t.Context(), &out, l); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// sample has a record of every kind.
func sample(t *testing.T) *sqlite.Ledger {
	t.Helper()
	l := open(t)
	ctx := t.Context()
	must := func(rec job.Record, err error) job.Record {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	create := func(id string, more ...func(*job.Record)) {
		t.Helper()
		rec := job.Record{ID: job.ID(id), Model: job.Model{Name: "m", Version: "v1"}}
		for _, change := range more {
			change(&rec)
		}
		must(l.Create(ctx, rec))
	}
	claim := func(id string, ahead bool) *ledger.Claim {
		t.Helper()
		c, err := l.Claim(ctx, ledger.Slot{Node: "node", Sheep: "one", Only: job.ID(id), Ahead: ahead})
		if err != nil || c == nil {
			t.Fatal(c, err)
		}
		return c
	}
	create("done", func(r *job.Record) {
		r.Priority, r.Sheep, r.Tenant, r.Keep = 7, "one", "team", new(48*time.Hour)
		r.Trace = job.Trace{Parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", State: "a=b"}
		r.Limits = job.Limits{Retries: new(2), RunTimeout: new(90 * time.Second)}
		r.Deadline = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
		r.Webhook = job.Webhook{URL: "https://example.com/done"}
	})
	c := claim("done", true)
	must(l.Release(ctx, "done", c.Token, ledger.Return{Cause: job.CauseTakenOver, Reason: "an idle sheep runs the job"}))
	c = claim("done", false)
	must(l.Finish(ctx, "done", c.Token, ledger.Outcome{
		State: job.Done, Cause: job.CauseDone, Usage: job.Usage{GPUMemory: 1 << 30, GPUTime: 1500 * time.Millisecond},
		Phases: job.Phases{Stage: time.Millisecond, Load: 2 * time.Second, Run: 3 * time.Second, Collect: time.Microsecond},
		Log:    "1:2/1:9", Warnings: []string{"outputs/x is not stored"},
	}))
	create("failed")
	c = claim("failed", false)
	must(l.Finish(ctx, "failed", c.Token, ledger.Outcome{
		State: job.Failed, Cause: job.CauseError, Reason: "ValueError: no", Failure: &job.Failure{Message: "ValueError: no", Type: "<class 'ValueError'>", Traceback: "['x']"},
	}))
	create("failed") // its second run
	create("cancelled")
	must(l.Cancel(ctx, "cancelled"))
	create("later", func(r *job.Record) {
		r.Webhook = job.Webhook{URL: "https://example.com/hook", Events: "ended,started"}
		r.NotBefore, r.WaitUntil = time.Date(2098, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2098, 2, 1, 0, 0, 0, 0, time.UTC)
	})
	create("prepared")
	claim("prepared", true)
	create("running")
	claim("running", false)
	create("cancelling")
	claim("cancelling", false)
	must(l.Cancel(ctx, "cancelling"))
	create("last")
	create("blocked", func(r *job.Record) { r.After, r.Group = []job.ID{"running", "last"}, "group" })
	create("lost", func(r *job.Record) { r.After = []job.ID{"cancelling"} })
	return l
}

// Restored records are the same as those written, except for held jobs: these are queued or
// cancelled, and their attempts have ended.
func TestRoundTrip(t *testing.T) {
	from, to := sample(t), open(t)
	text := write(t, from)
	n, err := archive.Restore(t.Context(), strings.NewReader(text), to)
	if err != nil || n != 10 {
		t.Fatalf("%d records are restored, %v", n, err)
	}
	before, after := lines(text), lines(write(t, to))
	for id, line := range before {
		switch id {
		case "prepared", "running", "cancelling", "lost":
		default:
			if after[id] != line {
				t.Errorf("%s was\n%s and is\n%s", id, line, after[id])
			}
		}
	}
	for id, want := range map[job.ID]job.State{"prepared": job.Queued, "running": job.Queued, "cancelling": job.Cancelled} {
		rec, err := to.Get(t.Context(), id)
		if err != nil || rec.State != want || rec.Holder != "" || rec.Attempt != 1 || rec.Spent != 1 || rec.Cancelling {
			t.Errorf("%s is %+v, %v", id, rec, err)
		}
		attempts, err := to.Attempts(t.Context(), id)
		if err != nil || len(attempts) != 1 || attempts[0].Cause != job.CauseInterrupted || attempts[0].Ended.IsZero() {
			t.Errorf("%s has the attempts %+v, %v", id, attempts, err)
		}
	}
	events, _, err := to.Events(t.Context(), "", ledger.EventFilter{}, 100)
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, string(e.Job)+" "+string(e.Kind))
	}
	if got := strings.Join(kinds, ", "); err != nil || got != "prepared returned, running returned, cancelling ended, lost ended" {
		t.Errorf("the events are %s, %v", got, err)
	}
	// The order of the queue is the same, and the restored jobs can be claimed.
	for _, want := range []job.ID{"failed", "prepared", "running", "last"} {
		c, err := to.Claim(t.Context(), ledger.Slot{Node: "node", Sheep: "two"})
		if err != nil || c == nil || c.ID != want {
			t.Fatalf("%v is claimed, want %s (%v)", c, want, err)
		}
	}
	if due, next, err := to.Due(t.Context(), 10); err != nil || len(due) != 0 || next < 47*time.Hour {
		t.Errorf("files of %v are due, others in %s, %v", due, next, err)
	}
	if _, err := archive.Restore(t.Context(), strings.NewReader(text), to); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "job done") {
		t.Errorf("restored again: %v", err)
	}
}

// lines returns the lines of an archive by the id of their jobs.
func lines(text string) map[string]string {
	found := make(map[string]string)
	for line := range strings.Lines(text) {
		var id string
		if _, err := fmt.Sscanf(line, `{"id":%q`, &id); err == nil {
			found[id] = line
		}
	}
	return found
}

// An archive of the first release can still be read.
func TestGolden(t *testing.T) {
	const golden = "testdata/version-1.jsonl"
	if *update {
		if err := os.WriteFile(golden, []byte(write(t, sample(t))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	kept := &recorder{}
	if err := archive.Read(bytes.NewReader(text), kept.add); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Write(t.Context(), &again, kept); err != nil {
		t.Fatal(err)
	}
	if again.String() != string(text) {
		t.Errorf("read and written again it is\n%s", again.String())
	}
}

// recorder collects the records that are restored.
type recorder struct {
	ledger.Ledger
	saved []ledger.Saved
}

func (r *recorder) add(s ledger.Saved) error {
	r.saved = append(r.saved, s)
	return nil
}

func (r *recorder) List(context.Context, ledger.Filter, int64, int) ([]job.Record, int64, error) {
	var list []job.Record
	for _, s := range r.saved {
		list = append(list, s.Record)
	}
	return list, 0, nil
}

func (r *recorder) JobWebhooks(_ context.Context, runs []ledger.JobRun) (map[ledger.JobRun]job.Webhook, error) {
	found := map[ledger.JobRun]job.Webhook{}
	for _, s := range r.saved {
		found[ledger.JobRun{Job: s.Record.ID, Run: s.Record.Run}] = s.Record.Webhook
	}
	return found, nil
}

func (r *recorder) Get(_ context.Context, id job.ID) (job.Record, error) {
	for _, s := range r.saved {
		if s.Record.ID == id {
			return s.Record, nil
		}
	}
	return job.Record{}, ledger.ErrNotFound
}

func (r *recorder) Attempts(_ context.Context, id job.ID) ([]job.Attempt, error) {
	for _, s := range r.saved {
		if s.Record.ID == id {
			return s.Attempts, nil
		}
	}
	return nil, nil
}

// A file that is not an archive, or is damaged or cut off, is refused with the line and
// changes nothing.
func TestBad(t *testing.T) {
	const head = `{"shepherd_ledger":1}` + "\n"
	const good = `{"id":"a","model":{"name":"m","version":"v"},"state":"queued","enqueued_at":"2026-01-02T03:04:05.000000Z","run":1}` + "\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":            {"", "line 1: the archive is empty"},
		"no archive":       {"hello\n", "line 1: this is no archive"},
		"newer":            {`{"shepherd_ledger":2}` + "\n", "line 1: the archive has version 2"},
		"cut off":          {head + good, "line 3: the archive is cut off"},
		"cut in a line":    {head + good[:40], "line 2: the archive is cut off"},
		"a record missing": {head + good + `{"records":2}` + "\n", "line 3: the archive had 2 records when it was written and has 1"},
		"more at the end":  {head + `{"records":0}` + "\n" + good, "line 3: something follows"},
		"unknown field":    {head + strings.Replace(good, `"run"`, `"colour":1,"run"`, 1) + `{"records":1}` + "\n", `line 2: json: unknown field "colour"`},
		"bad id":           {head + strings.Replace(good, `"a"`, `"../a"`, 1) + `{"records":1}` + "\n", "line 2: "},
		"no state":         {head + strings.Replace(good, `queued`, `asleep`, 1) + `{"records":1}` + "\n", `line 2: job a has the unknown state "asleep"`},
		"ended, no time":   {head + strings.Replace(good, `queued`, `done`, 1) + `{"records":1}` + "\n", "line 2: job a is done, which does not fit its finished_at"},
		"running, by whom": {head + strings.Replace(good, `queued`, `processing`, 1) + `{"records":1}` + "\n", "line 2: job a is under way"},
		"long line":        {head + strings.Repeat("x", 5<<20), "line 2: the line is longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t)
			n, err := archive.Restore(t.Context(), strings.NewReader(c.text), l)
			if n != 0 || !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), c.want) {
				t.Fatalf("%d restored, %v; want %q", n, err, c.want)
			}
			counts, err := l.Count(t.Context())
			if err != nil || counts[job.Queued] != 0 {
				t.Errorf("the ledger has %v, %v", counts, err)
			}
		})
	}
}

// Records that were read are the same after they were written and read again.
func FuzzRead(f *testing.F) {
	golden, err := os.ReadFile("testdata/version-1.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add([]byte(`{"shepherd_ledger":1}` + "\n" + `{"records":0}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		first := &recorder{}
		if err := archive.Read(bytes.NewReader(text), first.add); err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("the error %v has the wrong class", err)
			}
			return
		}
		ids := make(map[job.ID]bool)
		for _, s := range first.saved {
			if ids[s.Record.ID] {
				return // the recorder finds only the first
			}
			ids[s.Record.ID] = true
		}
		var written, again bytes.Buffer
		if _, err := archive.Write(t.Context(), &written, first); err != nil {
			t.Fatal(err)
		}
		second := &recorder{}
		if err := archive.Read(bytes.NewReader(written.Bytes()), second.add); err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, written.Bytes())
		}
		if _, err := archive.Write(t.Context(), &again, second); err != nil || !bytes.Equal(written.Bytes(), again.Bytes()) {
			t.Fatalf("written again (%v) it is\n%s, was\n%s", err, again.Bytes(), written.Bytes())
		}
	})
}
