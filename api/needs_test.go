package api

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

// TestNeedsAreInTheContract compares the table with x-scope and x-whole.
func TestNeedsAreInTheContract(t *testing.T) {
	claims.Hold(t, "C4")
	contract, err := loadContract()
	if err != nil {
		t.Fatal(err)
	}
	left := maps.Clone(needs)
	for path, item := range contract.Paths.Map() {
		for method, operation := range item.Operations() {
			key := method + " " + path
			needed, ok := needs[key]
			if !ok {
				t.Errorf("%s is missing from the table of needs", key)
			}
			delete(left, key)
			scope, _ := operation.Extensions["x-scope"].(string)
			whole, _ := operation.Extensions["x-whole"].(bool)
			if string(needed.scope) != scope || needed.whole != whole {
				t.Errorf("%s needs %+v, the contract says x-scope %q, x-whole %t", key, needed, scope, whole)
			}
			if takes := takesQuery(operation) && operation.Responses.Status(400) != nil && path != "/jobs/{job_id}/wait_ready"; takes != needed.query {
				t.Errorf("%s needs %+v, the contract has parameters in its query: %t", key, needed, takes) // the original's takes any query
			}
			if open := operation.Security != nil && len(*operation.Security) == 0; open != (scope == "") {
				t.Errorf("%s: the contract says security: [] %t and x-scope %q", key, open, scope)
			}
			for _, status := range []int{401, 403, 429} {
				if strings.HasSuffix(key, " /session") {
					continue // who is refused there is said by the operation itself
				}
				if described := operation.Responses.Status(status) != nil; described != (scope != "") {
					t.Errorf("%s: the contract describes a %d: %t", key, status, described)
				}
			}
		}
	}
	for key := range left {
		t.Errorf("%s is in the table and not in the contract", key)
	}
}

// takesQuery reports whether an operation has parameters in its query.
func takesQuery(operation *openapi3.Operation) bool {
	return slices.ContainsFunc(operation.Parameters, func(p *openapi3.ParameterRef) bool { return p.Value.In == openapi3.ParameterInQuery })
}

// addressOf makes an address of a path of the contract.
func addressOf(path string) string {
	return strings.NewReplacer("{job_id}", "a", "{file}", "output", "{sheep_id}", "s", "{model}", "m:v1").Replace(path)
}

// TestScopes asks for every operation as everyone.
func TestScopes(t *testing.T) {
	claims.Hold(t, "C3")
	h := newHarness(t, asAdmin)
	h.service.add("a", job.Done).outputs["output"] = []byte("x")
	for key, needed := range needs {
		method, path, _ := strings.Cut(key, " ")
		for token, caller := range tokens {
			got := h.do(method, addressOf(path), "", "Authorization", "bearer "+token)
			allowed := needed.scope == "" || caller.May(needed.scope) && !(needed.whole && caller.Tenant != "")
			if allowed == (got.status == 403) || got.status == 401 {
				t.Errorf("%s as %s: %d %s", key, caller.Name, got.status, got.body)
			}
		}
		for name, header := range map[string]string{
			"a wrong token": "Bearer admin-tokem", "another scheme": "Basic YWRtaW46YWRtaW4tdG9rZW4=", "no token": "Bearer", "nothing": " ",
			"two tokens": "Bearer admin-token admin-token", "a hash": "Bearer " + access.DigestOf("admin-token").String(),
		} {
			got := h.do(method, addressOf(path), "", "Authorization", header)
			if needed.scope == "" {
				if got.status == 401 {
					t.Errorf("%s with %s: %d, though nobody is asked", key, name, got.status)
				}
				continue
			}
			if got.status != 401 && got.status != 429 || got.status == 401 && !strings.HasPrefix(got.header.Get("WWW-Authenticate"), `Bearer realm="shepherd"`) {
				t.Errorf("%s with %s: %d %v", key, name, got.status, got.header)
			}
		}
	}
	if len(h.service.submitted)+len(h.service.removed) > 1 {
		t.Errorf("submitted %v, removed %v", h.service.submitted, h.service.removed)
	}
}

// TestOpen is what those may who say nothing to a daemon that asks nobody.
func TestOpen(t *testing.T) {
	claims.Hold(t, "C1")
	h := newHarness(t)
	for key, needed := range needs {
		method, path, _ := strings.Cut(key, " ")
		for _, headers := range [][]string{nil, {"Authorization", "Bearer anything"}, {"Authorization", "Basic eDp5"}} {
			got := h.do(method, addressOf(path), "", headers...)
			if refused := got.status == 403; refused != (needed.scope == access.Admin) || got.status == 401 {
				t.Errorf("%s: %d %s", key, got.status, got.body)
			}
		}
	}
}

