package api

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/access"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loadContract parses openapi.yaml once.
var loadContract = sync.OnceValues(func() (*openapi3.T, error) {
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		return nil, err
	}
	loader := openapi3.NewLoader()
	return loader.LoadFromData(text)
})

// harness is a served API. Every answer it gets is held against the contract.
type harness struct {
	t       testing.TB
	service *fake
	url     string
	client  *http.Client
	log     *logRecorder
}

func newHarness(t testing.TB, change ...func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, service: newFake(), log: &logRecorder{}}
	config := Config{Service: h.service, Browsers: NewBrowsers(BrowserConfig{Origins: []string{"*"}}), Version: "1.2.3", Commit: "abc", Log: slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, c := range change {
		c(&config)
	}
	server := httptest.NewServer(New(config))
	h.url = server.URL
	h.client = &http.Client{
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if config.Gate != nil && config.Gate.Asks() {
		h.client.Transport = shower{h.client.Transport.(*http.Transport)}
	}
	t.Cleanup(func() {
		h.client.CloseIdleConnections()
		server.Close()
		if open := h.service.open.Load(); open != 0 {
			t.Errorf("%d files were opened and not closed", open)
		}
	})
	return h
}

// tokens are what the gate of asAdmin and withTokens knows, by who has them.
var tokens = map[string]access.Caller{
	"admin-token":  {Name: "boss", Scopes: access.Scopes()},
	"reader-token": {Name: "reader", Scopes: []access.Scope{access.Read}},
	"writer-token": {Name: "writer", Scopes: []access.Scope{access.Submit}},
	"wool-token":   {Name: "wool", Scopes: []access.Scope{access.Submit, access.Read}, Tenant: "wool"},
}

// asAdmin makes the API ask for tokens, and the harness show the administrator's.
func asAdmin(c *Config) {
	known := access.Config{}
	for token, caller := range tokens {
		known.Tokens = append(known.Tokens, access.Token{Digest: access.DigestOf(token), Caller: caller})
	}
	c.Gate = access.NewGate(known)
}

// shower shows the administrator's token where a test shows none itself.
type shower struct{ *http.Transport }

func (s shower) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Authorization") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer admin-token")
	}
	return s.Transport.RoundTrip(r)
}

func debugMode(c *Config) { c.Debug = true }

// reply is an answer with its body read.
type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request; headers are name, value pairs.
func (h *harness) do(method, path, body string, headers ...string) reply {
	h.t.Helper()
	request, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	response, err := h.client.Do(request)
	if err != nil {
		h.t.Fatal(err)
	}
	defer response.Body.Close()
	var from io.Reader = response.Body
	if strings.HasPrefix(response.Header.Get("Content-Type"), "text/event-stream") {
		from = &firstRead{from: from} // the rest may never end
	}
	content, err := io.ReadAll(from)
	if err != nil {
		h.t.Fatal(err)
	}
	got := reply{response.StatusCode, response.Header, string(content)}
	h.validate(request, got)
	return got
}

// firstRead ends after the first bytes.
type firstRead struct {
	from io.Reader
	over bool
}

func (r *firstRead) Read(p []byte) (int, error) {
	if r.over {
		return 0, io.EOF
	}
	r.over = true
	return r.from.Read(p)
}

func (h *harness) get(path string, headers ...string) reply {
	h.t.Helper()
	return h.do(http.MethodGet, path, "", headers...)
}

// expect checks an answer's status and its JSON body.
func (h *harness) expect(got reply, status int, body string) {
	h.t.Helper()
	if got.status != status {
		h.t.Fatalf("status %d, want %d; body %s", got.status, status, got.body)
	}
	if !sameJSON(h.t, got.body, body) {
		h.t.Errorf("body %s\nwant %s", got.body, body)
	}
	if kind := got.header.Get("Content-Type"); kind != "application/json; charset=utf-8" {
		h.t.Errorf("Content-Type %q", kind)
	}
}

