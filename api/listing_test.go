package api

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
)

func TestGetJob(t *testing.T) {
	h := newHarness(t)
	h.problem(h.get("/jobs/nobody"), 404, "unknown-job", "Data for job `nobody` does not exist")
	j := h.service.add("job-1", job.Failed)
	j.record = func(r *job.Record) {
		r.KeptUntil, r.FilesRemoved = enqueued.Add(24*time.Hour), true
	}
	j.last = "sheep-2"
	j.detail, j.usage = "pulling: 1 GiB of 2", job.Usage{GPUMemory: 80 << 30, GPUTime: 1500 * time.Millisecond}
	h.expect(h.get("/jobs/job-1"), 200, `{"job_id": "job-1", "status": "failed", "run": 1, "attempt": 0, "priority": 0, "sheep": null, "last_sheep": "sheep-2", "sheep_id": null,
		"error_details": {"message": "ValueError: deliberate failure", "exception_type": "<class 'ValueError'>", "exception_traceback": null},
		"model": {"name": "emloop-test", "version": "test2"}, "detail": "pulling: 1 GiB of 2", "progress": null, "gpu": {"seconds": 1.5, "peak_memory": 85899345920},
		"cancelling": false, "not_before": null, "deadline": null, "warnings": [], "attempts": [], "timeline": [], "labels": {}, "node_labels": {}, "after": [], "group": null, "position": null, "expected_start": null, "expected_end": null, "kept_until": "2026-11-23T10:08:03.942214", "files_removed": true,
		"limits": {"retries": 0, "retry_pause": 0, "wait_timeout": 0, "load_timeout": 0, "run_timeout": 0},
		"enqueued_at": "2026-11-22T10:08:03.942214", "processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": "2026-11-22T10:08:04.012731"}`)
}

// A query that cannot be read is refused, rather than taken for an empty one, but by the
// original's routes.
func TestMalformedQuery(t *testing.T) {
	h := newHarness(t)
	h.service.add("done", job.Done)
	for _, query := range []string{"state=failed%zz", "state=failed;order=newest", "%"} {
		h.problem(h.get("/jobs?"+query), 400, "invalid-request", "query: cannot be read: "+map[bool]string{true: "semicolon separator in query", false: `URL escape "` + query[strings.IndexByte(query+"%", '%'):] + `"`}[strings.Contains(query, ";")])
		if got := h.get("/jobs/done/status?" + query); got.status != 200 {
			t.Errorf("status with ?%s: %d %s", query, got.status, got.body)
		}
	}
}

func TestGetJobWithAttempts(t *testing.T) {
	h := newHarness(t)
	j := h.service.add("job-1", job.Processing)
	j.record = func(r *job.Record) {
		r.Run, r.Attempt, r.Holder, r.Cancelling, r.Deadline, r.NotBefore = 2, 2, "sheep-2", true, enqueued.Add(time.Hour), enqueued.Add(time.Minute)
		r.Warnings, r.Labels, r.Sheep = []string{"outputs/x is not stored"}, job.Labels{"batch": "1"}, "gpu-1/sheep-2@gpu=a100"
		r.After, r.Group = []job.ID{"a", "b"}, "g"
	}
	j.detail, j.progress = "40 %: half", &job.Progress{Done: 0.4, Text: "half", At: enqueued}
	j.limits = job.Limits{Retries: new(2), RetryPause: new(10 * time.Second), LoadTimeout: new(90 * time.Minute), RunTimeout: new(500 * time.Millisecond)}
	j.position, j.waitsFor = 3, []job.ID{"b"}
	j.expected = &job.Estimate{Earliest: enqueued.Add(time.Minute), Likely: enqueued.Add(2 * time.Minute), Latest: enqueued.Add(4 * time.Minute)}
	j.timeline = []job.Event{
		{At: enqueued, Kind: job.EventQueued, Run: 2},
		{At: enqueued.Add(time.Second), Kind: job.EventReturned, Run: 2, Attempt: 1, Sheep: "sheep-1", Cause: job.CauseError, Reason: "ValueError"},
	}
	j.attempts = []job.Attempt{
		{
			Run: 2, Number: 1, Node: "box", Sheep: "sheep-1", Began: enqueued, Started: enqueued.Add(time.Second), Ended: enqueued.Add(9 * time.Second),
			Cause: job.CauseError, Reason: "ValueError: " + strings.Repeat("x", 100_000), Spent: true,
			Usage: job.Usage{GPUTime: 3 * time.Second}, Phases: job.Phases{Stage: 250 * time.Millisecond, Load: 4 * time.Second, Run: 3 * time.Second},
		},
		{Run: 2, Number: 2, Node: "box", Sheep: "sheep-2", Began: enqueued.Add(20 * time.Second)},
	}
	h.expect(h.get("/jobs/job-1"), 200, `{"job_id": "job-1", "status": "processing", "run": 2, "attempt": 2, "priority": 0, "sheep": "sheep-2", "sheep_id": "gpu-1/sheep-2",
		"error_details": null, "model": {"name": "emloop-test", "version": "test2"}, "detail": "40 %: half", "progress": {"done": 0.4, "text": "half", "at": "2026-11-22T10:08:03.942214"}, "gpu": null,
		"enqueued_at": "2026-11-22T10:08:03.942214", "processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": null,
		"cancelling": true, "not_before": "2026-11-22T10:09:03.942214", "deadline": "2026-11-22T11:08:03.942214", "warnings": ["outputs/x is not stored"], "kept_until": null, "files_removed": false,
		"labels": {"batch": "1"}, "node_labels": {"gpu": "a100"}, "after": ["a", "b"], "waits_for": ["b"], "group": "g", "position": 3, "expected_start": null,
		"expected_end": {"earliest": "2026-11-22T10:09:03.942214", "likely": "2026-11-22T10:10:03.942214", "latest": "2026-11-22T10:12:03.942214"}, "timeline": [
			{"at": "2026-11-22T10:08:03.942214", "event": "queued", "attempt": null, "sheep": null, "cause": null, "reason": null},
			{"at": "2026-11-22T10:08:04.942214", "event": "returned", "attempt": 1, "sheep": "sheep-1", "cause": "error", "reason": "ValueError"}],
		"limits": {"retries": 2, "retry_pause": 10, "wait_timeout": 0, "load_timeout": 5400, "run_timeout": 0.5},
		"attempts": [
			{"run": 2, "number": 1, "node": "box", "sheep": "sheep-1", "began_at": "2026-11-22T10:08:03.942214", "started_at": "2026-11-22T10:08:04.942214",
			"ended_at": "2026-11-22T10:08:12.942214", "cause": "error", "reason": "ValueError: `+strings.Repeat("x", maxErrorText-len("ValueError: "))+`…", "spent": true,
			"gpu": {"seconds": 3, "peak_memory": null}, "phases": {"stage": 0.25, "load": 4, "run": 3, "collect": null}},
			{"run": 2, "number": 2, "node": "box", "sheep": "sheep-2", "began_at": "2026-11-22T10:08:23.942214", "started_at": null,
			"ended_at": null, "cause": null, "reason": null, "spent": false, "gpu": null, "phases": {"stage": null, "load": null, "run": null, "collect": null}}]}`)
	j.last = "sheep-1"
	if listed := h.get("/jobs"); !strings.Contains(listed.body, `"last_sheep": "sheep-1"`) || strings.Contains(listed.body, "attempts") || strings.Contains(listed.body, "timeline") || !strings.Contains(listed.body, `"cancelling": true`) {
		t.Errorf("the listing is %s", listed.body)
	}
}

