package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/storagetest"
)

// inputsIn are the files below the inputs/ that a runner finds.
func inputsIn(in messenger.Input) (map[string]string, error) {
	found := make(map[string]string)
	root := filepath.Join(in.IODataRoot, string(in.JobID), job.InputDir)
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(root, path)
		found[name] = string(data)
		return err
	})
	return found, err
}

// join writes the names and contents of all inputs to outputs/output.
func join(ctx context.Context, m job.Model, in messenger.Input) error {
	if m.Name != "join" {
		return echo(ctx, m, in)
	}
	found, err := inputsIn(in)
	if err != nil {
		return err
	}
	var lines []string
	for _, name := range []string{"input", "aaa/output", "bbb/output"} {
		if content, ok := found[name]; ok {
			lines = append(lines, name+"="+content)
			delete(found, name)
		}
	}
	for name := range maps.Keys(found) {
		lines = append(lines, "more: "+name)
	}
	return os.WriteFile(filepath.Join(in.IODataRoot, string(in.JobID), job.OutputDir, job.DefaultOutput), []byte(strings.Join(lines, " ")), 0o600)
}

var joining = job.Model{Name: "join", Version: "1"}

// TestAfter runs jobs on the outputs of others, which they wait for.
func TestAfter(t *testing.T) {
	p := newFixture(t, "one", "two")
	p.handle = join
	p.keep(job.Retention{})
	p.submit("aaa", "m", "of a", func(r *job.Request) { r.NotBefore = time.Now().Add(time.Hour) })
	p.submit("bbb", "m", "of b")
	p.await("bbb", job.Done)
	if err := p.core.Submit(t.Context(), job.Request{ID: "both", Model: joining, After: []job.ID{"aaa", "bbb"}, Group: "g"}); err != nil {
		t.Fatal(err)
	}
	p.submit("own", "join", "mine", func(r *job.Request) { r.After = []job.ID{"bbb"} })
	p.await("own", job.Done)
	if got := p.output("own"); got != "input=mine bbb/output=of b" {
		t.Errorf("own inputs and another's outputs: %s", got)
	}
	view, err := p.core.View(t.Context(), "both")
	if err != nil || !view.Blocked || len(view.WaitsFor) != 1 || view.WaitsFor[0] != "aaa" || view.Position != 0 || view.ExpectedStart != nil {
		t.Errorf("%+v, %v", view, err)
	}
	if why, err := p.core.Explain(t.Context(), "both", ""); err != nil || why.Summary != "It waits for the outputs of job `aaa` (after)." {
		t.Errorf("explained as %q, %v", why.Summary, err)
	}
	if err := p.core.Cancel(t.Context(), "aaa"); err != nil {
		t.Fatal(err)
	}
	p.await("both", job.Failed)
	if why, err := p.core.Explain(t.Context(), "both", ""); err != nil || !strings.Contains(why.String(), "Job `aaa`, whose outputs this one needs, was cancelled; run that again, and then this one.") ||
		!strings.Contains(why.String(), "POST /jobs/both/retry") {
		t.Errorf("explained as %q, %v", why, err)
	}
	var after *job.AfterError
	if err := p.core.Retry(t.Context(), "both", job.Trace{}); !errors.As(err, &after) || after.ID != "aaa" || !strings.Contains(after.Problem, "POST /jobs/aaa/retry") {
		t.Errorf("run again: %v", err)
	}
	if err := p.core.Submit(t.Context(), job.Request{ID: "late", Model: joining, Payload: []byte("x"), After: []job.ID{"aaa"}}); !errors.As(err, &after) {
		t.Errorf("after one that was cancelled: %v", err)
	}
	if p.there("late") {
		t.Error("the place of a job that was refused is there")
	}

	if err := p.core.Remove(t.Context(), "aaa"); err != nil {
		t.Fatal(err)
	}
	if err := p.core.Retry(t.Context(), "both", job.Trace{}); !errors.As(err, &after) || !strings.Contains(after.Problem, "not known any more") {
		t.Errorf("run again: %v", err)
	}
	p.submit("aaa", "m", "of another a")
	if err := p.core.Retry(t.Context(), "both", job.Trace{}); err != nil {
		t.Fatal(err)
	}
	p.await("both", job.Done)
	if got := p.output("both"); got != "aaa/output=of another a bbb/output=of b" {
		t.Errorf("others' outputs alone: %s", got)
	}
	if rec, err := p.ledger.Get(t.Context(), "both"); err != nil || rec.Run != 2 || rec.Group != "g" || len(rec.After) != 2 {
		t.Errorf("%+v, %v", rec, err)
	}
}

