package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// scripted is a runner that says what the test says, and is told what it hears.
type scripted struct {
	says  chan []byte
	heard chan []byte
}

func newScripted() *scripted {
	return &scripted{says: make(chan []byte, 1000), heard: make(chan []byte, 1000)}
}

func (r *scripted) Send(_ context.Context, frame []byte) error {
	r.heard <- slices.Clone(frame)
	return nil
}

func (r *scripted) Recv(ctx context.Context) ([]byte, error) {
	select {
	case f := <-r.says:
		return f, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *scripted) Close() error { return nil }

func (r *scripted) tell(t testing.TB, e messenger.Event) {
	t.Helper()
	frame, err := messenger.EncodeEvent(e)
	if err != nil {
		t.Fatal(err)
	}
	r.says <- frame
}

func (r *scripted) answer(t testing.TB, id job.ID, f *job.Failure) {
	t.Helper()
	frame, err := messenger.EncodeAnswer(messenger.Answer{JobID: id, Failure: f})
	if err != nil {
		t.Fatal(err)
	}
	r.says <- frame
}

// serveScripted runs a server without a process of its own, as serveEcho does.
func serveScripted(t testing.TB, spec shim.Spec) (dir string, runner *scripted) {
	t.Helper()
	dir, runner = t.TempDir(), newScripted()
	folder, err := shim.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.Lock(); err != nil {
		t.Fatal(err)
	}
	spec.Life, spec.Port = "x", 1
	done, ready := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		defer folder.Close()
		cfg := Config{
			Folder: folder, Spec: spec, Log: slog.New(slog.DiscardHandler),
			Dial: func(context.Context, string, DialFunc) (Conn, error) { return runner, nil },
		}
		if err := Run(ctx, cfg, func() { close(ready) }); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	<-ready
	t.Cleanup(func() {
		cancel()
		if h, err := shim.Attach(context.Background(), dir, slog.New(slog.DiscardHandler)); err == nil {
			_, _ = h.Wait(context.Background())
			_ = h.Release(context.Background())
		}
		<-done
	})
	return dir, runner
}

func recvEvent(t testing.TB, h *shim.Handle, want messenger.EventKind) messenger.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := h.RecvEvent(ctx)
	if err != nil || e.Kind != want {
		t.Fatalf("got %+v, %v, want %s", e, err, want)
	}
	return e
}