// TestLongFailure answers the texts of a failure as long as they are kept.
func TestLongFailure(t *testing.T) {
	h := newHarness(t, debugMode)
	j := h.service.add("job-1", job.Failed)
	j.status.Failure = &job.Failure{Message: strings.Repeat("m", 1<<20), Type: strings.Repeat("t", 1<<20), Traceback: strings.Repeat("b", 4<<20)}
	for path, status := range map[string]int{"/jobs": 200, "/jobs/job-1": 200, "/jobs/job-1/status": 200, "/jobs/job-1/wait_ready": 200, "/jobs/job-1/result": 500} {
		got := h.get(path)
		if got.status != status || len(got.body) > 2*(job.MaxMessage+job.MaxType+job.MaxTraceback) || !strings.Contains(got.body, "mmm") {
			t.Errorf("%s: %d with %d bytes", path, got.status, len(got.body))
		}
	}
}

func TestListJobs(t *testing.T) {
	h := newHarness(t)
	h.expect(h.get("/jobs"), 200, `{"jobs": [], "next": null}`)
	h.service.add("job-1", job.Done)
	h.service.add("job-2", job.Queued)
	h.service.add("job-3", job.Processing)
	first := h.get("/jobs?limit=2")
	if first.status != 200 || !strings.Contains(first.body, `"next": "2"`) || strings.Contains(first.body, "job-3") {
		t.Errorf("the first page is %s", first.body)
	}
	if second := h.get("/jobs?limit=2&after=2"); !strings.Contains(second.body, `"next": null`) || !strings.Contains(second.body, "job-3") {
		t.Errorf("the second page is %s", second.body)
	}
	if newest := h.get("/jobs?order=newest&limit=1"); !strings.Contains(newest.body, "job-3") || !strings.Contains(newest.body, `"next": "1"`) {
		t.Errorf("the newest is %s", newest.body)
	}
	if oldest := h.get("/jobs?order=oldest&limit=1"); !strings.Contains(oldest.body, "job-1") {
		t.Errorf("the oldest is %s", oldest.body)
	}
	h.service.queried = nil
	h.get("/jobs?state=queued&state=processing&model=a/b:v1&sheep_id=sheep")
	want := []job.Query{{States: []job.State{job.Queued, job.Processing}, Model: job.Model{Name: "a/b", Version: "v1"}, Sheep: "sheep"}}
	if !reflect.DeepEqual(h.service.queried, want) {
		t.Errorf("asked for %+v, want %+v", h.service.queried, want)
	}
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limit=x": "limit", "after=-1": "after", "after=x": "after",
		"state=gone": "state", "order=random": "order", "order=": "order", "order=newest&order=newest": "order", "model=../x:v1": "model.name",
	} {
		if got := h.get("/jobs?" + query); got.status != 400 || !strings.Contains(got.body, `"`+field+": ") {
			t.Errorf("%s: %d %s", query, got.status, got.body)
		}
	}
}