// TestAfterRefused refuses jobs that could never run, and says why.
func TestAfterRefused(t *testing.T) {
	p := newFixture(t)
	p.start()
	p.submit("theirs", "m", "x", func(r *job.Request) { r.Tenant = "wool" })
	p.await("theirs", job.Done)
	for name, c := range map[string]struct {
		request job.Request
		says    string
	}{
		"unknown":      {job.Request{After: []job.ID{"unknown"}}, "after: there is no job `unknown` to wait for"},
		"another's":    {job.Request{Tenant: "meat", After: []job.ID{"theirs"}}, "after: there is no job `theirs` to wait for"},
		"itself":       {job.Request{After: []job.ID{"refused"}}, "after: there is no job `refused` to wait for"},
		"twice":        {job.Request{After: []job.ID{"theirs", "theirs"}}, "after: job `theirs` is named twice"},
		"no id":        {job.Request{After: []job.ID{"../x"}}, "after: job id"},
		"no group":     {job.Request{Group: "a b"}, "group: "},
		"in their way": {job.Request{After: []job.ID{"theirs"}}, `inputs: the file name "theirs/x" is in the way of the outputs of job ` + "`theirs`"},
	} {
		t.Run(name, func(t *testing.T) {
			c.request.ID, c.request.Model = "refused", joining
			err := p.core.SubmitFiles(t.Context(), c.request, sent("theirs/x", "mine"))
			if err == nil || !strings.HasPrefix(err.Error(), c.says) || !errors.As(err, new(*job.Invalid)) {
				t.Errorf("%v, want %s", err, c.says)
			}
			if p.there("refused") {
				t.Error("it has a place")
			}
		})
	}
}

// TestNeeded keeps the outputs that a job waits to use, whoever wants to remove them.
func TestNeeded(t *testing.T) {
	p := newFixture(t)
	needed := make(chan struct{}) // aaa ends when bbb is after it, or it might be removed before
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "aaa" {
			<-needed
		}
		return join(ctx, m, in)
	}
	p.keep(job.Retention{All: job.KeepTimes{Done: new(time.Hour)}})
	p.submit("aaa", "m", "of a", func(r *job.Request) { r.Keep = new(time.Nanosecond * 2000) })
	needs := func(r *job.Request) { r.After, r.NotBefore = []job.ID{"aaa"}, time.Now().Add(time.Hour) }
	p.submit("bbb", "join", "x", needs)
	close(needed)
	p.await("aaa", job.Done)
	if err := p.core.Remove(t.Context(), "aaa"); !errors.Is(err, job.ErrNeeded) {
		t.Errorf("removed: %v", err)
	}
	if err := p.core.Retry(t.Context(), "aaa", job.Trace{}); !errors.Is(err, job.ErrNeeded) {
		t.Errorf("run again: %v", err)
	}
	p.submit("short", "m", "x", func(r *job.Request) { r.Keep = new(time.Nanosecond * 2000) })
	p.await("short", job.Done)
	p.eventually("files that nobody needs are gone", func() bool { return !p.there("short") })
	if !p.there("aaa") {
		t.Fatal("outputs that are needed are gone")
	}
	if err := p.core.Cancel(t.Context(), "bbb"); err != nil {
		t.Fatal(err)
	}
	p.eventually("they are gone when nobody needs them", func() bool { return !p.there("aaa") })
}

