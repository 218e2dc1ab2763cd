package doctor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/ledger/sqlite"
)

func TestProbe(t *testing.T) {
	p := Probe{Title: "x", Success: "it answers", Next: "look", Ask: func(context.Context) error { return nil }}
	healthy(t, p.Examine(t.Context()))
	p.Ask = func(context.Context) error { return errors.New("it is away: start it") }
	expect(t, p.Examine(t.Context()), Failure, "it is away", "start it")
	p.Ask = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	expect(t, p.Examine(ctx), Failure, "no answer", "look")
}

// TestLedger examines a missing ledger, an intact one, and a file that is no ledger.
func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	check := Ledger{Path: path, Inspect: func(ctx context.Context) (int, time.Time, error) {
		found, err := sqlite.Inspect(ctx, path)
		return found.Jobs, found.LastChange, err
	}}
	expect(t, check.Examine(t.Context()), OK, "will be created when", "")
	l, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	expect(t, check.Examine(t.Context()), OK, "is intact, with 0 jobs", "")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check.Inspect = func(context.Context) (int, time.Time, error) {
		return 7, time.Now().Add(30 * 365 * 24 * time.Hour), nil
	}
	expect(t, check.Examine(t.Context()), Warning, "h0m0s behind the ledger's last change", "timedatectl")
	check.Inspect = func(ctx context.Context) (int, time.Time, error) {
		found, err := sqlite.Inspect(ctx, path)
		return found.Jobs, found.LastChange, err
	}
	write(t, path, "SQLite format 3\x00 and then nothing of the kind", 0o600)
	expect(t, check.Examine(t.Context()), Failure, path, "restore a backup")
}

// TestClock compares the clock with those of servers that are wrong.
func TestClock(t *testing.T) {
	for off, want := range map[time.Duration]Level{
		0: OK, time.Minute: Warning, -time.Minute: Warning, 20 * time.Minute: Failure, -time.Hour: Failure,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusForbidden)
		}))
		findings := Clock{Storage: server.URL, Client: server.Client()}.Examine(t.Context())
		server.Close()
		switch {
		case want == OK:
			for _, f := range findings {
				if f.Level == Failure || f.Level == Warning && f.Message != "the clock is not synchronized, as the kernel reports" {
					t.Errorf("in step: %+v", f)
				}
			}
		case off > 0:
			expect(t, findings, want, "behind that of storage", "NTP")
		default:
			expect(t, findings, want, "ahead of that of storage", "NTP")
		}
	}
}

func TestListeners(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	healthy(t, Listeners{Host: "127.0.0.1", Port: testenv.FreePort(t)}.Examine(t.Context()))
	healthy(t, Listeners{Host: "127.0.0.1", Port: port, Up: true}.Examine(t.Context()))
	healthy(t, Listeners{Host: "0.0.0.0", Port: testenv.FreePort(t), Guarded: true}.Examine(t.Context()))
	expect(t, Listeners{Host: "127.0.0.1", Port: port}.Examine(t.Context()), Warning, "something else listens", "api.port")
	expect(t, Listeners{Host: "0.0.0.0", Port: testenv.FreePort(t)}.Examine(t.Context()), Warning, "anyone", "127.0.0.1")
	expect(t, Listeners{Host: "192.0.2.1", Port: 5000, Guarded: true}.Examine(t.Context()), Failure, "nothing can listen", "api.host")
	expect(t, Listeners{Host: "127.0.0.1", Port: testenv.FreePort(t), AllOrigins: true}.Examine(t.Context()), Warning, "any web page", "api.cors_origins")
	healthy(t, Listeners{Host: "127.0.0.1", Port: testenv.FreePort(t), AllOrigins: true, Guarded: true}.Examine(t.Context()))
	others := map[string]string{"storage.listen": taken.Addr().String()}
	expect(t, Listeners{Host: "localhost", Port: testenv.FreePort(t), Others: others}.Examine(t.Context()), Warning, taken.Addr().String(), "storage.listen")
}

func TestLeftovers(t *testing.T) {
	const mark = ".mark"
	data, state := t.TempDir(), t.TempDir()
	dirs := func(paths ...string) {
		t.Helper()
		for _, path := range paths {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	dirs(filepath.Join(data, "sheep_1", "attempt-1"), filepath.Join(data, "state"), filepath.Join(data, ".staging", "attempt-2"), filepath.Join(state, "sheep_1"))
	write(t, filepath.Join(data, "sheep_1", "attempt-1", mark), "", 0o644)
	check := Leftovers{Sheep: []string{"sheep_1"}, DataRoot: data, Mark: mark, StateDirs: []string{state, filepath.Join(state, "none")}, Known: []string{filepath.Join(data, "state")}}
	healthy(t, check.Examine(t.Context()))

	empty, used, old := filepath.Join(data, "sheep_2"), filepath.Join(data, "sheep_3"), filepath.Join(state, "sheep_4")
	dirs(empty, used, old)
	write(t, filepath.Join(used, "attempt-3", mark), "", 0o644)
	for _, path := range []string{empty, used, old} {
		expect(t, check.Examine(t.Context()), Warning, path, "then remove them")
	}
	thesis := filepath.Join(data, "thesis")
	write(t, filepath.Join(thesis, "chapter-1"), "", 0o644)
	expect(t, check.Examine(t.Context()), Warning, "do not belong to shepherd, which leaves them alone: "+thesis, "a directory of its own")
	mine := filepath.Join(data, "sheep_1", "attempt-9")
	dirs(mine)
	expect(t, check.Examine(t.Context()), Warning, "without shepherd's mark (.mark): "+mine, "if they are not needed")
}

// TestSome names the first of many paths.
func TestSome(t *testing.T) {
	if got := some([]string{"a", "b", "c", "d", "e", "f", "g"}); got != "a, b, c, d, e and 2 more" {
		t.Errorf("got %q", got)
	}
}
