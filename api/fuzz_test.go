package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
)

// FuzzRequest sends requests as bytes (paths, queries, headers and bodies) to daemons
// that ask for no credentials, for tokens, and behind a proxy. Nothing makes the daemon
// panic or answer 500, what is said to be JSON is, and nothing changes without a token.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET /status HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
		"GET /jobs?state=done&order=newest&limit=2&cursor=1 HTTP/1.1\r\nHost: 192.0.2.1\r\nAuthorization: Bearer reader-token\r\n\r\n",
		"GET /jobs/a HTTP/1.1\r\nHost: 192.0.2.1\r\nX-User: ada\r\n\r\n",
		"GET /jobs/a/status HTTP/1.1\r\nHost: 192.0.2.1\r\nOrigin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n\r\n",
		"GET /jobs/b/wait_ready?timeout=1ms HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
		"GET /jobs/a/result/sub%2Fx.html HTTP/1.1\r\nHost: 192.0.2.1\r\nRange: bytes=0-\r\nIf-Range: \"x\"\r\n\r\n",
		"HEAD /jobs/a/result HTTP/1.1\r\nHost: 192.0.2.1\r\nIf-None-Match: W/\"x\", *\r\n\r\n",
		"GET /jobs/a/input/..%2f..%2fetc/passwd HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
		"GET /sheep/s/logs?tail=3&follow=true HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
		"POST /start-job HTTP/1.1\r\nHost: 192.0.2.1\r\nContent-Type: application/json\r\nContent-Length: 78\r\n\r\n{\"job_id\": \"n\", \"model\": {\"name\": \"m\", \"version\": \"v\"}, \"payload\": \"\\ud800x\"}",
		"POST /groups HTTP/1.1\r\nHost: 192.0.2.1\r\nIdempotency-Key: k\r\nContent-Length: 138\r\n\r\n{\"jobs\": [{\"job_id\": \"n\", \"model\": {\"name\": \"m\", \"version\": \"\"}, \"payload\": \"\"}, {\"model\": {\"name\": \"m\", \"version\": \"\"}, \"after\": [\"n\"]}]}",
		"POST /groups/g/retry HTTP/1.1\r\nHost: 192.0.2.1\r\nContent-Length: 0\r\n\r\n",
		"POST /uploads HTTP/1.1\r\nHost: 192.0.2.1\r\nContent-Length: 80\r\n\r\n{\"job_id\": \"n\", \"files\": [{\"path\": \"a/b\", \"size\": 7}], \"expires_in\": \"15m\", \"x\":1}",
		"POST /uploads/a/addresses HTTP/1.1\r\nHost: 192.0.2.1\r\nContent-Length: 18\r\n\r\n{\"expires_in\": 60}",
		"POST /uploads/a/complete HTTP/1.1\r\nHost: 192.0.2.1\r\nContent-Length: 0\r\n\r\n",
		"DELETE /uploads/a%2Fb HTTP/1.1\r\nHost: 192.0.2.1\r\nAuthorization: Bearer wool-token\r\n\r\n",
		"GET /jobs/a/outputs?presign=15m HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
		"POST /jobs/b/cancel HTTP/1.1\r\nHost: 192.0.2.1\r\nAuthorization: Bearer admin-token\r\nContent-Length: 0\r\n\r\n",
		"POST /models/pull HTTP/1.1\r\nHost: 192.0.2.1\r\nContent-Length: 45\r\n\r\n{\"model\": {\"name\": \"m\", \"version\": \"latest\"}}",
		"DELETE /models/m:v HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
		"POST /session HTTP/1.1\r\nHost: 192.0.2.1\r\nContent-Length: 24\r\n\r\n{\"token\": \"admin-token\"}",
		"DELETE /session HTTP/1.1\r\nHost: 192.0.2.1\r\nCookie: shepherd_session=x; shepherd_session=y\r\n\r\n",
		"OPTIONS /start-job HTTP/1.1\r\nHost: 192.0.2.1\r\nOrigin: null\r\nAccess-Control-Request-Method: POST\r\n\r\n",
		"GET //etc/../status HTTP/1.0\r\n\r\n",
		"PATCH * HTTP/1.1\r\nHost: [::1]:5000\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	handlers, shown := make(map[string]http.Handler), new(shown)
	for _, kind := range []string{"open", "tokens", "proxy"} { // once: it takes a while
		handlers[kind] = New(Config{Service: shown, Gate: gates()[kind], Browsers: NewBrowsers(BrowserConfig{Origins: []string{"*"}}), MaxWait: time.Millisecond, MaxBody: 1 << 20})
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		synctest.Test(t, func(t *testing.T) { // where a wait takes no time
			for kind, handler := range handlers {
				requestAnything(t, kind, handler, shown, raw)
			}
		})
	})
}

// shown is the service that handlers have, which is another for each request.
type shown struct{ Service }

func requestAnything(t *testing.T, kind string, handler http.Handler, to *shown, raw []byte) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		return // net/http answers these
	}
	service := newFake()
	service.add("a", job.Done).outputs["output"] = []byte("x")
	service.add("b", job.Queued)
	service.sheep = []job.Sheep{{Name: "s", Type: "bare"}}
	service.logs = func(context.Context, string, job.LogQuery) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("a line\n")), nil
	}
	to.Service = service
	r.RemoteAddr = "192.0.2.9:1234"
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r.WithContext(ctx)) // whatever is asked for ends with the context
	cancel()
	if w.Code == http.StatusInternalServerError || w.Code < 200 || w.Code > 599 {
		t.Errorf("%s: %d %s", kind, w.Code, w.Body)
	}
	if kind == "tokens" && !bytes.Contains(raw, []byte("-token")) && (len(service.submitted) > 0 || len(service.removed) > 0 || service.jobs["b"].status.State != job.Queued) {
		t.Error("something has changed without a token")
	}
	if w.Body.Len() == 0 || w.Code == http.StatusPartialContent {
		return
	}
	if media, _, err := mime.ParseMediaType(w.Header().Get("Content-Type")); err != nil {
		t.Errorf("%s: the type of the answer is %q", kind, w.Header().Get("Content-Type"))
	} else if media == "application/json" && !json.Valid(w.Body.Bytes()) {
		t.Errorf("%s: %d and no JSON: %q", kind, w.Code, w.Body)
	}
}