// TestSubmitAll takes jobs in together, or none.
func TestSubmitAll(t *testing.T) {
	p := newFixture(t, "one", "two")
	p.handle = join
	p.config.MaxQueued = 3
	p.start()
	p.submit("old", "m", "of old")
	p.await("old", job.Done)
	if err := p.store.Init(t.Context(), "placed", []byte("in place")); err != nil {
		t.Fatal(err)
	}
	request := func(id string, with ...func(*job.Request)) job.Request {
		r := job.Request{ID: job.ID(id), Model: joining, Group: "g", Tenant: "wool"}
		for _, set := range with {
			set(&r)
		}
		return r
	}
	payload := func(r *job.Request) { r.Model, r.Payload = someModel, []byte("of "+string(r.ID[:1])) }
	after := func(ids ...job.ID) func(*job.Request) { return func(r *job.Request) { r.After = ids } }
	free := func(r *job.Request) { r.Tenant = "" }
	for name, c := range map[string]struct {
		rs    []job.Request
		index int
		says  string
	}{
		"twice":        {[]job.Request{request("xxx", payload), request("xxx", payload)}, 1, "job_id: another one"},
		"in use":       {[]job.Request{request("xxx", payload), request("old", payload)}, 1, "already submitted"},
		"no inputs":    {[]job.Request{request("xxx", payload), request("nowhere")}, 1, "does not exist"},
		"unknown":      {[]job.Request{request("xxx", payload), request("yyy", after("xxx", "unknown"))}, 1, "no job `unknown`"},
		"a later one":  {[]job.Request{request("xxx", after("yyy")), request("yyy", payload)}, 0, "no job `yyy`"},
		"of another":   {[]job.Request{request("xxx", payload), request("yyy", payload, func(r *job.Request) { r.Payload, r.Copies = nil, []job.Copy{{From: "old", Path: "outputs/"}} })}, 1, "no job `old`"},
		"wrong model":  {[]job.Request{request("xxx", payload), request("yyy", payload, func(r *job.Request) { r.Model.Name = "" })}, 1, "model: "},
		"no such file": {[]job.Request{request("xxx", payload, free), request("yyy", free, func(r *job.Request) { r.Copies = []job.Copy{{From: "old", Path: "outputs/none"}} })}, 1, "has no file"},
	} {
		t.Run(name, func(t *testing.T) {
			err := p.core.SubmitAll(t.Context(), c.rs)
			var item *job.ItemError
			if !errors.As(err, &item) || item.Index != c.index || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want that the job number %d %s", err, c.index, c.says)
			}
			for _, id := range []job.ID{"xxx", "yyy", "nowhere"} {
				if p.there(id) {
					t.Errorf("job %s has a place", id)
				}
			}
		})
	}
	if err := p.core.SubmitAll(t.Context(), []job.Request{request("one-1", payload), request("two-2", payload), request("three-3", payload), request("four-4", payload)}); !errors.As(err, new(*job.QueueFull)) {
		t.Errorf("more than may wait: %v", err)
	}

	if err := p.core.SubmitAll(t.Context(), []job.Request{request("aaa", payload), request("bbb", payload), request("ccc", after("aaa", "bbb"))}); err != nil {
		t.Fatal(err)
	}
	p.await("ccc", job.Done)
	if got := p.output("ccc"); got != "aaa/output=of a bbb/output=of b" {
		t.Errorf("the last of the group: %s", got)
	}
	if err := p.core.SubmitAll(t.Context(), []job.Request{
		request("placed", free), request("copies", free, func(r *job.Request) { r.Copies = []job.Copy{{From: "old", Path: "outputs/output", As: "input"}} }),
	}); err != nil {
		t.Fatal(err)
	}
	p.await("placed", job.Done)
	p.await("copies", job.Done)
	if got := p.output("placed") + ", " + p.output("copies"); got != "input=in place, input=of old" {
		t.Errorf("inputs in place and copied: %s", got)
	}

	g, err := p.core.Group(t.Context(), "g", "wool")
	if err != nil || g.ID != "g" || g.Counts[job.Done] != 3 || len(g.Jobs) != 3 || g.More || !g.Ended() || g.Jobs[0].ID != "aaa" {
		t.Errorf("the tenant's group: %+v, %v", g, err)
	}
	if g, err := p.core.Group(t.Context(), "g", ""); err != nil || g.Counts[job.Done] != 5 {
		t.Errorf("the group: %+v, %v", g, err)
	}
	for _, tenant := range []string{"meat", ""} {
		id := "g"
		if tenant == "" {
			id = "none"
		}
		if _, err := p.core.Group(t.Context(), id, tenant); !errors.Is(err, job.ErrNoGroup) {
			t.Errorf("a group that is not there: %v", err)
		}
		if err := p.core.CancelGroup(t.Context(), id, tenant); !errors.Is(err, job.ErrNoGroup) {
			t.Errorf("a group that is not there: %v", err)
		}
	}
}

