package api

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// TestFilesAreSandboxed: what a model wrote is shown without scripts, and in an
// origin of its own.
func TestFilesAreSandboxed(t *testing.T) {
	claims.Hold(t, "B1")
	h := newHarness(t)
	j := h.service.add("a", job.Done)
	j.outputs["report.html"], j.inputs["picture.svg"] = []byte("<script>1</script>"), []byte("<svg/>")
	for _, path := range []string{"/jobs/a/result/report.html", "/jobs/a/input/picture.svg"} {
		got := h.get(path)
		policy := got.header.Get("Content-Security-Policy")
		if got.status != 200 || !strings.HasPrefix(policy, "sandbox;") || strings.Contains(policy, "allow-") || got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", path, got.status, got.header)
		}
	}
	for _, path := range []string{"/status", "/jobs/none/status", "/nowhere", "/spec.json"} {
		if got := h.get(path); got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, got.header)
		}
	}
}

// TestReportInABrowser opens a result whose script asks for the status of jobs.
func TestReportInABrowser(t *testing.T) {
	claims.Hold(t, "B1")
	chromium := testenv.Command(t, "chromium", "chromium")
	service := newFake()
	service.add("a", job.Done).outputs["report.html"] = []byte(`<p id="x">text of the report</p>
<script>document.getElementById("x").textContent = "the script ran"; fetch("/status")</script>
<img src="/jobs/a/result/none.png" onerror="document.getElementById('x').textContent = 'the handler ran'">`)
	var mu sync.Mutex
	var asked []string
	handler := New(Config{Service: service, Browsers: NewBrowsers(BrowserConfig{Origins: []string{"*"}})})
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		handler.ServeHTTP(w, r)
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a hang guard
	defer cancel()
	dom, err := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(),
		"--virtual-time-budget=5000", "--dump-dom", daemon.URL+"/jobs/a/result/report.html").Output()
	daemon.Close() // and with it, what it asks
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(dom), ">text of the report<") {
		t.Errorf("the page shows %s", dom)
	}
	for _, path := range asked {
		if path == "/status" {
			t.Errorf("the script asked for %q", asked)
		}
	}
}

// TestForeignHosts: a name that a page of the internet has been given is refused
// where only this machine can connect.
func TestForeignHosts(t *testing.T) {
	claims.Hold(t, "B2")
	handler := New(Config{Service: newFake(), Browsers: NewBrowsers(BrowserConfig{Hosts: []string{"gpu.example.com"}})})
	loopback, network := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5000}
	socket := &net.UnixAddr{Name: "/run/shepherd/api.sock", Net: "unix"}
	for _, c := range []struct {
		at   net.Addr
		host string
		want int
	}{
		{loopback, "127.0.0.1:5000", 200}, {loopback, "localhost", 200}, {loopback, "LOCALHOST:5000", 200}, {loopback, "[::1]:5000", 200},
		{loopback, "a.localhost:5000", 200}, {loopback, "gpu.example.com", 200}, {loopback, "GPU.example.com.:5000", 200}, {loopback, "10.0.0.7", 200},
		{loopback, "evil.example", 421}, {loopback, "evil.example:5000", 421}, {loopback, "localhost.evil.example", 421}, {loopback, "shepherd", 421},
		{loopback, "notlocalhost", 421}, {loopback, "127.0.0.1.evil.example", 421},
		{&net.TCPAddr{IP: net.IPv6loopback}, "evil.example", 421},
		{socket, "shepherd", 200}, {socket, "localhost", 200}, {socket, "evil.example", 421},
		{network, "any.example", 200},
	} {
		r := httptest.NewRequest("GET", "/healthz", nil)
		r.Host = c.host
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, c.at)))
		if w.Code != c.want {
			t.Errorf("%s at %s: %d, want %d", c.host, c.at, w.Code, c.want)
		}
	}
}

// TestForeignPages: where no token is asked for, a page of another origin may read
// if cors_origins says so, and may change something if it is listed by name.
func TestForeignPages(t *testing.T) {
	claims.Hold(t, "B3")
	const start = `{"job_id": "x", "model": {"name": "m", "version": ""}, "payload": "p"}`
	foreign := []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site", "Content-Type", "text/plain"}
	for _, c := range []struct {
		name    string
		origins []string
		headers []string
		want    int
	}{
		{"no browser", nil, nil, 200},
		{"a foreign page", nil, foreign, 403},
		{"a foreign page, any origin may read", []string{"*"}, foreign, 403},
		{"a listed page", []string{"https://evil.example"}, foreign, 200},
		{"a page that hides its origin", []string{"*"}, []string{"Origin", "null"}, 403},
		{"a form", nil, []string{"Sec-Fetch-Site", "cross-site"}, 403},
	} {
		h := newHarness(t, func(config *Config) { config.Browsers = NewBrowsers(BrowserConfig{Origins: c.origins}) })
		if got := h.do("POST", "/start-job", start, c.headers...); got.status != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, got.status, got.body, c.want)
		}
		if got := h.do("POST", "/jobs/none/cancel", "", c.headers...); (got.status == 403) != (c.want == 403) {
			t.Errorf("%s cancels: %d %s", c.name, got.status, got.body)
		}
		if got := h.get("/status", c.headers...); got.status != 200 {
			t.Errorf("%s reads: %d", c.name, got.status)
		}
	}
	// The list is replaced while the daemon runs.
	browsers := NewBrowsers(BrowserConfig{})
	h := newHarness(t, func(config *Config) { config.Browsers = browsers })
	if got := h.do("POST", "/start-job", start, foreign...); got.status != 403 {
		t.Errorf("before: %d", got.status)
	}
	browsers.Set(BrowserConfig{Origins: []string{"https://evil.example"}})
	if got := h.do("POST", "/start-job", start, foreign...); got.status != 200 {
		t.Errorf("after: %d", got.status)
	}
}

