package api

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

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
		f.sheep = []job.Sheep{{Name: "shaun", Type: "bare", Detail: "rests for 3s: no disk", Condition: job.Resting}, {Name: "dolly", Type: "container", Detail: "pulling m: 40%", Pull: &job.PullProgress{Text: "pulling m: 40%", Done: 40, Total: 100, Rate: 7}}}
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
		if pull := first.Sheep[0].Pull; pull == nil || *pull.Done != 40 || *pull.Total != 100 || *pull.Rate != 7 || first.Sheep[1].Pull != nil {
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

// TestFlockOnce answers how the flock is, for those who do not follow it.
func TestFlockOnce(t *testing.T) {
	h := newHarness(t)
	h.service.sheep = []job.Sheep{{Name: "dolly", Type: "bare"}}
	h.service.add("waits", job.Queued)
	for _, follow := range []string{"false", "0"} {
		got := h.get("/flock?follow=" + follow)
		var flock Flock
		if err := json.Unmarshal([]byte(got.body), &flock); err != nil || got.status != 200 || len(flock.Sheep) != 1 || flock.Queue.Total != 1 {
			t.Errorf("%d %s, %v", got.status, got.body, err)
		}
	}
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

// TestFlockOfNodes: the sheep of a fleet say whose they are, the GPUs of all nodes are in
// one list, a node that does not answer is told of, and the queue is counted by what waits.
func TestFlockOfNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for _, node := range []string{"b", "a", "away"} {
			f.sheep = append(f.sheep, job.Sheep{Name: node + "/dolly", Node: node, Type: "bare"})
		}
		other := job.Model{Name: "other", Version: "v1"}
		for id, r := range map[job.ID]job.Record{
			"1": {Model: other, Tenant: "wool", Labels: job.Labels{"batch": "7"}}, "2": {Model: someModel, Priority: -3, Tenant: "wool", Labels: job.Labels{"batch": "7", "by": "ada"}},
			"3": {Model: other, Priority: 10},
		} {
			f.add(id, job.Queued).record = func(to *job.Record) {
				to.Model, to.Priority, to.Tenant, to.Labels = r.Model, r.Priority, r.Tenant, r.Labels
			}
		}
		var asked atomic.Int64
		handler := New(Config{Service: f, GPUs: func(_ context.Context, node string) (job.GPUs, error) {
			if node == "away" {
				asked.Add(1)
				return job.GPUs{}, &job.Unavailable{Service: "node away", Problem: "does not answer", Cause: errdefs.ErrUnavailable}
			}
			return job.GPUs{GPUs: []job.GPU{{UUID: "GPU-" + node, Health: job.Well, Sheep: []job.DeviceUser{{Sheep: "dolly"}}}}}, nil
		}})
		s := follow(t, handler, "/flock")
		flock := last(t, framesOf[Flock](t, s.got(), "flock"))
		if len(flock.Sheep) != 3 || flock.Sheep[0].Name != "a/dolly" || *flock.Sheep[0].Node != "a" {
			t.Errorf("sheep %+v", flock.Sheep)
		}
		gpus := last(t, framesOf[GPUList](t, s.got(), "gpus"))
		if len(gpus.Gpus) != 2 || *gpus.Gpus[0].Node != "a" || gpus.Gpus[0].Sheep[0].Name != "a/dolly" || *gpus.Gpus[1].Node != "b" || gpus.Trouble == nil || !strings.Contains(*gpus.Trouble, "away does not answer") {
			t.Errorf("GPUs %+v", gpus)
		}
		for _, c := range []struct {
			kind      string
			got, want []QueueGroup
		}{
			{"models", flock.Queue.Models, []QueueGroup{{Name: "other:v1", Jobs: 2}, {Name: someModel.String(), Jobs: 1}}},
			{"priorities", flock.Queue.Priorities, []QueueGroup{{Name: "10", Jobs: 1}, {Name: "0", Jobs: 1}, {Name: "-3", Jobs: 1}}},
			{"tenants", flock.Queue.Tenants, []QueueGroup{{Name: "wool", Jobs: 2}}},
			{"labels", flock.Queue.Labels, []QueueGroup{{Name: "batch=7", Jobs: 2}, {Name: "by=ada", Jobs: 1}}},
		} {
			if !slices.Equal(c.got, c.want) {
				t.Errorf("by %s there wait %+v, want %+v", c.kind, c.got, c.want)
			}
		}
		before := asked.Load()
		time.Sleep(20 * flockEvery)
		if n := asked.Load() - before; n > 11 {
			t.Errorf("another node is asked for its GPUs %d times in %v", n, 20*flockEvery)
		}
		s.stop()
	})
}