// TestGroup cancels what has not ended of a group, and runs again what has no result.
func TestGroup(t *testing.T) {
	p := newFixture(t)
	p.handle = join
	p.start()
	later := time.Now().Add(500 * time.Millisecond)
	if err := p.core.SubmitAll(t.Context(), []job.Request{
		{ID: "first", Group: "g", Model: someModel, Payload: []byte("1")},
		{ID: "aaa", Group: "g", Model: someModel, Payload: []byte("2"), NotBefore: later.Add(time.Hour)},
		{ID: "bbb", Group: "g", Model: joining, After: []job.ID{"aaa", "first"}},
	}); err != nil {
		t.Fatal(err)
	}
	p.await("first", job.Done)
	if err := p.core.CancelGroup(t.Context(), "g", ""); err != nil {
		t.Fatal(err)
	}
	p.await("aaa", job.Cancelled)
	p.await("bbb", job.Cancelled) // and not failed for lack of the other
	if err := p.core.RetryGroup(t.Context(), "g", "", job.Trace{}); err != nil {
		t.Fatal(err)
	}
	g, err := p.core.Group(t.Context(), "g", "")
	if err != nil || g.Counts[job.Done] != 1 || g.Counts[job.Queued] != 2 || g.Ended() {
		t.Errorf("run again: %+v, %v", g, err)
	}
	if rec, err := p.ledger.Get(t.Context(), "bbb"); err != nil || !rec.Blocked || rec.Run != 2 {
		t.Errorf("%+v, %v", rec, err)
	}
	if rec, err := p.ledger.Get(t.Context(), "first"); err != nil || rec.Run != 1 {
		t.Errorf("%+v, %v", rec, err)
	}
}

// signed is a storage.Presigner whose addresses say what they are for.
type signed struct{ err error }

func (s signed) Presign(_ context.Context, id job.ID, name string, valid time.Duration) (string, error) {
	if strings.Contains(name, "//") {
		return "", fmt.Errorf("%q: %w", name, storage.ErrBadName)
	}
	return "signed:" + string(id) + "/" + name + "?" + valid.String(), s.err
}

// TestPresign gives files addresses, where it is known how clients reach the storage.
func TestPresign(t *testing.T) {
	p := newFixture(t)
	p.start()
	p.submit("job-1", "m", "x")
	p.await("job-1", job.Done)
	files, err := storagetest.All(p.core.Outputs(t.Context(), "job-1"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%+v, %v", files, err)
	}
	if err := p.core.Presign(t.Context(), "job-1", job.OutputDir, files, time.Hour); !errors.Is(err, job.ErrNoAddresses) || files[0].Address != "" {
		t.Errorf("without a public address: %v, %+v", err, files)
	}
	p.stop()
	p.config.Presigner = signed{}
	p.start()
	if err := p.core.Presign(t.Context(), "job-1", job.OutputDir, files, time.Hour); err != nil || files[0].Address != "signed:job-1/outputs/output?1h0m0s" {
		t.Errorf("%v, %+v", err, files)
	}
	files = []job.FileInfo{{Name: "a//b"}, {Name: "c"}} // the first another program has put there
	if err := p.core.Presign(t.Context(), "job-1", job.OutputDir, files, time.Hour); err != nil || files[0].Address != "" || files[1].Address == "" {
		t.Errorf("with a name that no file can be fetched by: %v, %+v", err, files)
	}
}
