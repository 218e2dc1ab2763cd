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
	h.expect(h.get("/jobs/nobody"), 400, "{\"message\": \"Data for job `nobody` does not exist\"}")
	j := h.service.add("job-1", job.Failed)
	j.detail, j.usage = "pulling: 1 GiB of 2", job.Usage{GPUMemory: 80 << 30, GPUTime: 1500 * time.Millisecond}
	h.expect(h.get("/jobs/job-1"), 200, `{"job_id": "job-1", "status": "failed", "run": 1, "attempt": 0, "priority": 0, "sheep": null, "sheep_id": null,
		"error_details": {"message": "ValueError: deliberate failure", "exception_type": "<class 'ValueError'>", "exception_traceback": null},
		"model": {"name": "emloop-test", "version": "test2"}, "detail": "pulling: 1 GiB of 2", "gpu": {"seconds": 1.5, "peak_memory": 85899345920},
		"enqueued_at": "2026-11-22T10:08:03.942214", "processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": "2026-11-22T10:08:04.012731"}`)
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
	h.service.queried = nil
	h.get("/jobs?state=queued&state=processing&model=a/b:v1&sheep_id=sheep")
	want := []job.Query{{States: []job.State{job.Queued, job.Processing}, Model: job.Model{Name: "a/b", Version: "v1"}, Sheep: "sheep"}}
	if !reflect.DeepEqual(h.service.queried, want) {
		t.Errorf("asked for %+v, want %+v", h.service.queried, want)
	}
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limit=x": "limit", "after=-1": "after", "after=x": "after",
		"state=gone": "state", "model=../x:v1": "model.name",
	} {
		if got := h.get("/jobs?" + query); got.status != 400 || !strings.Contains(got.body, `"`+field+": ") {
			t.Errorf("%s: %d %s", query, got.status, got.body)
		}
	}
}
