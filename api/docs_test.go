package api

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/api/manual"
	"github.com/iterait/shepherd/api/page"
	"github.com/iterait/shepherd/api/ui"
	"github.com/iterait/shepherd/internal/testenv"
)

func TestSpec(t *testing.T) {
	h := newHarness(t)
	got := h.get("/spec.json")
	var spec struct {
		OpenAPI string                    `json:"openapi"`
		Paths   map[string]map[string]any `json:"paths"`
	}
	if err := json.Unmarshal([]byte(got.body), &spec); err != nil {
		t.Fatal(err)
	}
	if got.status != 200 || spec.OpenAPI != "3.0.3" || spec.Paths["/start-job"]["post"] == nil {
		t.Errorf("%d %.200s", got.status, got.body)
	}
	if strings.Contains(got.body, "x-go-") {
		t.Error("what is meant for the code generator is served")
	}
	etag := got.header.Get("Etag")
	if again := h.get("/spec.json", "If-None-Match", etag); etag == "" || again.status != 304 || again.body != "" {
		t.Errorf("ETag %q: %d %q", etag, again.status, again.body)
	}
}

func TestPagesAndTheirAssets(t *testing.T) {
	h := newHarness(t)
	for _, page := range []string{"/ui", "/apidocs"} {
		got := h.get(page)
		if got.status != 200 || got.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(got.header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %d %v", page, got.status, got.header)
		}
		if strings.Contains(got.body, "//") {
			t.Errorf("%s names another place: %s", page, got.body)
		}
	}
	for _, asset := range slices.Concat(ui.Assets(), page.Assets(), manual.Assets()) {
		plain := h.get(asset.Path, "Accept-Encoding", "br, gzip;q=0")
		packed := h.get(asset.Path, "Accept-Encoding", "br, gzip")
		if plain.status != 200 || plain.header.Get("Content-Encoding") != "" || len(plain.body) == 0 {
			t.Errorf("%s: %d %v", asset.Path, plain.status, plain.header)
		}
		content := packed.body
		if packed.header.Get("Content-Encoding") == "gzip" {
			unpacked, err := gzip.NewReader(strings.NewReader(packed.body))
			if err != nil {
				t.Fatal(err)
			}
			bytes, err := io.ReadAll(unpacked)
			if err != nil {
				t.Fatal(err)
			}
			content = string(bytes)
		} else if len(content) > 10_000 && !strings.HasSuffix(asset.Path, ".png") {
			t.Errorf("%s is sent unpacked, %d bytes", asset.Path, len(content))
		}
		if content != plain.body {
			t.Errorf("%s differs packed and unpacked", asset.Path)
		}
		if again := h.get(asset.Path, "If-None-Match", plain.header.Get("Etag")); again.status != 304 {
			t.Errorf("%s: %d for a client that has it", asset.Path, again.status)
		}
	}
}

// TestPageAtTheRoot: browsers get the page, and other clients what they always got.
func TestPageAtTheRoot(t *testing.T) {
	h := newHarness(t, asAdmin)
	h.client.Transport = h.client.Transport.(shower).Transport // shows no token by itself
	got := h.get("/", "Accept", "text/html,*/*;q=0.8")
	policy := got.header.Get("Content-Security-Policy")
	if got.status != 200 || !strings.Contains(got.body, "<title>shepherd</title>") || !strings.Contains(policy, "style-src 'self';") || !slices.Contains(got.header.Values("Vary"), "Accept") {
		t.Errorf("a browser: %d %v", got.status, got.header)
	}
	for _, accept := range []string{"*/*", "application/json"} {
		if other := h.get("/", "Accept", accept); other.status != 404 || other.body != h.get("/nowhere", "Accept", accept).body {
			t.Errorf("Accept: %s: %d %s", accept, other.status, other.body)
		}
	}
}

// TestPagesInABrowser looks at the pages as a user does. All the browser's
// traffic goes through a proxy that lets it reach the daemon only and
// remembers what else it asked for.
func TestPagesInABrowser(t *testing.T) {
	chromium := testenv.Command(t, "chromium", "chromium")
	daemon := httptest.NewServer(New(Config{Service: newFake(), Browsers: NewBrowsers(BrowserConfig{Hosts: []string{"shepherd.test"}})}))
	defer daemon.Close()
	address := strings.TrimPrefix(daemon.URL, "http://")

	var mu sync.Mutex
	var inside, outside []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method != http.MethodConnect && r.URL.Host == "shepherd.test" {
			inside = append(inside, r.URL.Path)
			request := r.Clone(r.Context())
			request.URL.Host, request.RequestURI = address, ""
			response, err := http.DefaultTransport.RoundTrip(request)
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			for name, values := range response.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(response.StatusCode)
			io.Copy(w, response.Body)
			return
		}
		outside = append(outside, r.Method+" "+r.Host+" "+r.URL.Path)
		w.WriteHeader(http.StatusForbidden)
	}))
	defer proxy.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()

	for page, wanted := range map[string][]string{
		"/ui":      {"swagger-ui", "/start-job", "/jobs/{job_id}/wait_ready", "/jobs/{job_id}/result/{file}", "/readyz"},
		"/apidocs": {"redoc", "/start-job", "/jobs/{job_id}/wait_ready", "/jobs/{job_id}/result/{file}", "/readyz"},
	} {
		t.Run(page, func(t *testing.T) {
			mu.Lock()
			inside, outside = nil, nil
			mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a hang guard
			defer cancel()
			browser := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
				"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
				"--disable-domain-reliability", "--no-pings", "--user-data-dir="+t.TempDir(), "--proxy-server="+proxy.URL,
				"--virtual-time-budget=30000", "--enable-logging=stderr", "--dump-dom", "http://shepherd.test"+page)
			var stderr strings.Builder
			browser.Stderr = &stderr
			dom, err := browser.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			visible := strings.NewReplacer("\u200b", "", "<wbr>", "", "&#8203;", "").Replace(string(dom))
			for _, text := range wanted {
				if !strings.Contains(visible, text) {
					t.Errorf("the page does not show %q (%d bytes)\n%s", text, len(dom), stderr.String())
				}
			}
			for line := range strings.Lines(stderr.String()) {
				if strings.Contains(line, "CONSOLE") && strings.Contains(line, "Content Security Policy") {
					t.Errorf("the page asks for what its policy refuses: %s", line)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for _, asked := range outside {
				// The browser's own calls home are no page's doing.
				if !strings.Contains(asked, "google") && !strings.Contains(asked, "gvt1.com") {
					t.Errorf("the page asked for %s", asked)
				}
			}
			if len(inside) < 3 {
				t.Errorf("the page loaded only %q", inside)
			}
			t.Logf("asked the daemon for %q", inside)
		})
	}
}
