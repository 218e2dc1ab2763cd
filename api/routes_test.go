package api

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
)

func TestUnknownRoutesAndMethods(t *testing.T) {
	h := newHarness(t)
	h.service.add("done", job.Done).outputs["output"] = []byte("x")
	nothing := `{"message": "There is nothing at this address; /ui shows what there is"}`
	for _, path := range []string{
		"/", "/nothing", "/start-job/", "/jobs/", "/jobs/done/", "/jobs//status", "//jobs/done/status",
		"/jobs/done//status", "/jobs/done/status/", "/jobs/done/result/", "/jobs/./done/status", "/x/../status", "/ui/nothing.js", "/apidocs/",
	} {
		h.expect(h.get(path), 404, nothing)
	}
	for path, allow := range map[string]string{
		"/start-job":                "POST, OPTIONS",
		"/jobs":                     "GET, HEAD, POST, OPTIONS",
		"/jobs/done":                "GET, HEAD, DELETE, OPTIONS",
		"/jobs/done/cancel":         "POST, OPTIONS",
		"/jobs/done/status":         "GET, HEAD, OPTIONS",
		"/jobs/done/result":         "GET, HEAD, OPTIONS",
		"/jobs/done/result/a/b":     "GET, HEAD, OPTIONS",
		"/status":                   "GET, HEAD, OPTIONS",
		"/ui":                       "GET, HEAD, OPTIONS",
		"/ui/swagger-ui-bundle.js":  "GET, HEAD, OPTIONS",
		"/jobs/done/input/a%2Fb":    "GET, HEAD, OPTIONS",
		"/jobs/done/wait_ready?x=1": "GET, HEAD, OPTIONS",
	} {
		got := h.do(http.MethodPut, path, "")
		h.expect(got, 405, `{"message": "This address does not know this method"}`)
		if got.header.Get("Allow") != allow {
			t.Errorf("%s: Allow %q, want %q", path, got.header.Get("Allow"), allow)
		}
		options := h.do(http.MethodOptions, path, "")
		if options.status != 204 || options.header.Get("Allow") != allow {
			t.Errorf("OPTIONS %s: %d, Allow %q", path, options.status, options.header.Get("Allow"))
		}
	}
	if got := h.get("/start-job"); got.status != 405 {
		t.Errorf("GET /start-job: %d", got.status)
	}
	h.expect(h.get("/jobs/done/wait_ready?timeout=1&timeout=2"), 400, `{"message": "timeout: must be given once, as one value"}`)
}

// TestHead compares HEAD with GET on every kind of route.
func TestHead(t *testing.T) {
	h := newHarness(t)
	h.service.add("failed", job.Failed)
	done := h.service.add("done", job.Done)
	done.outputs["output"] = []byte("0123456789")
	done.outputs["a/b.json"] = []byte("{}")
	for _, path := range []string{
		"/jobs/done/status", "/jobs/done/ready", "/jobs/done/wait_ready", "/jobs/done/result", "/jobs/done/result/a/b.json",
		"/jobs/done/result/none", "/jobs/failed/result", "/jobs/none/status", "/jobs/done/input", "/status", "/sheep", "/healthz",
		"/readyz", "/version", "/ui", "/apidocs", "/spec.json", "/ui/start.js", "/nothing",
	} {
		get, head := h.get(path), h.do(http.MethodHead, path, "")
		if head.status != get.status || head.body != "" {
			t.Errorf("HEAD %s: %d %q; GET: %d", path, head.status, head.body, get.status)
		}
		if head.header.Get("Content-Length") != strconv.Itoa(len(get.body)) {
			t.Errorf("HEAD %s: Content-Length %q, GET has %d bytes", path, head.header.Get("Content-Length"), len(get.body))
		}
		for _, own := range []string{"Date", "X-Request-Id"} {
			get.header.Del(own)
			head.header.Del(own)
		}
		for name := range get.header {
			if get.header.Get(name) != head.header.Get(name) {
				t.Errorf("HEAD %s: %s is %q, with GET %q", path, name, head.header.Get(name), get.header.Get(name))
			}
		}
	}
}

func TestCrossOrigin(t *testing.T) {
	h := newHarness(t)
	got := h.get("/jobs/none/status", "Origin", "https://a.example")
	if got.status != 400 || got.header.Get("Access-Control-Allow-Origin") != "https://a.example" || got.header.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("%d %v", got.status, got.header)
	}
	if !strings.Contains(got.header.Get("Access-Control-Expose-Headers"), "ETag") || got.header.Get("Vary") != "Origin" {
		t.Errorf("%v", got.header)
	}
	for _, path := range []string{"/start-job", "/jobs/none/result/x", "/nothing"} {
		got := h.do(http.MethodOptions, path, "", "Origin", "null", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type, x-own")
		if got.status != 204 || got.header.Get("Access-Control-Allow-Origin") != "null" || got.header.Get("Access-Control-Allow-Headers") != "content-type, x-own" ||
			got.header.Get("Access-Control-Allow-Credentials") != "true" || !strings.Contains(got.header.Get("Access-Control-Allow-Methods"), "POST") {
			t.Errorf("preflight of %s: %d %v", path, got.status, got.header)
		}
	}
	if got := h.get("/healthz"); got.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("an answer to nobody's page: %v", got.header)
	}
}

func TestAccessLog(t *testing.T) {
	h := newHarness(t)
	h.get("/healthz")
	h.get("/jobs/none/status")
	lines := h.log.lines(slog.LevelDebug)
	if len(lines) != 2 || !strings.Contains(lines[0], `"path":"/healthz","status":200,"bytes":15`) || !strings.Contains(lines[1], `"status":400`) {
		t.Errorf("log %q", lines)
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	log := &logRecorder{}
	s := answers{log: slog.New(slog.NewJSONHandler(log, nil))}
	handler := s.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic("boom at /srv") }))
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "/x", nil))
	if w.Code != 500 || !sameJSON(t, w.Body.String(), `{"message": "Internal server error"}`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "boom at /srv") || !strings.Contains(log.String(), "routes_test.go") {
		t.Errorf("log %s", log)
	}

	// After the first byte only a broken connection tells the client.
	handler = s.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		panic("boom")
	}))
	defer func() {
		if got := recover(); got != http.ErrAbortHandler {
			t.Errorf("recovered %v", got)
		}
	}()
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil))
}
