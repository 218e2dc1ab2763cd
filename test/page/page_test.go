// Package page drives the page at `/` in a real browser, against a real daemon with
// made-up GPUs and models.
package page

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
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

// start starts a daemon and gives it its day.
func start(t testing.TB, cfg day.Config) (*day.Day, context.Context) {
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	t.Cleanup(cancel)
	cfg.Programs, cfg.Dir = programs, shortDir(t)
	d, err := day.New(cfg)
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
	began := time.Now()
	if err := d.Fill(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the day took %v", time.Since(began).Round(time.Millisecond))
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

// browse runs a script of browser.mjs, which asks by lines "do NAME" for what only this
// process can do, and tells by lines "fail TEXT" what it finds wrong.
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

// TestPage goes through every view and action of an open daemon: nothing that is shown is
// markup, axe finds nothing, nothing is asked of others, and a daemon that was killed and
// started again is followed again.
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

// TestPictures takes pictures of every view. It runs where somebody asks for them: they
// are there to be looked at.
func TestPictures(t *testing.T) {
	if *shots == "" || *pictures == "" {
		t.Skip("make page-shots takes the pictures")
	}
	for _, dir := range []string{*shots, *pictures} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d, ctx := start(t, day.Config{})
	browse(t, ctx, "pictures", d, nil)
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