// TestWhatIsInNoTable: a route that somebody forgot is the administrator's.
func TestWhatIsInNoTable(t *testing.T) {
	claims.Hold(t, "C4")
	s := &gatekeeper{answers: answers{log: slog.New(slog.DiscardHandler)}, gate: new(access.Gate), refused: func(string) {}}
	w := httptest.NewRecorder()
	s.authorize(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("let in") })).ServeHTTP(w, httptest.NewRequest("GET", "/forgotten", nil))
	if w.Code != 403 {
		t.Errorf("%d", w.Code)
	}
}

// TestRefusalsAreLogged, with the name of who was refused, and without what it
// showed.
func TestRefusalsAreLogged(t *testing.T) {
	claims.Hold(t, "C5", "C6")
	var told []string
	h := newHarness(t, asAdmin, func(c *Config) { c.Refused = func(why string) { told = append(told, why) } })
	h.do("POST", "/start-job", "", "Authorization", "Bearer stolen-token")
	h.do("POST", "/start-job", "", "Authorization", "Bearer reader-token")
	for range 200 {
		if h.do("GET", "/status", "", "Authorization", "Bearer stolen-token").status == 429 {
			break
		}
	}
	if len(told) < 3 || told[0] != "unknown" || told[1] != "forbidden" || told[len(told)-1] != "limited" {
		t.Errorf("told %q", told)
	}
	warned := h.log.lines(slog.LevelWarn)
	if len(warned) != len(told)-1 || !strings.Contains(warned[0], `"client":"127.0.0.1:`) || !strings.Contains(warned[1], `"caller":"reader"`) {
		t.Errorf("logged %q", warned)
	}
	if text := h.log.String(); strings.Contains(text, "stolen-token") || strings.Contains(text, "reader-token") {
		t.Errorf("a token is in the log: %s", text)
	}
	// Who proves who it is comes in all the same.
	if got := h.get("/status"); got.status != 200 {
		t.Errorf("%d", got.status)
	}
}

func TestRateLimit(t *testing.T) {
	claims.Hold(t, "C9")
	h := newHarness(t, func(c *Config) {
		c.Gate = access.NewGate(access.Config{Rate: 0.01, Burst: 2, Tokens: []access.Token{
			{Digest: access.DigestOf("a"), Caller: access.Caller{Name: "a", Scopes: []access.Scope{access.Read}}},
			{Digest: access.DigestOf("b"), Caller: access.Caller{Name: "b", Scopes: []access.Scope{access.Read}}},
		}})
	})
	for i, want := range []int{200, 200, 429, 429} {
		got := h.get("/status", "Authorization", "Bearer a")
		if got.status != want || want == 429 && (got.header.Get("Retry-After") != "100" || !strings.Contains(got.body, "Too many requests")) {
			t.Errorf("request %d: %d %s %v", i, got.status, got.body, got.header)
		}
	}
	if got := h.get("/status", "Authorization", "Bearer b"); got.status != 200 {
		t.Errorf("another one: %d", got.status)
	}
	if got := h.get("/healthz"); got.status != 200 {
		t.Errorf("nobody: %d", got.status)
	}
}

func TestOrigins(t *testing.T) {
	claims.Hold(t, "C8")
	for _, c := range []struct {
		name         string
		origins      []string
		asks         bool
		allowed, own bool // to https://a.example; with the browser's own credentials
	}{
		{"as the original", []string{"*"}, false, true, true},
		{"any, where tokens are asked for", []string{"*"}, true, true, false},
		{"by name", []string{"https://b.example", "https://a.example"}, true, true, true},
		{"not by name", []string{"https://b.example"}, true, false, false},
		{"none", nil, false, false, false},
	} {
		h := newHarness(t, func(config *Config) {
			if config.Browsers = NewBrowsers(BrowserConfig{Origins: c.origins}); c.asks {
				asAdmin(config)
			}
		})
		for _, got := range []reply{
			h.get("/status", "Origin", "https://a.example"),
			h.do("OPTIONS", "/start-job", "", "Origin", "https://a.example", "Access-Control-Request-Method", "POST"),
		} {
			allowed, own := got.header.Get("Access-Control-Allow-Origin") == "https://a.example", got.header.Get("Access-Control-Allow-Credentials") == "true"
			if allowed != c.allowed || own != c.own || !slices.Contains(got.header.Values("Vary"), "Origin") {
				t.Errorf("%s: %v", c.name, got.header)
			}
		}
	}
}

