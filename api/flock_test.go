package api

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

// framesOf are the data of one kind of event of a stream.
func framesOf[T any](t *testing.T, stream, kind string) (out []T) {
	t.Helper()
	for block := range strings.SplitSeq(stream, "\n\n") {
		data, ok := strings.CutPrefix(block, "event: "+kind+"\ndata: ")
		if !ok {
			continue
		}
		var one T
		if err := json.Unmarshal([]byte(data), &one); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		out = append(out, one)
	}
	return out
}

func last[T any](t *testing.T, all []T) T {
	t.Helper()
	if len(all) == 0 {
		t.Fatal("the stream has none of these events")
	}
	return all[len(all)-1]
}

// TestFlockStream follows the flock through a job.
func TestFlockStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.sheep = []job.Sheep{{Name: "shaun", Type: "bare", Detail: "rests for 3s: no disk", Condition: job.Resting}, {Name: "dolly", Type: "container"}}
		f.add("low", job.Queued).record = func(r *job.Record) { r.Labels = job.Labels{"batch": "7"} }
		f.add("urgent", job.Queued).record = func(r *job.Record) { r.Priority = 5 }
		f.jobs["urgent"].position = 1
		f.usual = map[job.Model]job.Usual{someModel: {Jobs: 9, Low: time.Second, Likely: 2 * time.Second, High: 4 * time.Second}}
		expect := func(in time.Duration) {
			f.mu.Lock()
			defer f.mu.Unlock()
			at := time.Now().Add(in)
			f.jobs["urgent"].expected = &job.Estimate{Earliest: at.Add(-time.Second), Likely: at, Latest: at.Add(time.Second)}
		}
		expect(time.Minute)
		memory := int64(1)
		handler := New(Config{Service: f, GPUs: func(context.Context, string) (job.GPUs, error) {
			return job.GPUs{Driver: "550", GPUs: []job.GPU{{Name: "A100", Memory: 80 << 30, Used: memory, Health: job.Well}}}, nil
		}})
		s := follow(t, handler, "/flock")
		first := last(t, framesOf[Flock](t, s.got(), "flock"))
		if len(first.Sheep) != 2 || first.Sheep[0].Name != "dolly" || first.Sheep[0].Condition != "able" || first.Sheep[1].Condition != "resting" {
			t.Errorf("sheep %+v", first.Sheep)
		}
		head := first.Queue.Head
		if first.Queue.Total != 2 || first.Queue.More || len(head) != 2 || head[0].JobId != "urgent" || *head[0].Position != 1 || head[0].Reason == nil || head[1].Labels["batch"] != "7" {
			t.Errorf("queue %s", s.got())
		}
		if g := last(t, framesOf[GPUList](t, s.got(), "gpus")); g.Gpus[0].Name != "A100" {
			t.Errorf("GPUs %+v", g)
		}

		if e := head[0].ExpectedStart; e == nil || *e.Likely != *job.FormatTime(time.Now().Add(time.Minute)) || head[1].ExpectedStart != nil {
			t.Errorf("expected starts %+v and %+v", e, head[1].ExpectedStart)
		}

		// Nothing changes, or by so little that it means nothing: nothing is sent but that the stream lives.
		before := len(s.got())
		expect(61 * time.Second)
		time.Sleep(4 * flockAlive)
		for block := range strings.SplitSeq(strings.TrimSpace(s.got()[before:]), "\n\n") {
			if block != "event: alive\ndata: {}" {
				t.Errorf("without a change: %q", block)
			}
		}

		// Progress has no event of its own.
		f.mu.Lock()
		f.sheep[1] = job.Sheep{Name: "dolly", Type: "container", Running: true, Model: someModel, Job: "urgent", Progress: &job.Progress{Done: 0.5, Text: "half"}, RunningSince: enqueued, TurnEnds: enqueued.Add(time.Hour)}
		f.jobs["urgent"].status.State, f.jobs["urgent"].status.StartedAt = job.Processing, enqueued
		f.mu.Unlock()
		time.Sleep(2 * flockEvery)
		dolly := last(t, framesOf[Flock](t, s.got(), "flock")).Sheep[0]
		if dolly.Progress == nil || dolly.Progress.Done != 0.5 || dolly.StartedAt == nil || *dolly.Job != "urgent" {
			t.Errorf("dolly %+v", dolly)
		}
		if dolly.Usual == nil || dolly.Usual.Likely != 2 || dolly.Usual.Load != nil || *dolly.RunningSince != *job.FormatTime(enqueued) || *dolly.TurnEndsAt != *job.FormatTime(enqueued.Add(time.Hour)) {
			t.Errorf("dolly usually %+v, since %v, until %v", dolly.Usual, dolly.RunningSince, dolly.TurnEndsAt)
		}

		// An event is told within the pause, with the queue as it is then.
		f.happens(job.Event{Kind: job.EventStarted, Job: "urgent", Run: 1, Attempt: 1, Model: someModel, State: job.Processing, Sheep: "dolly", At: enqueued})
		time.Sleep(2 * flockPause)
		batch := last(t, framesOf[FlockEvents](t, s.got(), "jobs"))
		if batch.Skipped || len(batch.Events) != 1 || batch.Events[0].JobId != "urgent" || *batch.Events[0].Id != "1" {
			t.Errorf("events %+v", batch)
		}
		if q := last(t, framesOf[Flock](t, s.got(), "flock")).Queue; q.Total != 1 || q.Head[0].JobId != "low" {
			t.Errorf("queue %+v", q)
		}

		// Those who come later are not told of it again.
		late := follow(t, handler, "/flock")
		if got := late.got(); strings.Contains(got, "event: jobs") || len(framesOf[Flock](t, got, "flock")) != 1 {
			t.Errorf("the second stream begins with %s", got)
		}

		// More than a look reads are passed over, and that is said.
		one := job.Event{Kind: job.EventQueued, Job: "low", Model: someModel, State: job.Queued, At: enqueued}
		f.mu.Lock()
		for range eventBatch {
			f.log = append(f.log, one)
		}
		f.mu.Unlock()
		f.happens(one)
		time.Sleep(2 * flockPause)
		if batch = last(t, framesOf[FlockEvents](t, late.got(), "jobs")); !batch.Skipped || len(batch.Events) != eventBatch {
			t.Errorf("%d events, skipped %t", len(batch.Events), batch.Skipped)
		}

		// What cannot be read is said, and what was known stays.
		f.mu.Lock()
		f.down = job.ErrEventsGone
		f.mu.Unlock()
		time.Sleep(4 * flockEvery)
		if now := last(t, framesOf[Flock](t, s.got(), "flock")); now.Trouble == nil || now.Queue.Total != 1 {
			t.Errorf("%+v", now)
		}
		f.mu.Lock()
		f.down = nil
		f.mu.Unlock()
		time.Sleep(4 * flockEvery)
		if now := last(t, framesOf[Flock](t, s.got(), "flock")); now.Trouble != nil {
			t.Errorf("%s", *now.Trouble)
		}
		s.stop()
		late.stop()
	})
}

