package runner_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
	"github.com/iterait/shepherd/runner"
)

func TestMain(m *testing.M) {
	if os.Getenv("RUNNER_TEST_MAIN") != "" {
		runner.Main(loadForTest)
	}
	goleak.VerifyTestMain(m)
}

// hang bounds what must happen soon but not at any certain time.
const hang = 2 * time.Minute

// ask is a client of a runner, with the jobs' directory.
type ask struct {
	t    testing.TB
	ctx  context.Context
	conn *zmq.Conn
	port int
	root string
	// ignored is told when the runner ignores a message.
	ignored chan struct{}
}

// heard returns when the runner has heard all that was sent on this connection.
func (a *ask) heard() {
	a.t.Helper()
	a.say([]byte("this is no job"))
	select {
	case <-a.ignored:
	case <-a.ctx.Done():
		a.t.Fatal("the runner does not listen")
	}
}

// listener is a log that passes on that a message was ignored.
type listener struct{ ignored chan struct{} }

func (l listener) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("ignored a message")) {
		select {
		case l.ignored <- struct{}{}:
		default: // nobody asked
		}
	}
	return len(line), nil
}

// serve runs a runner until the test ends and returns a client of it, and what
// ends the runner and waits for it.
func serve(t testing.TB, h runner.Handler) (a *ask, stop func()) {
	t.Helper()
	port := testenv.FreePort(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	ignored := make(chan struct{}, 1)
	running.Go(func() {
		cfg := runner.Config{Host: "127.0.0.1", Port: port, Log: slog.New(slog.NewTextHandler(listener{ignored}, nil))}
		if err := runner.Serve(ctx, cfg, h); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	a = connect(t, port)
	a.ignored = ignored
	return a, stop
}

func connect(t testing.TB, port int) *ask {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	conn, err := zmq.Dial(ctx, zmq.Config{Endpoint: fmt.Sprintf("tcp://127.0.0.1:%d", port)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &ask{t: t, ctx: ctx, conn: conn, port: port, root: t.TempDir()}
}

func (a *ask) send(id job.ID) {
	a.t.Helper()
	for _, dir := range []string{job.InputDir, job.OutputDir} {
		if err := os.MkdirAll(filepath.Join(a.root, string(id), dir), 0o755); err != nil {
			a.t.Fatal(err)
		}
	}
	frame, err := messenger.EncodeInput(messenger.Input{JobID: id, IODataRoot: a.root})
	if err != nil {
		a.t.Fatal(err)
	}
	a.say(frame)
}

func (a *ask) say(frame []byte) {
	a.t.Helper()
	if err := a.conn.Send(a.ctx, frame); err != nil {
		a.t.Fatal(err)
	}
}

func (a *ask) recv(id job.ID) *job.Failure {
	a.t.Helper()
	frame, err := a.conn.Recv(a.ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	answer, err := messenger.DecodeAnswer(frame)
	if err != nil || answer.JobID != id {
		a.t.Fatalf("got %s, %v; expected the answer to %s", frame, err, id)
	}
	return answer.Failure
}

func (a *ask) done(id job.ID) {
	a.t.Helper()
	if f := a.recv(id); f != nil {
		a.t.Fatalf("job %s failed: %+v", id, f)
	}
}

func TestJobsGetTheirFiles(t *testing.T) {
	a, _ := serve(t, func(_ context.Context, j runner.Job) error {
		in, err := os.ReadFile(j.Input())
		if err != nil {
			return err
		}
		return os.WriteFile(j.Output(), append([]byte(j.ID+" "), bytes.ToUpper(in)...), 0o644)
	})
	for _, id := range []job.ID{"a", "b"} {
		a.send(id) // the first try lacks its input
		if f := a.recv(id); f == nil || !strings.HasPrefix(f.Message, "PathError: open ") || f.Type != "*fs.PathError" {
			t.Fatalf("without an input: %+v", f)
		}
		if err := os.WriteFile(filepath.Join(a.root, string(id), "inputs", "input"), []byte("hello"), 0o644); err != nil {
			t.Fatal(err)
		}
		a.send(id)
		a.done(id)
		if out, err := os.ReadFile(filepath.Join(a.root, string(id), "outputs", "output")); err != nil || string(out) != string(id)+" HELLO" {
			t.Fatalf("output %q, %v", out, err)
		}
	}
}

func TestJobsGetTheirTraces(t *testing.T) {
	a, _ := serve(t, func(_ context.Context, j runner.Job) error {
		return os.WriteFile(j.Output(), []byte(j.Trace.Parent+" "+j.Trace.State), 0o644)
	})
	trace := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", State: "a=1"}
	text, err := trace.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for id, c := range map[job.ID]struct{ file, want string }{
		"traced": {string(text), trace.Parent + " a=1"}, "garbled": {"no trace", " "}, "untraced": {"", " "},
	} {
		place := filepath.Join(a.root, string(id))
		if err := os.MkdirAll(place, 0o755); err != nil {
			t.Fatal(err)
		}
		if c.file != "" {
			if err := os.WriteFile(filepath.Join(place, job.TraceFile), []byte(c.file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		a.send(id)
		a.done(id)
		if got, err := os.ReadFile(filepath.Join(place, job.OutputDir, job.DefaultOutput)); err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v; expected %q", id, got, err, c.want)
		}
	}
}

func TestFailures(t *testing.T) {
	handlers := map[string]runner.Handler{
		"plain":   func(context.Context, runner.Job) error { return errors.New("no model") },
		"wrapped": func(context.Context, runner.Job) error { return fmt.Errorf("predict: %w", fs.ErrNotExist) },
		"typed": func(context.Context, runner.Job) error {
			return fmt.Errorf("predict: %w", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist})
		},
		"given": func(context.Context, runner.Job) error {
			return fmt.Errorf("ignored: %w", &job.Failure{Message: "KeyError: 'k'", Type: "<class 'KeyError'>", Traceback: "tb"})
		},
		"panic":  func(context.Context, runner.Job) error { panic("bad weights") },
		"index":  func(_ context.Context, j runner.Job) error { _ = []int{}[len(j.ID)]; return nil },
		"goexit": func(context.Context, runner.Job) error { runtime.Goexit(); return nil },
		"huge":   func(context.Context, runner.Job) error { return errors.New(strings.Repeat("\x01", 1<<20)) },
		"done":   func(context.Context, runner.Job) error { return nil },
	}
	a, _ := serve(t, func(ctx context.Context, j runner.Job) error { return handlers[j.ID](ctx, j) })
	for id, want := range map[job.ID]job.Failure{
		"plain":   {Message: "Error: no model", Type: "error"},
		"wrapped": {Message: "Error: predict: file does not exist", Type: "error", Traceback: "*fmt.wrapError: predict: file does not exist\n*errors.errorString: file does not exist\n"},
		"typed":   {Message: "PathError: predict: open x: file does not exist", Type: "*fs.PathError"},
		"given":   {Message: "KeyError: 'k'", Type: "<class 'KeyError'>", Traceback: "tb"},
		"panic":   {Message: "panic: bad weights", Type: "panic"},
		"index":   {Message: "panic: runtime error: index out of range [5] with length 0", Type: "panic"},
		"goexit":  {Message: "Error: the handler ended without returning", Type: "error"},
	} {
		a.send(id)
		got := a.recv(id)
		if got == nil || got.Message != want.Message || got.Type != want.Type || want.Traceback != "" && got.Traceback != want.Traceback {
			t.Errorf("%s: got %+v, expected %+v", id, got, want)
		}
		if want.Type == "panic" && !strings.Contains(got.Traceback, "runner_test.go") {
			t.Errorf("%s: the stack does not show where: %s", id, got.Traceback)
		}
		a.send("done")
		a.done("done") // the runner goes on
	}
	a.send("huge")
	if f := a.recv("huge"); f == nil || len(f.Message) > 65<<10 {
		t.Errorf("a huge message was not cut: %d bytes", len(f.Message))
	}
}

func TestMessagesThatAreNone(t *testing.T) {
	a, _ := serve(t, func(context.Context, runner.Job) error { return nil })
	for _, frame := range []string{"", "null", "garbage", `{"message": {"job_id": "../x", "message_type": "InputMessage", "io_data_root": "/"}}`,
		`{"message": {"job_id": "x", "message_type": "DoneMessage"}}`} {
		a.say([]byte(frame))
	}
	a.send("good")
	a.done("good")
}

func TestOneJobAtATimeAndNoneTwice(t *testing.T) {
	begun, goOn := make(chan string), make(chan struct{})
	a, _ := serve(t, func(ctx context.Context, j runner.Job) error {
		select {
		case begun <- j.ID:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	begins := func(want string) {
		t.Helper()
		select {
		case id := <-begun:
			if id != want {
				t.Fatalf("job %s began, expected %s", id, want)
			}
		case <-a.ctx.Done():
			t.Fatalf("job %s did not begin", want)
		}
	}
	later := connect(t, a.port)
	later.ignored = a.ignored
	a.send("one")
	begins("one")
	a.send("two")
	a.send("one") // under way
	a.send("two") // waiting
	a.heard()
	later.send("one") // the same by a later connection
	later.send("two")
	later.heard()
	goOn <- struct{}{}
	begins("two")
	goOn <- struct{}{}
	for _, asker := range []*ask{a, later} {
		asker.done("one")
		asker.done("two")
	}
	a.send("one") // ended before: it runs again
	begins("one")
	goOn <- struct{}{}
	a.done("one")
}

func TestStopWaitsForTheJob(t *testing.T) {
	begun := make(chan struct{})
	var finish bool
	handler := func(ctx context.Context, _ runner.Job) error {
		begun <- struct{}{}
		<-ctx.Done()
		if finish {
			return nil
		}
		return ctx.Err()
	}
	begins := func(a *ask) {
		t.Helper()
		select {
		case <-begun:
		case <-a.ctx.Done():
			t.Fatal("the job does not begin")
		}
	}
	t.Run("a job that finishes anyway is answered", func(t *testing.T) {
		finish = true
		a, stop := serve(t, handler)
		a.send("one")
		begins(a)
		stop()
		a.done("one")
	})
	t.Run("a cancelled job is not answered", func(t *testing.T) {
		finish = false
		a, stop := serve(t, handler)
		a.send("one")
		a.send("two")
		begins(a)
		stop()
		if frame, err := a.conn.Recv(a.ctx); !errors.Is(err, messenger.ErrClosed) {
			t.Fatalf("got %s, %v", frame, err)
		}
	})
}

// A handler's events are told, and a job is given up, where the environment says
// that the other side understands it; else only answers are sent.
func TestEventsAndCancel(t *testing.T) {
	handler := func(ctx context.Context, j runner.Job) error {
		j.Progress(0.25, "loading")
		j.Log("a line")
		j.Progress(1, "")
		if j.ID == "wait" {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), runner.ErrCancelled) {
				return errors.New("stopped for another reason")
			}
			return ctx.Err()
		}
		return nil
	}
	event := func(a *ask) messenger.Event {
		t.Helper()
		frame, err := a.conn.Recv(a.ctx)
		if err != nil {
			t.Fatal(err)
		}
		e, err := messenger.DecodeEvent(frame)
		if err != nil {
			t.Fatalf("%s: %v", frame, err)
		}
		return e
	}
	t.Run("announced", func(t *testing.T) {
		t.Setenv(messenger.EnvFeatures, "another events")
		a, _ := serve(t, handler)
		for range 2 {
			a.send("wait")
			var got []string
			for range 4 {
				e := event(a)
				got = append(got, fmt.Sprint(e.Kind, e.JobID, e.Progress, e.Text, e.Features))
			}
			want := "[acceptedwait0[cancel] progresswait0.25loading[] logwait0a line[] progresswait1[]]"
			if fmt.Sprint(got) != want {
				t.Errorf("got %v, want %s", got, want)
			}
			for _, id := range []job.ID{"another", "wait", "wait"} {
				frame, err := messenger.EncodeCancel(id)
				if err != nil {
					t.Fatal(err)
				}
				a.say(frame)
			}
			if f := a.recv("wait"); f == nil || f.Type != messenger.CancelledType {
				t.Errorf("got %+v", f)
			}
		}
	})
	t.Run("not announced", func(t *testing.T) {
		a, _ := serve(t, handler)
		a.send("one")
		a.done("one")
	})
}

// Shepherd says by the environment where to listen, and nothing listens elsewhere.
func TestHostOfTheEnvironment(t *testing.T) {
	claims.Hold(t, "L5")
	t.Setenv(runner.EnvHost, "127.0.0.9")
	port := testenv.FreePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	var running sync.WaitGroup
	running.Go(func() {
		cfg := runner.Config{Port: port, Log: slog.New(slog.NewTextHandler(write, nil))}
		write.CloseWithError(runner.Serve(ctx, cfg, nil))
	})
	defer running.Wait()
	defer cancel()
	line, err := bufio.NewReader(read).ReadString('\n')
	if want := fmt.Sprintf("address=127.0.0.9:%d", port); err != nil || !strings.Contains(line, want) {
		t.Errorf("got %q, %v; want %s", line, err, want)
	}
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		conn.Close()
		t.Error("it listens at 127.0.0.1, too")
	}
}

func TestPortInUse(t *testing.T) {
	a, _ := serve(t, func(context.Context, runner.Job) error { return nil })
	cfg := runner.Config{Host: "127.0.0.1", Port: a.port, Log: slog.New(slog.DiscardHandler)}
	if err := runner.Serve(t.Context(), cfg, nil); err == nil || !strings.Contains(err.Error(), "another runner") {
		t.Fatalf("got %v", err)
	}
}
