// Package page drives the page at `/` in a real browser, with a real daemon with simulated
// GPUs and models.
package page

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api"
	pages "github.com/iterait/shepherd/api/page"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/test/page/day"
)

var (
	shots    = flag.String("shots", "", "write screenshots of every view, in both themes and three widths, to this directory")
	pictures = flag.String("pictures", "", "write the pictures of README and docs to this directory")
)

// modulesVar names the directory that has node_modules with playwright-core and axe-core;
// by default it is where the Makefile puts them.
const modulesVar = "SHEPHERD_TEST_BROWSER"

// guard bounds a whole test: a hang guard.
const guard = 10 * time.Minute

var programs string

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if programs, err = os.MkdirTemp("", "page-programs-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(programs)) }()
	for _, name := range []string{"shepherdd", "shepherd-shim"} {
		if err := testenv.Build(filepath.Join(programs, name), "cmd/"+name); err != nil {
			return 1, err
		}
	}
	for name, pkg := range map[string]string{"shepherd-gpu": "test/e2e/standin", "page-runner": "test/page/runner"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(programs, name), "github.com/iterait/shepherd/"+pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build %s: %w: %s", pkg, err, out)
		}
	}
	return m.Run(), nil
}

// start starts a daemon and fills it.
func start(t testing.TB, cfg day.Config) (*day.Day, context.Context) {
	d, ctx := begin(t, cfg, func(context.Context, string) error { return nil })
	began := time.Now()
	if err := d.Fill(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the day took %v", time.Since(began).Round(time.Millisecond))
	return d, ctx
}

// begin starts a daemon, after prepare has had its state directory.
func begin(t testing.TB, cfg day.Config, prepare func(ctx context.Context, state string) error) (*day.Day, context.Context) {
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	t.Cleanup(cancel)
	cfg.Programs, cfg.Dir = programs, shortDir(t)
	d, err := day.New(cfg)
	if err == nil {
		err = prepare(ctx, filepath.Join(cfg.Dir, "state"))
	}
	if err == nil {
		err = d.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			if log, err := os.ReadFile(filepath.Join(cfg.Dir, "shepherdd.log")); err == nil {
				t.Logf("the daemon's log ends with\n%s", log[max(0, len(log)-4000):])
			}
		}
	})
	return d, ctx
}