// problem checks an answer that is a problem of the given type.
func (h *harness) problem(got reply, status int, kind, detail string) Problem {
	h.t.Helper()
	var p Problem
	if err := json.Unmarshal([]byte(got.body), &p); err != nil || got.header.Get("Content-Type") != "application/problem+json; charset=utf-8" {
		h.t.Fatalf("%d %s is no problem: %v", got.status, got.body, err)
	}
	id := got.header.Get("X-Request-Id")
	want := Problem{
		Type: "urn:shepherd:problem:" + kind, Title: http.StatusText(status), Status: status, Detail: detail, Message: detail,
		RequestId: id, Field: p.Field, Cause: p.Cause,
	}
	if got.status != status || p != want || id == "" {
		h.t.Errorf("%d %+v\nwant %+v", got.status, p, want)
	}
	return p
}

func sameJSON(t testing.TB, a, b string) bool {
	t.Helper()
	var av, bv any
	if err := json.Unmarshal([]byte(a), &av); err != nil {
		t.Fatalf("%q is not JSON: %v", a, err)
	}
	if err := json.Unmarshal([]byte(b), &bv); err != nil {
		t.Fatalf("%q is not JSON: %v", b, err)
	}
	return reflect.DeepEqual(av, bv)
}

// validate holds an answer against the contract, where that knows the path.
func (h *harness) validate(request *http.Request, got reply) {
	h.t.Helper()
	contract, err := loadContract()
	if err != nil {
		h.t.Fatal(err)
	}
	path := contractPath(contract, request.URL.EscapedPath())
	if path == "" {
		return
	}
	method := request.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	operation := contract.Paths.Value(path).GetOperation(method)
	if operation == nil || got.status == http.StatusNoContent {
		return
	}
	if operation.Responses.Status(got.status) == nil {
		h.t.Errorf("%s %s answered %d, of which the contract knows nothing", method, path, got.status)
		return
	}
	isJSON := strings.HasPrefix(got.header.Get("Content-Type"), "application/json")
	content := operation.Responses.Status(got.status).Value.Content
	if isJSON && content.Get("application/json") == nil || request.Method == http.MethodHead || content["*/*"] != nil || content.Get("text/html") != nil || content["text/event-stream"] != nil {
		return // a file, or no body
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: request, Route: route(contract, path, method)},
		Status:                 got.status, Header: got.header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	input.SetBodyBytes([]byte(got.body))
	if err := openapi3filter.ValidateResponse(h.t.Context(), input); err != nil {
		h.t.Errorf("%s %s: the answer breaks the contract: %v", method, path, err)
	}
}

// contractPath is the template of the contract that an address belongs to.
func contractPath(contract *openapi3.T, address string) string {
	segments := strings.Split(address, "/")
	if len(segments) > 5 && segments[1] == "jobs" { // a nested file name
		segments = append(segments[:4:4], strings.Join(segments[4:], "%2F"))
	}
	for path := range contract.Paths.Map() {
		template := strings.Split(path, "/")
		if len(template) != len(segments) {
			continue
		}
		same := true
		for i := range template {
			same = same && (template[i] == segments[i] || strings.HasPrefix(template[i], "{") && segments[i] != "")
		}
		if same {
			return path
		}
	}
	return ""
}

// logRecorder keeps log lines.
type logRecorder struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logRecorder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logRecorder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// lines are the log lines of a level.
func (l *logRecorder) lines(level slog.Level) (found []string) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, `"level":"`+level.String()+`"`) {
			found = append(found, line)
		}
	}
	return found
}

// serveBoth sends the same request to the API and to a reference.
func serveBoth(h *harness, path string, reference http.Handler, headers []string) (got, want reply) {
	h.t.Helper()
	got = h.get(path, headers...)
	request := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	reference.ServeHTTP(w, request)
	return got, reply{w.Code, w.Header(), w.Body.String()}
}