func TestEvents(t *testing.T) {
	dir, runner := serveScripted(t, shim.Spec{})
	h := attach(t, dir)
	recvEvent(t, h, messenger.EventReady)
	if err := h.Send(t.Context(), messenger.Input{JobID: "a", IODataRoot: "/x"}); err != nil {
		t.Fatal(err)
	}
	<-runner.heard
	recvEvent(t, h, messenger.EventGiven)
	if err := h.Cancel(t.Context(), "a"); !errdefs.IsNotImplemented(err) {
		t.Errorf("a runner that announced nothing is to be cancelled: %v", err)
	}
	runner.tell(t, messenger.Event{Kind: messenger.EventProgress, JobID: "another", Progress: 1})
	runner.tell(t, messenger.Event{Kind: messenger.EventAccepted, JobID: "a", Features: []string{messenger.FeatureCancel}})
	runner.tell(t, messenger.Event{Kind: messenger.EventProgress, JobID: "a", Progress: 0.5, Text: "half"})
	if e := recvEvent(t, h, messenger.EventAccepted); e.JobID != "a" || e.Time.IsZero() {
		t.Errorf("got %+v", e)
	}
	if e := recvEvent(t, h, messenger.EventProgress); e.Progress != 0.5 || e.Text != "half" {
		t.Errorf("got %+v", e)
	}
	// A daemon that comes later is told how things stand.
	h.Detach()
	h = attach(t, dir)
	recvEvent(t, h, messenger.EventReady)
	recvEvent(t, h, messenger.EventGiven)
	recvEvent(t, h, messenger.EventAccepted)
	if e := recvEvent(t, h, messenger.EventProgress); e.Progress != 0.5 {
		t.Errorf("got %+v", e)
	}
	if err := h.Cancel(t.Context(), "b"); !errdefs.IsNotFound(err) {
		t.Errorf("a job that is not under way was cancelled: %v", err)
	}
	if err := h.Cancel(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if id, err := messenger.DecodeCancel(<-runner.heard); err != nil || id != "a" {
		t.Errorf("the runner was told %s, %v", id, err)
	}
	runner.answer(t, "a", &job.Failure{Message: "Cancelled: given up", Type: messenger.CancelledType})
	if a, err := h.Recv(t.Context()); err != nil || a.Failure == nil || a.Failure.Type != messenger.CancelledType {
		t.Errorf("got %+v, %v", a, err)
	}
	h.Detach()
}

// A runner that says more than anybody reads costs events, and nothing else.
func TestFloodOfEvents(t *testing.T) {
	dir, runner := serveScripted(t, shim.Spec{})
	h := attach(t, dir)
	recvEvent(t, h, messenger.EventReady)
	if err := h.Send(t.Context(), messenger.Input{JobID: "a", IODataRoot: "/x"}); err != nil {
		t.Fatal(err)
	}
	<-runner.heard
	go func() {
		for i := range 10_000 {
			runner.tell(t, messenger.Event{Kind: messenger.EventProgress, JobID: "a", Progress: float64(i) / 10_000})
			runner.tell(t, messenger.Event{Kind: messenger.EventLog, JobID: "a", Text: strings.Repeat("x", 1000)})
		}
		runner.answer(t, "a", nil)
	}()
	if a, err := h.Recv(t.Context()); err != nil || a.JobID != "a" {
		t.Fatalf("got %+v, %v", a, err)
	}
	if err := h.Ack(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	h.Detach()
	seen, lost := 0, 0
	for {
		e, err := h.RecvEvent(t.Context())
		if err != nil {
			break
		}
		seen++
		lost += e.Lost
	}
	if seen > 2*maxEvents || lost == 0 {
		t.Errorf("%d events came, %d are known to be lost", seen, lost)
	}
}

// What a daemon of before the features is sent is exactly what it was, and it is
// cut off by a newer one without a word.
func TestDaemonWithoutFeatures(t *testing.T) {
	dir, runner := serveScripted(t, shim.Spec{})
	conn, err := net.Dial("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(text string) {
		t.Helper()
		frame := append([]byte{0, 0, 0, byte(len(text))}, text...)
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	hear := func() string {
		t.Helper()
		m, err := shim.ReadMessage(conn)
		if err != nil {
			return err.Error()
		}
		if m.Hello != nil {
			m.Hello.PID = 0
		}
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	say(`{"kind":"hello","hello":{"version":1}}`)
	got := hear()
	if !strings.HasPrefix(got, `{"kind":"hello","hello":{"version":1,"features":["superseded","events","cancel","deadline"],"life":"x"`) {
		t.Fatalf("got %s", got)
	}
	say(`{"kind":"send","job":"a","io_data_root":"/x"}`)
	in, err := messenger.DecodeInput(<-runner.heard)
	if err != nil || in.JobID != "a" {
		t.Fatal(in, err)
	}
	runner.tell(t, messenger.Event{Kind: messenger.EventAccepted, JobID: "a"})
	runner.tell(t, messenger.Event{Kind: messenger.EventProgress, JobID: "a", Progress: 0.5})
	runner.answer(t, "a", nil)
	if strings.Contains(got, `"connected":true`) {
		got = hear()
	} else if got = hear(); got == `{"kind":"connected"}` {
		got = hear()
	}
	if got != `{"kind":"answer","answer":{"job":"a"}}` {
		t.Errorf("got %s", got)
	}
	h := attach(t, dir)
	defer h.Detach()
	if got := hear(); strings.Contains(got, "superseded") || strings.Contains(got, "kind") {
		t.Errorf("got %s, want the connection's end", got)
	}
}

// A daemon that is superseded is told so.
func TestSuperseded(t *testing.T) {
	dir, _ := serveScripted(t, shim.Spec{})
	first := attach(t, dir)
	second := attach(t, dir)
	if _, err := first.Wait(t.Context()); !errors.Is(err, shim.ErrSuperseded) {
		t.Errorf("got %v", err)
	}
	if err := first.Send(t.Context(), messenger.Input{JobID: "a", IODataRoot: "/x"}); !errors.Is(err, messenger.ErrClosed) {
		t.Errorf("it may send: %v", err)
	}
	first.Detach()
	if err := second.Ack(t.Context(), "none"); err != nil {
		t.Error(err)
	}
	second.Detach()
}

// proxy puts itself in front of a socket. The function that it returns breaks the
// connections that there are.
func proxy(t *testing.T, path string) (cut func()) {
	t.Helper()
	if err := os.Rename(path, path+".real"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	var running sync.WaitGroup
	cut = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			c.Close()
		}
		open = nil
	}
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", path+".real")
			if err != nil {
				near.Close()
				continue
			}
			mu.Lock()
			open = append(open, near, far)
			mu.Unlock()
			for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
				running.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		cut()
		running.Wait()
		if err := os.Rename(path+".real", path); err != nil {
			t.Error(err)
		}
	})
	return cut
}

// A connection that breaks while the shim lives is made again, and nothing is
// lost or done twice.
func TestReconnect(t *testing.T) {
	dir, runner := serveScripted(t, shim.Spec{})
	cut := proxy(t, filepath.Join(dir, "socket"))
	h := attach(t, dir)
	defer h.Detach()
	for n := range 20 {
		id := job.ID(fmt.Sprint("job-", n))
		if n%2 == 0 {
			cut()
		}
		if err := h.Send(t.Context(), messenger.Input{JobID: id, IODataRoot: "/x"}); err != nil {
			t.Fatal(err)
		}
		if n%3 == 0 {
			cut()
		}
		in, err := messenger.DecodeInput(<-runner.heard)
		if err != nil || in.JobID != id {
			t.Fatalf("the runner was given %+v, %v, want %s", in, err, id)
		}
		if n%5 == 0 {
			cut()
		}
		runner.answer(t, id, nil)
		if a, err := h.Recv(t.Context()); err != nil || a.JobID != id {
			t.Fatalf("got %+v, %v, want %s", a, err, id)
		}
		if n%7 == 0 {
			cut()
		}
		if err := h.Ack(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if len(runner.heard) != 0 {
		t.Error("a job was given twice")
	}
	select {
	case <-h.Ended():
		t.Error("it counts as ended")
	default:
	}
}

// TestDeadlineClock has the timer of a deadline expire early by the clock, which was set back
// or runs slower since: it is started again.
func TestDeadlineClock(t *testing.T) {
	s := newState(shim.Spec{}, slog.New(slog.DiscardHandler))
	s.startClocks()
	defer s.clock.Stop()
	s.job, s.current.deadline = "a", time.Now().Add(time.Hour)
	s.deadlinePassed()
	if s.job != "a" {
		t.Error("the job has ended before its deadline")
	}
	if !s.deadline.Stop() {
		t.Error("nothing ends the job at its deadline")
	}
}

// Without a daemon, the shim holds a job to its deadline.
func TestDeadline(t *testing.T) {
	for _, obedient := range []bool{true, false} {
		t.Run(fmt.Sprint("cancels=", obedient), func(t *testing.T) {
			t.Parallel()
			dir, runner := serveScripted(t, shim.Spec{})
			h := attach(t, dir)
			in := messenger.Input{JobID: "a", IODataRoot: "/x", Deadline: time.Now().Add(100 * time.Millisecond)}
			if err := h.Send(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			<-runner.heard
			if obedient {
				runner.tell(t, messenger.Event{Kind: messenger.EventAccepted, JobID: "a", Features: []string{messenger.FeatureCancel}})
				recvEvent(t, h, messenger.EventReady)
				recvEvent(t, h, messenger.EventGiven)
				recvEvent(t, h, messenger.EventAccepted)
			}
			h.Detach()
			if obedient {
				if id, err := messenger.DecodeCancel(<-runner.heard); err != nil || id != "a" {
					t.Fatalf("the runner was told %s, %v", id, err)
				}
				runner.answer(t, "a", &job.Failure{Message: "given up", Type: messenger.CancelledType})
			}
			var o shim.Outcome
			for deadline := time.Now().Add(60 * time.Second); len(o.Answers) == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				o, _ = shim.ReadOutcome(dir)
			}
			if len(o.Answers) != 1 || o.Answers[0].Failure == nil || o.Answers[0].Failure.Type != messenger.TimeoutType {
				t.Fatalf("kept is %+v", o)
			}
			h = attach(t, dir)
			defer h.Detach()
			if a, err := h.Recv(t.Context()); err != nil || a.Failure == nil || a.Failure.Type != messenger.TimeoutType {
				t.Errorf("got %+v, %v", a, err)
			}
			if obedient {
				if h.Hello().Exited {
					t.Error("a runner that gave its job up was stopped")
				}
				return
			}
			if exit, err := h.Wait(t.Context()); err != nil || exit.Stopped || !strings.Contains(exit.Detail, "not done by its deadline") {
				t.Errorf("got %+v, %v", exit, err)
			}
		})
	}
}