// shortDir is a directory whose name leaves room for that of a socket.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "page-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// browse runs a script of browser.mjs, which requests actions of this process with lines
// "do NAME" and reports failures with lines "fail TEXT".
func browse(t testing.TB, ctx context.Context, script string, d *day.Day, do map[string]func() error) {
	t.Helper()
	node, chromium := testenv.Command(t, "node", "nodejs"), testenv.Command(t, "chromium", "chromium")
	modules, err := filepath.Abs(cmp.Or(os.Getenv(modulesVar), "../../.cache/browser"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(modules, "node_modules/axe-core/package.json")); err != nil {
		testenv.Missing(t, "playwright-core from npm", "make .cache/browser/node_modules/axe-core/package.json fetches it, with axe-core")
	}
	cmd := exec.CommandContext(ctx, node, "browser.mjs", script)
	cmd.Env = append(os.Environ(), "PAGE="+d.URL, "HOLD="+d.Hold(), "CHROMIUM="+chromium, modulesVar+"="+modules, "SHOTS="+*shots, "PICTURES="+*pictures)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	over := false
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "do":
			if err := do[rest](); err != nil {
				t.Fatalf("%s: %v", rest, err)
			}
			if _, err := io.WriteString(stdin, "done\n"); err != nil {
				t.Fatal(err)
			}
		case "fail":
			t.Error(rest)
		case "over":
			over = true
		default:
			t.Log(lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil || !over {
		t.Errorf("the script has ended early: %v", err)
	}
}

// TestPage uses every view and action of a daemon without tokens: no text is parsed as markup,
// axe finds nothing, nothing is requested from other hosts, and the page reconnects to a
// daemon that was killed and restarted.
func TestPage(t *testing.T) {
	claims.Hold(t, "B6")
	d, ctx := start(t, day.Config{Quick: true})
	browse(t, ctx, "open", d, map[string]func() error{
		"kill":    d.Kill,
		"start":   func() error { return d.Start(ctx) },
		"release": func() error { return os.WriteFile(d.Hold(), nil, 0o600) },
		"submit": func() error {
			return d.Submit(ctx, day.Job{"job_id": "from-elsewhere", "model": map[string]string{"name": "report", "version": "v4"}, "payload": "x", "not_before": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}, nil)
		},
	})
}

// TestLargeFiles: the page uploads large files directly to a MinIO that allows every origin,
// and through the daemon if it allows only another.
func TestLargeFiles(t *testing.T) {
	for script, env := range map[string][]string{"large": nil, "large-refused": {"MINIO_API_CORS_ALLOW_ORIGIN=https://elsewhere.example"}} {
		t.Run(script, func(t *testing.T) {
			minio := testenv.StartMinIO(t, env...)
			d, ctx := begin(t, day.Config{Quick: true, Storage: fmt.Sprintf("  url: %q\n  access_key: %s\n  secret_key: %s\n", minio.URL, minio.AccessKey, minio.SecretKey)},
				func(context.Context, string) error { return nil })
			browse(t, ctx, script, d, nil)
		})
	}
}

// TestPictures takes pictures of every view, for people. It runs only on request.
func TestPictures(t *testing.T) {
	if *shots == "" || *pictures == "" {
		t.Skip("make page-shots takes the pictures")
	}
	for _, dir := range []string{*shots, *pictures} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d, ctx := start(t, day.Config{Pulls: day.CanPull()})
	browse(t, ctx, "pictures", d, nil)
}

// TestManyJobs shows a daemon that has run 100,000 jobs: the page requests and keeps only what
// it shows.
func TestManyJobs(t *testing.T) {
	const jobs = 100_000
	d, ctx := begin(t, day.Config{Quick: true}, func(ctx context.Context, state string) error { return remember(ctx, state, jobs) })
	browse(t, ctx, "many", d, nil)
}

// remember puts ended jobs into the ledger of a stopped daemon.
func remember(ctx context.Context, state string, jobs int) (err error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	l, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(state, "ledger.db")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	first := time.Now().Add(-24 * time.Hour)
	for from := 0; from < jobs; from += 10_000 {
		batch := make([]ledger.Saved, 10_000)
		for i := range batch {
			n := from + i
			at := first.Add(time.Duration(n) * 24 * time.Hour / time.Duration(jobs))
			rec := job.Record{
				ID: job.ID(fmt.Sprintf("scan-%06d", n)), Run: 1, State: job.Done, Model: job.Model{Name: []string{"segment", "caption", "report"}[n%3], Version: "v1"},
				Labels: map[string]string{"batch": fmt.Sprint(n / 1000)}, EnqueuedAt: at, StartedAt: at.Add(time.Second), FinishedAt: at.Add(3 * time.Second),
			}
			if n%100 == 0 {
				rec.State, rec.Failure = job.Failed, &job.Failure{Message: "CUDA out of memory"}
			}
			batch[i] = ledger.Saved{Record: rec}
		}
		if err := l.Restore(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// TestRights signs in with tokens of several kinds.
func TestRights(t *testing.T) {
	tokens := "  tokens:\n"
	for _, one := range []struct{ name, scopes, tenant string }{
		{"boss", "[admin, submit, read]", ""}, {"looker", "[read]", ""}, {"sender", "[submit]", ""}, {"wool", "[submit, read]", "wool"},
	} {
		tokens += fmt.Sprintf("    - name: %s\n      hash: %s\n      scopes: %s\n", one.name, access.DigestOf(one.name+"-token-0123456789"), one.scopes)
		if one.tenant != "" {
			tokens += "      tenant: " + one.tenant + "\n"
		}
	}
	d, ctx := start(t, day.Config{Quick: true, API: tokens, Token: "boss-token-0123456789"})
	browse(t, ctx, "tokens", d, nil)
}

// BenchmarkFirstView measures how long it takes on a slow connection (1.6 Mbit/s, 150 ms)
// until the flock is shown and links can be followed: the median of several browsers that
// have nothing of the page.
func BenchmarkFirstView(b *testing.B) {
	d, ctx := start(b, day.Config{Quick: true})
	for b.Loop() {
		browse(b, ctx, "first", d, map[string]func() error{})
	}
}

// TestFleet shows twenty invented nodes with a hundred sheep.
func TestFleet(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	defer cancel()
	flock, gpus := madeUpFleet()
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", pages.Index())
	for _, asset := range pages.Assets() {
		mux.Handle("GET "+asset.Path, asset)
	}
	answer := func(path, text string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, text)
		})
	}
	answer("/session", `{"name": "anonymous", "tenant": null, "scopes": ["read", "submit"]}`)
	answer("/jobs", `{"jobs": [], "next": null}`)
	answer("/models", madeUpModels())
	mux.HandleFunc("GET /flock", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("follow") == "false" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, flock)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, "event: flock\ndata: %s\n\nevent: gpus\ndata: %s\n\n", flock, gpus)
		alive := time.NewTicker(5 * time.Second)
		defer alive.Stop()
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-alive.C:
				_, _ = io.WriteString(w, "event: alive\ndata: {}\n\n")
			}
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	browse(t, ctx, "fleet", &day.Day{URL: server.URL}, nil)
}

