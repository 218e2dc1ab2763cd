package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a runner that answers every job at once; Close ends it.
type echo struct {
	frames chan []byte
	closed chan struct{}
}

func newEcho() *echo {
	return &echo{frames: make(chan []byte, 8), closed: make(chan struct{})}
}

func (e *echo) Send(_ context.Context, frame []byte) error {
	in, err := messenger.DecodeInput(frame)
	if err != nil {
		return err
	}
	answer, err := messenger.EncodeAnswer(messenger.Answer{JobID: in.JobID})
	e.frames <- answer
	return err
}

func (e *echo) Recv(ctx context.Context) ([]byte, error) {
	select {
	case f := <-e.frames:
		return f, nil
	case <-e.closed:
		return nil, errors.New("closed")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (e *echo) Close() error { return nil }

// serveEcho runs a server without a process of its own. It returns its folder
// and a channel that is closed when it has ended.
func serveEcho(t testing.TB, orphan time.Duration) (dir string, runner *echo, ended <-chan struct{}) {
	t.Helper()
	dir = t.TempDir()
	folder, err := shim.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.Lock(); err != nil {
		t.Fatal(err)
	}
	runner = newEcho()
	done, ready := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		defer folder.Close()
		err := Run(ctx, Config{
			Folder: folder,
			Spec:   shim.Spec{Life: "x", Port: 1, OrphanTimeout: orphan},
			Dial:   func(context.Context, string, DialFunc) (Conn, error) { return runner, nil },
			Log:    slog.New(slog.DiscardHandler),
		}, func() { close(ready) })
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	<-ready
	t.Cleanup(func() {
		cancel() // the runner is given up
		if h, err := shim.Attach(context.Background(), dir, slog.New(slog.DiscardHandler)); err == nil {
			_, _ = h.Wait(context.Background())
			_ = h.Release(context.Background())
		}
		<-done
	})
	return dir, runner, done
}

func attach(t testing.TB, dir string) *shim.Handle {
	t.Helper()
	h, err := shim.Attach(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestServerWithoutAProcess(t *testing.T) {
	dir, _, ended := serveEcho(t, 0)
	h := attach(t, dir)
	for n := range 3 * messenger.MaxKept {
		id := job.ID(fmt.Sprint("job-", n))
		if err := h.Send(t.Context(), messenger.Input{JobID: id, IODataRoot: "/x"}); err != nil {
			t.Fatal(err)
		}
		if a, err := h.Recv(t.Context()); err != nil || a.JobID != id {
			t.Fatalf("got %+v, %v", a, err)
		}
		if err := h.Ack(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Release(t.Context()); err == nil {
		t.Error("released while the runner is up")
	}
	if err := h.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if exit, err := h.Wait(t.Context()); err != nil || !exit.Stopped {
		t.Errorf("got %+v, %v, want Stopped", exit, err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Error(err)
	}
	<-ended
}

func TestAnotherVersionCanOnlyStop(t *testing.T) {
	dir, _, ended := serveEcho(t, 0)
	conn, err := net.Dial("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(m *shim.Message) *shim.Message {
		t.Helper()
		if err := shim.WriteMessage(conn, m); err != nil {
			t.Fatal(err)
		}
		for {
			got, err := shim.ReadMessage(conn)
			if err != nil {
				t.Fatal(err)
			}
			if got.Kind == shim.KindReply || got.Kind == shim.KindHello {
				return got
			}
		}
	}
	if m := ask(&shim.Message{Kind: shim.KindHello, Hello: &shim.Hello{Version: 99}}); m.Hello == nil || m.Hello.Version != shim.Version {
		t.Fatalf("got %+v, want a hello", m)
	}
	for _, kind := range []shim.Kind{shim.KindSend, shim.KindAck} {
		if m := ask(&shim.Message{Kind: kind, Number: 1, Job: "a"}); !strings.Contains(m.Error, "version 99") {
			t.Errorf("%s: got %+v, want a refusal that names the versions", kind, m)
		}
	}
	if m := ask(&shim.Message{Kind: shim.KindStop, Number: 2}); m.Error != "" {
		t.Errorf("stop: %v", m.Error)
	}
	for m := (&shim.Message{Error: "?"}); m.Error != ""; {
		m = ask(&shim.Message{Kind: shim.KindRelease, Number: 3}) // refused until it has stopped
	}
	<-ended
}

func TestForsakenServerRemovesItsFolder(t *testing.T) {
	dir, _, ended := serveEcho(t, 20*time.Millisecond)
	<-ended
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder: %v, want that it is gone", err)
	}
}

func TestSilentConnectionDisturbsNobody(t *testing.T) {
	dir, _, _ := serveEcho(t, 0)
	conn, err := net.Dial("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := attach(t, dir)
	if err := h.Ack(t.Context(), "none"); err != nil {
		t.Error(err)
	}
	h.Detach()
}

// FuzzServer gives the shim's side what no daemon sends: its daemon can end it as before.
func FuzzServer(f *testing.F) {
	messages := func(list ...*shim.Message) []byte {
		var b bytes.Buffer
		for _, m := range list {
			if err := shim.WriteMessage(&b, m); err != nil {
				f.Fatal(err)
			}
		}
		return b.Bytes()
	}
	hello := &shim.Message{Kind: shim.KindHello, Hello: &shim.Hello{Version: shim.Version}}
	f.Add(messages(hello, &shim.Message{Kind: shim.KindSend, Job: "a"}, &shim.Message{Kind: shim.KindAck, Number: 1, Job: "a"}))
	f.Add(messages(hello, &shim.Message{Kind: shim.KindStop, Grace: -5}, &shim.Message{Kind: shim.KindRelease}))
	f.Add(messages(hello, hello, &shim.Message{Kind: "x", Number: 1}))
	f.Add([]byte("\x00\xff\xff\xff{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir, _, ended := serveEcho(t, 0)
		conn, err := net.Dial("unix", filepath.Join(dir, "socket"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(data)
		conn.Close()
		h, err := shim.Attach(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err == nil {
			err = h.Stop(t.Context(), 0)
			if _, waitErr := h.Wait(t.Context()); err == nil {
				err = waitErr
			}
			err = errors.Join(err, h.Release(t.Context()))
			h.Detach()
		}
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatalf("it has not ended: %v", err) // err is nothing where the data has ended it
		}
	})
}

func TestPortInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	s := &dialer{spec: shim.Spec{Port: port, Runner: &shim.Process{}}}
	for _, err := range []error{s.portFree(), s.verify()} {
		for _, want := range []string{fmt.Sprintf("port %d", port), fmt.Sprintf("process %d", os.Getpid()), "another port"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want it to say %q", err, want)
			}
		}
	}
	l.Close()
	if err := s.portFree(); err != nil {
		t.Errorf("after it was closed: %v", err)
	}
}

func TestDialInNamespace(t *testing.T) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := dialIn(t.Context(), "/proc/self/ns/net", "tcp", l.Addr().String())
	if errors.Is(err, unix.EPERM) {
		t.Skip("entering a network namespace needs root")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := other.Read(make([]byte, 1)); n != 1 {
		t.Error(err)
	}
	address := l.Addr().String()
	l.Close()
	if _, err := dialIn(t.Context(), "/proc/self/ns/net", "tcp", address); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v, want %v", err, unix.ECONNREFUSED)
	}
	if _, err := dialIn(t.Context(), "/no/such/ns", "tcp", address); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no namespace: %v, want %v", err, unix.ENOENT)
	}
}