// TestSessions signs in, works, and signs out.
func TestSessions(t *testing.T) {
	claims.Hold(t, "B4")
	h := newHarness(t, asAdmin)
	h.client.Transport = h.client.Transport.(shower).Transport // shows no token by itself
	if got := h.get("/session"); got.status != 200 || !sameJSON(t, got.body, `{"name": null, "scopes": [], "tenant": null}`) {
		t.Errorf("nobody: %d %s", got.status, got.body)
	}
	if got := h.do("POST", "/session", `{"token": "wrong-token"}`); got.status != 401 || got.header.Get("Set-Cookie") != "" {
		t.Errorf("a wrong token: %d %v", got.status, got.header)
	}
	if got := h.do("POST", "/session", `{"token": "wool-token"}`, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"); got.status != 403 || got.header.Get("Set-Cookie") != "" {
		t.Errorf("a foreign page signs in: %d %v", got.status, got.header)
	}
	for _, body := range []string{"", "{}", `{"token": 1}`, "x"} {
		if got := h.do("POST", "/session", body); got.status != 400 {
			t.Errorf("%q: %d %s", body, got.status, got.body)
		}
	}
	signed := h.do("POST", "/session", `{"token": "wool-token"}`)
	h.expect(signed, 200, `{"name": "wool", "scopes": ["submit", "read"], "tenant": "wool"}`)
	cookie, err := http.ParseSetCookie(signed.header.Get("Set-Cookie"))
	if err != nil || cookie.Name != access.SessionCookie || !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Path != "/" || len(cookie.Value) < 43 {
		t.Fatalf("%v, %v", signed.header, err)
	}
	with := []string{"Cookie", cookie.Name + "=" + cookie.Value}
	const start = `{"job_id": "x", "model": {"name": "m", "version": ""}, "payload": "p"}`
	if got := h.do("POST", "/start-job", start, append(with, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")...); got.status != 403 {
		t.Errorf("a foreign page with the cookie: %d", got.status)
	}
	if got := h.do("POST", "/start-job", start, append(with, "Origin", h.url, "Sec-Fetch-Site", "same-origin")...); got.status != 200 || h.service.submitted[0].Tenant != "wool" {
		t.Errorf("its own page: %d %s", got.status, got.body)
	}
	if got := h.get("/metrics", with...); got.status != 403 {
		t.Errorf("a tenant: %d", got.status)
	}
	if got := h.get("/status", "Cookie", cookie.Name+"=x"); got.status != 401 {
		t.Errorf("another cookie: %d", got.status)
	}
	if got := h.do("DELETE", "/session", "", append(with, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")...); got.status != 403 {
		t.Errorf("a foreign page signs out: %d", got.status)
	}
	if got := h.do("DELETE", "/session", "", with...); got.status != 200 || !strings.Contains(got.header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("signing out: %d %v", got.status, got.header)
	}
	if got := h.get("/status", with...); got.status != 401 {
		t.Errorf("after signing out: %d", got.status)
	}
	if strings.Contains(h.log.String(), cookie.Value) || strings.Contains(h.log.String(), "wool-token") {
		t.Error("the log has a secret")
	}
}

// TestReadinessIsCached: anyone may ask, and the checks cost something.
func TestReadinessIsCached(t *testing.T) {
	claims.Hold(t, "C13")
	checks := 0
	c := &readiness{check: func(ctx context.Context) []job.Check {
		checks++
		if ctx.Err() != nil {
			t.Error("the checks end with the client")
		}
		return []job.Check{{Name: "ledger"}}
	}}
	gone, leave := context.WithCancel(t.Context())
	leave()
	for range 100 {
		if got := c.get(gone); len(got) != 1 {
			t.Fatalf("%v", got)
		}
	}
	if checks > 2 {
		t.Errorf("%d checks", checks)
	}
	c.at = c.at.Add(-2 * readinessAge)
	before := checks
	c.get(t.Context())
	if checks != before+1 {
		t.Error("an old result is used")
	}
}