// madeUpModels returns the models of a fleet in which one node does not answer, as JSON.
func madeUpModels() string {
	list := api.ModelList{Unanswered: &[]api.UnansweredNode{{Name: "gpu-19", Problem: "does not answer"}}}
	for n := range 5 {
		node := fmt.Sprintf("gpu-%02d", n)
		list.Models = append(list.Models, api.KeptModel{Name: "transcribe", Version: "large-v3", Size: 3 << 30, OwnSize: 2 << 30, Node: &node})
	}
	return string(must(json.Marshal(list)))
}

// madeUpFleet returns the flock of twenty nodes and their GPUs, as JSON.
func madeUpFleet() (flock, gpus string) {
	now := time.Now()
	name := func(name, version string) api.Model { return api.Model{Name: &name, Version: &version} }
	text := func(text string) *string { return &text }
	usual := &api.Usual{Jobs: 40, Low: 31, Likely: 40, High: 55}
	models := []api.Model{name("transcribe", "large-v3"), name("segment", "v2"), name("registry.example.com/team/caption-with-a-long-name", "2026-11-03")}
	var f api.Flock
	list := api.GPUList{Gpus: []api.GPU{}, Others: []api.OtherDevice{}}
	for n := range 20 {
		node := fmt.Sprintf("gpu-%02d", n)
		if n == 7 {
			node = "a-node-whose-name-is-as-long-as-names-of-cloud-machines-are.europe-west4.example"
		}
		for i := range 5 {
			s := api.FlockSheep{
				Name: fmt.Sprintf("%s/sheep-%d", node, i), Node: &node, Type: "container", Running: true, Model: models[(n+i)%3], Condition: "able",
				Usual: usual, TurnEndsAt: job.FormatTime(now.Add(time.Duration(n+1) * time.Minute)),
			}
			switch (5*n + i) % 9 {
			case 0:
				s.Condition, s.Detail, s.Running = "blocked", text("GPU 3 is out: Xid 79, it has fallen off the bus"), false
			case 1:
				s.Condition, s.Detail = "resting", text("rests for 12s: no space left on device")
			case 2:
				s.Running, s.Model, s.Detail = false, name("", ""), text("pulling segment:v2: 43%, 1.7 GiB of 4.0 GiB at 200 MiB/s, 3 of 7 layers")
				s.Pull = &api.PullProgress{Text: *s.Detail, Done: new(int64(43) << 30), Total: new(int64(100) << 30), Rate: new(int64(200) << 20)}
			case 3, 4:
			default:
				s.Job, s.StartedAt = text(fmt.Sprintf("scan-2026-11-29-%04d", 100*n+i)), job.FormatTime(now.Add(-time.Duration(10*i+n)*time.Second))
				s.RunningSince = s.StartedAt
			}
			f.Sheep = append(f.Sheep, s)
		}
		for i := range 4 {
			health, busy := api.GPUHealth("ok"), 25*i
			if n%6 == 0 && i == 3 {
				health = "out"
			}
			list.Gpus = append(list.Gpus, api.GPU{
				Node: &node, Index: i, Uuid: fmt.Sprintf("GPU-%02d-%d", n, i), Name: "NVIDIA H100 80GB", Memory: 80 << 30, Used: int64(10*i+5) << 30, Utilization: &busy,
				Health: health, Foreign: []api.GPUProcess{}, Sheep: []api.DeviceUser{{Name: fmt.Sprintf("%s/sheep-%d", node, i), Model: models[0], Used: int64(10*i+3) << 30}},
			})
		}
	}
	groups := func(names ...string) (of []api.QueueGroup) {
		for i, one := range names {
			of = append(of, api.QueueGroup{Name: one, Jobs: 300 - 70*i})
		}
		return of
	}
	f.Queue = api.FlockQueue{
		Total: 500, More: true, Head: []api.QueuedJob{}, Models: groups("transcribe:large-v3", "segment:v2"), Priorities: groups("5", "0"),
		Tenants: groups("wool", "meadow"), Labels: groups("batch=41", "batch=42", "by=ada"),
	}
	for i := range 12 {
		position := i + 1
		f.Queue.Head = append(f.Queue.Head, api.QueuedJob{
			JobId: fmt.Sprintf("scan-2026-11-29-9%03d", i), Model: models[i%3], Labels: map[string]string{"batch": "42"}, EnqueuedAt: job.FormatTime(now.Add(-time.Minute)),
			Position: &position, Reason: text(fmt.Sprintf("It waits for a sheep: it is number %d in the queue.", position)),
			ExpectedStart: &api.Estimate{Earliest: job.FormatTime(now), Likely: job.FormatTime(now.Add(time.Duration(i) * time.Minute)), Latest: job.FormatTime(now.Add(time.Duration(2*i) * time.Minute))},
		})
	}
	return string(must(json.Marshal(f))), string(must(json.Marshal(list)))
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