// TestPagesOfOthers: a certificate is shown by the browser whoever asks it to.
func TestPagesOfOthers(t *testing.T) {
	claims.Hold(t, "C8")
	service := newFake()
	handler := New(Config{
		Service: service, Browsers: NewBrowsers(BrowserConfig{Origins: []string{"*", "https://mine.example"}}),
		Gate: access.NewGate(access.Config{ClientCA: true, Tokens: []access.Token{{Digest: access.DigestOf("t"), Caller: access.Caller{Name: "t", Scopes: access.Scopes()}}}}),
	})
	ask := func(method, path, body string, headers ...string) int {
		r := httptest.NewRequest(method, "https://shepherd.example"+path, strings.NewReader(body))
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{DNSNames: []string{"alice"}}}}}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Code
	}
	const start = `{"job_id": "x", "model": {"name": "m", "version": ""}, "payload": "p"}`
	for _, c := range []struct {
		name    string
		headers []string
		want    int
	}{
		{"a page of another origin", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site", "Content-Type", "text/plain"}, 403},
		{"a browser that says only the origin", []string{"Origin", "https://evil.example"}, 403},
		{"a page that hides its origin", []string{"Origin", "null"}, 403},
		{"a page that is listed", []string{"Origin", "https://mine.example", "Sec-Fetch-Site", "cross-site"}, 200},
		{"its own page", []string{"Origin", "https://shepherd.example", "Sec-Fetch-Site", "same-origin"}, 200},
		{"no browser", nil, 200},
		{"a page that has a token", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site", "Authorization", "Bearer t"}, 200},
	} {
		if got := ask("POST", "/start-job", start, c.headers...); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestSlowBody: who sends its request a byte at a time does not keep the daemon.
func TestSlowBody(t *testing.T) {
	claims.Hold(t, "C9")
	server := httptest.NewUnstartedServer(New(Config{Service: newFake()}))
	server.Config.ReadHeaderTimeout, server.Config.ReadTimeout = hang, 100*time.Millisecond // which counts from the headers' first byte
	server.Start()
	defer server.Close()
	body, half := io.Pipe()
	defer half.Close()
	go func() { _, _ = half.Write([]byte(`{"job_id": `)) }()
	request, err := http.NewRequest("POST", server.URL+"/start-job", body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	if response.StatusCode != 408 || !strings.Contains(string(text), "took too long") {
		t.Errorf("%d %s", response.StatusCode, text)
	}
}

// TestAnswersTellNothing asks for everything while everything goes wrong that can,
// in the worst words.
func TestAnswersTellNothing(t *testing.T) {
	claims.Hold(t, "C11")
	const secret = "/srv/shepherd/hunter2"
	faults := map[string]func(*fake){
		"errors": func(f *fake) {
			f.down = &job.Unavailable{Service: "storage", Problem: "is not reachable", Cause: &url.Error{Op: "get", URL: secret, Err: io.EOF}}
		},
		"faults": func(f *fake) { f.down = &url.Error{Op: "open", URL: secret, Err: io.ErrUnexpectedEOF} },
		"panics": func(f *fake) { f.panics = secret },
	}
	for name, inject := range faults {
		h := newHarness(t, asAdmin)
		inject(h.service)
		h.service.checks = []job.Check{{Name: "storage", Err: &url.Error{Op: "ping", URL: secret, Err: io.EOF}}}
		for key := range needs {
			method, path, _ := strings.Cut(key, " ")
			for _, body := range []string{"", `{"job_id": "x", "model": {"name": "m", "version": ""}}`, `{"model": {"name": "m", "version": ""}}`} {
				got := h.do(method, addressOf(path), body)
				for header, values := range got.header {
					if strings.Contains(strings.Join(values, " "), "hunter2") {
						t.Errorf("%s: %s: %s tells it", name, key, header)
					}
				}
				for _, told := range []string{"hunter2", "goroutine ", ".go:"} {
					if strings.Contains(got.body, told) && got.status >= 400 {
						t.Errorf("%s: %s answers %d %s", name, key, got.status, got.body)
					}
				}
			}
		}
		if !strings.Contains(h.log.String(), "hunter2") {
			t.Errorf("%s: the log does not say what happened", name)
		}
	}
}
