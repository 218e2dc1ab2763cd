package shepherd_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/storage/storagetest"
)

func TestRetry(t *testing.T) {
	p := newFixture(t)
	fail := true
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if fail {
			return &job.Failure{Message: "no"}
		}
		return echo(ctx, m, in)
	}
	p.start()
	later := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	r := job.Request{
		ID: "again", Model: someModel, Priority: 3, Tenant: "wool", Labels: job.Labels{"a": "b"}, Limits: job.Limits{RunTimeout: new(time.Hour)},
		Keep: new(time.Hour), Deadline: later, Payload: []byte("in"), Idempotency: "digest",
		Webhook: job.Webhook{URL: "https://example.com/hook", Events: "started"},
	}
	if err := p.core.Submit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if status, err := p.core.Wait(t.Context(), r.ID); err != nil || status.State != job.Failed {
		t.Fatalf("%+v, %v", status, err)
	}
	if _, err := storagetest.All(p.core.Outputs(t.Context(), r.ID)); !errors.As(err, new(*job.Failure)) {
		t.Errorf("outputs of a failed job: %v", err)
	}
	fail = false
	if err := p.core.Retry(t.Context(), r.ID, job.Trace{}); err != nil {
		t.Fatal(err)
	}
	if status, err := p.core.Wait(t.Context(), r.ID); err != nil || status.State != job.Done {
		t.Fatalf("%+v, %v", status, err)
	}
	rec, err := p.ledger.Get(t.Context(), r.ID)
	if err != nil || rec.Run != 2 || rec.Priority != 3 || rec.Tenant != "wool" || rec.Labels["a"] != "b" || *rec.Limits.RunTimeout != time.Hour || *rec.Keep != time.Hour ||
		!rec.Deadline.Equal(later) || rec.Idempotency != "digest.2" {
		t.Errorf("%+v, %v", rec, err)
	}
	runs := []ledger.JobRun{{Job: r.ID, Run: 1}, {Job: r.ID, Run: 2}}
	if webhooks, err := p.ledger.JobWebhooks(t.Context(), runs); err != nil || webhooks[runs[0]] != r.Webhook || webhooks[runs[1]] != r.Webhook {
		t.Errorf("webhooks of the runs: %v, %v", webhooks, err)
	}
	if inputs, err := storagetest.All(p.core.Inputs(t.Context(), r.ID)); err != nil || len(inputs) != 1 || inputs[0].Name != "input" {
		t.Errorf("inputs %v, %v", inputs, err)
	}
	if _, err := storagetest.All(p.core.Inputs(t.Context(), "nobody")); !errors.As(err, new(*job.UnknownJob)) {
		t.Errorf("the inputs of no job: %v", err)
	}
	files, err := storagetest.All(p.core.Outputs(t.Context(), r.ID))
	if err != nil || len(files) != 1 || files[0].Name != "output" || files[0].Size != 2 || files[0].ETag[0] != '"' {
		t.Errorf("outputs %+v, %v", files, err)
	}

	if err := p.core.Retry(t.Context(), "nobody", job.Trace{}); !errors.As(err, new(*job.UnknownJob)) {
		t.Errorf("an unknown job: %v", err)
	}
	if err := p.core.Submit(t.Context(), job.Request{ID: "waits", Model: someModel, Payload: []byte("x"), NotBefore: later}); err != nil {
		t.Fatal(err)
	}
	if err := p.core.Retry(t.Context(), "waits", job.Trace{}); !errors.Is(err, job.ErrNothingToRetry) {
		t.Errorf("a job that has not ended: %v", err)
	}
	if _, err := storagetest.All(p.core.Outputs(t.Context(), "waits")); !errors.Is(err, job.ErrNotReady) {
		t.Errorf("its outputs: %v", err)
	}
	if err := p.store.Init(t.Context(), "old", []byte("in")); err != nil {
		t.Fatal(err)
	}
	if err := p.store.SetStatus(t.Context(), "old", job.Status{State: job.Done, Model: someModel, EnqueuedAt: later}); err != nil {
		t.Fatal(err)
	}
	if err := p.core.Retry(t.Context(), "old", job.Trace{}); !errors.Is(err, job.ErrForgotten) {
		t.Errorf("a job without a record: %v", err)
	}
}

// TestExplainJobs asks a core about jobs as they stand; testdata/explain.txt has the
// texts of all cases.
func TestExplainJobs(t *testing.T) {
	p := newFixture(t, "sheep", "other")
	p.check = func(sheep string, _ job.Model) error {
		if sheep == "other" {
			return errors.New("there is no such model")
		}
		return nil
	}
	p.find = p.check
	running, release := make(chan struct{}), make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "runs" {
			close(running)
			<-release
		}
		return echo(ctx, m, in)
	}
	p.config.StageAhead = 0
	p.start()
	submit := func(id job.ID, change func(*job.Request)) {
		t.Helper()
		r := job.Request{ID: id, Model: someModel, Payload: []byte("in")}
		if change != nil {
			change(&r)
		}
		if err := p.core.Submit(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	says := func(id job.ID, want string) {
		t.Helper()
		e, err := p.core.Explain(t.Context(), id, "")
		if err != nil || !strings.Contains(e.String(), want) {
			t.Errorf("%s: %v %s\ndoes not say %s", id, err, e, want)
		}
	}
	submit("runs", nil)
	receive(t, running, "the job does not begin")
	submit("waits", nil)
	submit("waits-longer", nil)
	submit("later", func(r *job.Request) { r.NotBefore = time.Now().Add(time.Hour) })
	says("runs", "Sheep `sheep` has ") // worked on it, or been getting ready for it: its runner may be faster than what is known of it
	says("waits", "first in the queue")
	says("waits", "Sheep `sheep` is busy with another job.")
	says("waits", "Sheep `other` cannot run it: there is no such model.")
	says("waits-longer", "number 2 in the queue")
	says("later", "as its client asked (not_before)")
	if v, err := p.core.View(t.Context(), "waits-longer"); err != nil || v.Position != 2 {
		t.Errorf("position %d, %v", v.Position, err)
	}
	close(release)
	for _, id := range []job.ID{"runs", "waits", "waits-longer"} {
		if status, err := p.core.Wait(t.Context(), id); err != nil || status.State != job.Done {
			t.Fatalf("%+v, %v", status, err)
		}
	}
	says("runs", "It was done at")
	if _, err := p.core.Explain(t.Context(), "nobody", ""); !errors.As(err, new(*job.UnknownJob)) {
		t.Errorf("an unknown job: %v", err)
	}
}
