package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// start is the body of a start-job request with a payload.
const start = `{"job_id": "new", "model": {"name": "emloop-test", "version": "test2"}, "payload": "data"}`

// TestCompat goes through what clients of the original shepherd rely on.
func TestCompat(t *testing.T) {
	herd := func(f *fake) {
		f.add("queued", job.Queued)
		f.add("processing", job.Processing)
		f.add("failed", job.Failed)
		done := f.add("done", job.Done)
		done.inputs["input"] = []byte("in")
		done.outputs["output"] = []byte("out")
		f.sheep = []job.Sheep{{Name: "bare_sheep", Type: "bare"}}
	}
	unknown := "{\"message\": \"Data for job `nosuch` does not exist\"}"
	noFile := `{"message": "Requested file does not exist"}`
	for _, test := range []struct {
		name         string
		method, path string
		body         string
		down         error
		status       int
		answer       string
	}{
		{name: "start", method: "POST", path: "/start-job", body: start, status: 200, answer: `{"success": true}`},
		{name: "status done", path: "/jobs/done/status", status: 200, answer: `{"status": "done", "error_details": null,
			"model": {"name": "emloop-test", "version": "test2"}, "enqueued_at": "2026-11-22T10:08:03.942214",
			"processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": "2026-11-22T10:08:04.012731"}`},
		{name: "status queued", path: "/jobs/queued/status", status: 200, answer: `{"status": "queued", "error_details": null,
			"model": {"name": "emloop-test", "version": "test2"}, "enqueued_at": "2026-11-22T10:08:03.942214",
			"processing_started_at": null, "finished_at": null}`},
		{name: "status failed, without the traceback", path: "/jobs/failed/status", status: 200, answer: `{"status": "failed",
			"error_details": {"message": "ValueError: deliberate failure", "exception_type": "<class 'ValueError'>", "exception_traceback": null},
			"model": {"name": "emloop-test", "version": "test2"}, "enqueued_at": "2026-11-22T10:08:03.942214",
			"processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": "2026-11-22T10:08:04.012731"}`},
		{name: "wait_ready", path: "/jobs/done/wait_ready", status: 200, answer: `{"status": "done", "error_details": null,
			"model": {"name": "emloop-test", "version": "test2"}, "enqueued_at": "2026-11-22T10:08:03.942214",
			"processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": "2026-11-22T10:08:04.012731"}`},
		{name: "ready", path: "/jobs/done/ready", status: 200, answer: `{"ready": true}`},
		{name: "ready, failed", path: "/jobs/failed/ready", status: 200, answer: `{"ready": true}`},
		{name: "not ready", path: "/jobs/processing/ready", status: 200, answer: `{"ready": false}`},
		{name: "result before the end", path: "/jobs/processing/result", status: 202, answer: `{"ready": false}`},
		{name: "result file before the end", path: "/jobs/queued/result/x.json", status: 202, answer: `{"ready": false}`},
		{name: "no such result", path: "/jobs/done/result/x.json", status: 404, answer: noFile},
		{name: "no such input", path: "/jobs/done/input/x.json", status: 404, answer: noFile},
		{name: "no default input", path: "/jobs/queued/input", status: 404, answer: noFile},
		{name: "result of a failed job", path: "/jobs/failed/result", status: 500, answer: `{"message": "ValueError: deliberate failure"}`},
		{name: "sheep", path: "/status", status: 200, answer: `{"sheep": {"bare_sheep": {"running": false, "model": {"name": null, "version": null}, "request": null}}}`},

		{name: "unknown job: status", path: "/jobs/nosuch/status", status: 400, answer: unknown},
		{name: "unknown job: ready", path: "/jobs/nosuch/ready", status: 400, answer: unknown},
		{name: "unknown job: wait_ready", path: "/jobs/nosuch/wait_ready", status: 400, answer: unknown},
		{name: "unknown job: result", path: "/jobs/nosuch/result", status: 400, answer: unknown},
		{name: "unknown job: result file", path: "/jobs/nosuch/result/f", status: 400, answer: unknown},
		{name: "unknown job: input", path: "/jobs/nosuch/input", status: 400, answer: unknown},
		{name: "unknown job: input file", path: "/jobs/nosuch/input/f", status: 400, answer: unknown},
		{name: "unknown job: impossible file", path: "/jobs/nosuch/input/..%2Ff", status: 400, answer: unknown},
		{name: "impossible id", path: "/jobs/..%2F..%2Fetc/status", status: 400, answer: "{\"message\": \"Data for job `../../etc` does not exist\"}"},
		{name: "impossible id: result", path: "/jobs/%F0%9F%90%91/result", status: 400, answer: "{\"message\": \"Data for job `🐑` does not exist\"}"},
		{name: "start without payload and bucket", method: "POST", path: "/start-job", body: `{"job_id":"nosuch","model":{"name":"m","version":""}}`, status: 400, answer: unknown},
		{name: "start with null payload and no bucket", method: "POST", path: "/start-job", body: `{"job_id":"nosuch","model":{"name":"m","version":""},"payload":null}`, status: 400, answer: unknown},
		{name: "start with empty payload and no bucket", method: "POST", path: "/start-job", body: `{"job_id":"nosuch","model":{"name":"m","version":""},"payload":""}`, status: 400, answer: unknown},
		{name: "id used already", method: "POST", path: "/start-job", body: strings.Replace(start, "new", "done", 1), status: 409, answer: `{"message": "A job with this ID was already submitted"}`},
		{name: "run a finished job again", method: "POST", path: "/start-job", body: `{"job_id":"done","model":{"name":"m","version":"v"}}`, status: 200, answer: `{"success": true}`},
		{name: "unknown sheep", method: "POST", path: "/start-job", body: `{"job_id":"new","model":{"name":"m","version":"v"},"payload":"x","sheep_id":"no_such_sheep"}`, status: 400, answer: "{\"message\": \"Unknown sheep id `no_such_sheep`\"}"},
		{name: "empty sheep", method: "POST", path: "/start-job", body: `{"job_id":"new","model":{"name":"m","version":"v"},"payload":"x","sheep_id":""}`, status: 400, answer: "{\"message\": \"Unknown sheep id ``\"}"},
		{name: "missing field", method: "POST", path: "/start-job", body: `{"model":{"name":"m","version":"v"}}`, status: 400, answer: `{"message": "job_id: this field is required"}`},
		{name: "null field", method: "POST", path: "/start-job", body: `{"job_id":"new","model":null}`, status: 400, answer: `{"message": "model: cannot be null"}`},
		{name: "unknown field", method: "POST", path: "/start-job", body: `{"job_id":"new","colour":"red"}`, status: 400, answer: `{"message": "colour: this field is not known"}`},
		{name: "wrong type", method: "POST", path: "/start-job", body: `{"job_id":"new","model":{"name":7}}`, status: 400, answer: `{"message": "model.name: must be a string, not a number"}`},
		{name: "not JSON", method: "POST", path: "/start-job", body: `job_id=new`, status: 400, answer: `{"message": "body: not valid JSON at byte 0: a value is expected"}`},
		{name: "empty body", method: "POST", path: "/start-job", status: 400, answer: `{"message": "body: is empty; a JSON object is expected"}`},

		{name: "storage down: start", method: "POST", path: "/start-job", body: start, down: errdefs.ErrUnavailable, status: 503, answer: `{"message": "A service that shepherd depends on is not reachable; try again later"}`},
		{name: "storage down: status", path: "/jobs/done/status", down: errdefs.ErrUnavailable, status: 503, answer: `{"message": "A service that shepherd depends on is not reachable; try again later"}`},
		{name: "storage down: wait", path: "/jobs/done/wait_ready", down: errdefs.ErrUnavailable, status: 503, answer: `{"message": "A service that shepherd depends on is not reachable; try again later"}`},
		{name: "storage down: result", path: "/jobs/done/result", down: errdefs.ErrUnavailable, status: 503, answer: `{"message": "A service that shepherd depends on is not reachable; try again later"}`},
		{name: "storage down: input", path: "/jobs/done/input/a/b", down: errdefs.ErrUnavailable, status: 503, answer: `{"message": "A service that shepherd depends on is not reachable; try again later"}`},
		{name: "draining", method: "POST", path: "/start-job", body: start, down: job.ErrDraining, status: 503, answer: `{"message": "shepherd is shutting down and takes no more jobs; try again when it is back"}`},

		{name: "cancel", method: "POST", path: "/jobs/queued/cancel", status: 200, answer: `{"success": true}`},
		{name: "queue full", method: "POST", path: "/start-job", body: start, down: &job.QueueFull{Limit: 7}, status: 429, answer: `{"message": "The queue is full: 7 jobs wait already; try again later"}`},
		{name: "remove", method: "DELETE", path: "/jobs/done", status: 200, answer: `{"success": true}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			herd(h.service)
			h.service.down = test.down
			method := test.method
			if method == "" {
				method = http.MethodGet
			}
			got := h.do(method, test.path, test.body)
			h.expect(got, test.status, test.answer)
			if (test.status == 503 || test.status == 429) != (got.header.Get("Retry-After") != "") {
				t.Errorf("Retry-After %q with a %d", got.header.Get("Retry-After"), got.status)
			}
		})
	}
}

func TestSubmittedRequest(t *testing.T) {
	h := newHarness(t)
	payload := "naïve ☃ 🐑 \u0000 end"
	got := h.do("POST", "/start-job", `{"job_id":"a.b-c_1","model":{"name":"org/model","version":""},"priority":-3,"sheep_id":"bare_sheep","payload":"na\u00efve ☃ \ud83d\udc11 \u0000 end"}`, "Content-Type", "text/plain")
	h.expect(got, 200, `{"success": true}`)
	if len(h.service.submitted) != 1 {
		t.Fatalf("%d submitted", len(h.service.submitted))
	}
	r := h.service.submitted[0]
	if r.ID != "a.b-c_1" || r.Model != (job.Model{Name: "org/model"}) || r.Priority != -3 || r.Sheep != "bare_sheep" || string(r.Payload) != payload {
		t.Errorf("submitted %+v, payload %q", r, r.Payload)
	}
}

// Fields come in the original's order, for clients that read answers as text.
func TestOrderOfFields(t *testing.T) {
	h := newHarness(t)
	h.service.add("done", job.Done)
	h.service.sheep = []job.Sheep{{Name: "bare_sheep", Type: "bare"}}
	for path, want := range map[string]string{
		"/status":           `{"sheep": {"bare_sheep": {"running": false, "model": {"name": null, "version": null}, "request": null}}}`,
		"/jobs/done/status": `{"status": "done", "error_details": null, "model": {"name": "emloop-test", "version": "test2"}, "enqueued_at": "2026-11-22T10:08:03.942214", "processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": "2026-11-22T10:08:04.012731"}`,
		"/jobs/no/status":   "{\"message\": \"Data for job `no` does not exist\"}",
	} {
		if got := h.get(path); got.body != want {
			t.Errorf("%s: %s\nwant %s", path, got.body, want)
		}
	}
}

func TestDebugTellsMore(t *testing.T) {
	h := newHarness(t, debugMode)
	h.service.add("failed", job.Failed)
	if got := h.get("/jobs/failed/status"); !strings.Contains(got.body, `"exception_traceback": "File /srv/runner.py"`) {
		t.Errorf("no traceback: %s", got.body)
	}
	if got := h.get("/jobs/failed/wait_ready"); !strings.Contains(got.body, `"exception_traceback": "File /srv/runner.py"`) {
		t.Errorf("no traceback: %s", got.body)
	}
}

func TestRemovalContinues(t *testing.T) {
	h := newHarness(t)
	h.service.add("done", job.Done)
	h.service.slow = true
	h.expect(h.do("DELETE", "/jobs/done", ""), 202, `{"success": true}`)
}

func TestBodyLimit(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.MaxBody = int64(len(start)) })
	h.expect(h.do("POST", "/start-job", start), 200, `{"success": true}`)
	const answer = `{"message": "The body is larger than 90 bytes, the most that is accepted; put large inputs into storage and start the job without a payload"}`
	h.expect(h.do("POST", "/start-job", start+" "), 413, answer)

	// Without a Content-Length the limit is met while reading.
	request, err := http.NewRequest("POST", h.url+"/start-job", struct{ *strings.Reader }{strings.NewReader(strings.Repeat(" ", 1000))})
	if err != nil {
		t.Fatal(err)
	}
	request.ContentLength = -1
	response, err := h.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != 413 || !response.Close {
		t.Errorf("chunked body: status %d, and the rest of it is still awaited: %v", response.StatusCode, !response.Close)
	}
}