// TestFlockIsShared: streams beyond the first cost the service nothing, and none costs
// nothing.
func TestFlockIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		handler := New(Config{Service: f})
		streams := []*follower{follow(t, handler, "/flock")}
		time.Sleep(10*flockEvery + flockPause/2)
		alone := f.reads.Load()
		for range 99 {
			streams = append(streams, follow(t, handler, "/flock"))
		}
		time.Sleep(10 * flockEvery)
		if reads := f.reads.Load() - alone; reads > 2*alone {
			t.Errorf("one stream reads the log %d times, a hundred %d times in the same time", alone, reads)
		}
		for _, s := range streams {
			s.stop()
		}
		left := f.reads.Load()
		time.Sleep(time.Minute)
		if reads := f.reads.Load() - left; reads != 0 {
			t.Errorf("%d reads while nobody follows", reads)
		}
	})
}

// TestFlockOfTenants: a tenant follows its own jobs alone, and no GPUs.
func TestFlockOfTenants(t *testing.T) {
	claims.Hold(t, "C10")
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for id, tenant := range map[job.ID]string{"mine": "wool", "theirs": "other"} {
			f.add(id, job.Queued).tenant = tenant
		}
		f.sheep = []job.Sheep{{Name: "dolly", Running: true, Model: someModel, Job: "secret-job", Tenant: "other", Progress: &job.Progress{Text: "secret"}, Detail: "secret"}}
		handler := New(Config{Service: f, Gate: access.NewGate(access.Config{Tokens: []access.Token{
			{Digest: access.DigestOf("wool-token"), Caller: tokens["wool-token"]}, {Digest: access.DigestOf("admin-token"), Caller: tokens["admin-token"]},
		}})})
		all := follow(t, handler, "/flock", "Authorization", "Bearer admin-token")
		s := follow(t, handler, "/flock", "Authorization", "Bearer wool-token")
		f.happens(job.Event{Kind: job.EventQueued, Job: "theirs", Tenant: "other", Model: someModel, State: job.Queued, At: enqueued})
		f.happens(job.Event{Kind: job.EventQueued, Job: "mine", Tenant: "wool", Model: someModel, State: job.Queued, At: enqueued})
		time.Sleep(2 * flockEvery)
		got := s.got()
		if strings.Contains(got, "secret") || strings.Contains(got, "theirs") || strings.Contains(got, "event: gpus") || !strings.Contains(got, `"job_id": "mine"`) {
			t.Errorf("a tenant is told %s", got)
		}
		if got := all.got(); !strings.Contains(got, "secret-job") || !strings.Contains(got, "theirs") || !strings.Contains(got, "event: gpus") {
			t.Errorf("an administrator is told %s", got)
		}
		s.stop()
		all.stop()
	})
}
