package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/internal/heldconn"
	"github.com/iterait/shepherd/job"
)

// waitAlone asks a handler for path without a network, in a test's bubble.
func waitAlone(ctx context.Context, handler http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", path, nil))
	return w
}

func TestWaitEndsWithTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Processing)
		handler := New(Config{Service: service})
		answered := make(chan *httptest.ResponseRecorder)
		for range 10 {
			go func() { answered <- waitAlone(t.Context(), handler, "/jobs/a/wait_ready") }()
		}
		synctest.Wait()
		if n := service.waiting.Load(); n != 10 {
			t.Fatalf("%d wait", n)
		}
		service.finish("a")
		for range 10 {
			if w := <-answered; w.Code != 200 || !strings.Contains(w.Body.String(), `"status": "done"`) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		}
	})
}

func TestWaitTimeouts(t *testing.T) {
	for _, test := range []struct {
		query  string
		after  time.Duration
		status int
		body   string
	}{
		{"?timeout=30", 30 * time.Second, 200, `"status": "processing"`},
		{"?timeout=0.5", 500 * time.Millisecond, 200, `"status": "processing"`},
		{"?timeout=1m30s", 90 * time.Second, 200, `"status": "processing"`},
		{"?timeout=0", 0, 200, `"status": "processing"`},
		{"?timeout=1e300", time.Hour, 200, `"status": "processing"`},
		{"?timeout=99h", time.Hour, 200, `"status": "processing"`},
		{"", time.Hour, 503, `{"message": "The job has not ended yet; wait again"}`},
		{"?timeout=", 0, 400, "timeout: must be"},
		{"?timeout=soon", 0, 400, "timeout: must be"},
		{"?timeout=-1", 0, 400, "timeout: must be"},
		{"?timeout=-1m", 0, 400, "timeout: must be"},
		{"?timeout=NaN", 0, 400, "timeout: must be"},
	} {
		t.Run(test.query, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := newFake()
				service.add("a", job.Processing)
				begin := time.Now() // the bubble's clock
				w := waitAlone(t.Context(), New(Config{Service: service, MaxWait: time.Hour}), "/jobs/a/wait_ready"+test.query)
				if passed := time.Since(begin); w.Code != test.status || passed != test.after || !strings.Contains(w.Body.String(), test.body) {
					t.Errorf("after %v: %d %s", passed, w.Code, w.Body)
				}
				if (w.Header().Get("Retry-After") != "") != (w.Code == 503) {
					t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
				}
			})
		})
	}
}

func TestWaitWhoseTimeEndsWithTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Processing)
		time.AfterFunc(time.Hour, func() { service.finish("a") })
		w := waitAlone(t.Context(), New(Config{Service: service, MaxWait: time.Hour}), "/jobs/a/wait_ready")
		synctest.Wait()
		// Whichever came first: no timeout and a 200 means an ended job.
		if w.Code == 200 && !strings.Contains(w.Body.String(), `"status": "done"`) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

func TestWaitIsToldOfTheShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Processing)
		ctx, stop := context.WithCancelCause(t.Context())
		go func() {
			synctest.Wait()
			stop(job.ErrDraining)
		}()
		w := waitAlone(ctx, New(Config{Service: service}), "/jobs/a/wait_ready")
		if w.Code != 503 || !strings.Contains(w.Body.String(), "shutting down") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// TestWaitOutlivesTheServersTimeouts goes through an http.Server with short
// timeouts: they end neither a wait nor what its connection is used for next.
// What ends a wait is that its client leaves.
func TestWaitOutlivesTheServersTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Processing)
		listener := &pipeListener{connections: make(chan net.Conn), closed: make(chan struct{})}
		server := &http.Server{Handler: New(Config{Service: service}), ReadTimeout: time.Second, WriteTimeout: time.Second}
		served := make(chan error)
		go func() { served <- server.Serve(listener) }()
		client := &http.Client{Transport: &http.Transport{DialContext: listener.dial}}

		for range 2 { // on one connection
			response, err := client.Get("http://shepherd/jobs/a/wait_ready?timeout=1h")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != 200 {
				t.Errorf("status %d, %v", response.StatusCode, err)
			}
			response.Body.Close()
			<-service.left
		}
		if n := listener.dialled.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}

		ctx, leave := context.WithTimeout(t.Context(), time.Hour)
		defer leave()
		request, err := http.NewRequestWithContext(ctx, "GET", "http://shepherd/jobs/a/wait_ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, err := client.Do(request); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		<-service.left
		if waited := time.Since(begin); waited != time.Hour {
			t.Errorf("the server waited for %v", waited)
		}
		client.CloseIdleConnections()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
}

// hang is for what should take far less.
const hang = time.Minute

// receive waits for a channel. fails says what has not happened where it waits for too long.
func receive[T any](t *testing.T, c <-chan T, fails string) T {
	t.Helper()
	select {
	case got := <-c:
		return got
	case <-time.After(hang):
		t.Fatal(fails)
		panic("unreachable")
	}
}

// TestWaitHeld has heldconn hold every request that waits. All are sent on one connection,
// but for those after which it ends.
func TestWaitHeld(t *testing.T) {
	service := newFake()
	service.add("a", job.Processing)
	service.add("done", job.Done)
	var log bytes.Buffer
	base, _, stop := serveHeld(t, Config{Service: service, MaxWait: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	var dialled atomic.Int64
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	client := &http.Client{Transport: transport}
	get := func(path string, status int, text string) *http.Response {
		t.Helper()
		response, err := client.Get(base + "/jobs/" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != status || !strings.Contains(string(body), text) {
			t.Errorf("%s: %d %q, %v", path, response.StatusCode, body, err)
		}
		return response
	}
	get("done/wait_ready", 200, `"status": "done"`)
	get("a/wait_ready?timeout=0", 200, `"status": "processing"`)
	get("a/wait_ready?timeout=1h", 200, `"status": "processing"`)
	if r := get("a/wait_ready", 503, "wait again"); r.Header.Get("Retry-After") == "" || r.Header.Get("X-Request-Id") == "" || r.Header.Get("Content-Type") != jsonType {
		t.Errorf("%v", r.Header)
	}
	get("unknown/wait_ready", 400, "does not exist")
	get("a/wait_ready?timeout=soon", 400, "timeout: must be")
	get("a/status", 200, `"status": "processing"`)
	if n := dialled.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	transport.CloseIdleConnections()
	stop()
	if n := strings.Count(log.String(), "msg=request "); n != 7 || strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("%d requests are logged in\n%s", n, log.String())
	}
}

// TestWaitHeldEnds waits without a limit: for the job's end, the client's, and the daemon's.
func TestWaitHeldEnds(t *testing.T) {
	service := newFake()
	service.add("a", job.Processing)
	service.add("b", job.Processing)
	base, holder, stop := serveHeld(t, Config{Service: service})
	var clients sync.WaitGroup
	wait := func(ctx context.Context, id string, status int, text string) {
		request, err := http.NewRequestWithContext(ctx, "GET", base+"/jobs/"+id+"/wait_ready", nil)
		if err != nil {
			t.Error(err)
			return
		}
		response, err := new(http.Transport).RoundTrip(request)
		if err != nil {
			if status != 0 {
				t.Error(err)
			}
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != status || !strings.Contains(string(body), text) {
			t.Errorf("%d %q, %v", response.StatusCode, body, err)
		}
	}
	leaving, leave := context.WithCancel(t.Context())
	for range 10 {
		clients.Go(func() { wait(t.Context(), "a", 200, `"status": "done"`) })
		clients.Go(func() { wait(leaving, "b", 0, "") })
		clients.Go(func() { wait(t.Context(), "b", 503, "shutting down") })
	}
	waiting := func(n int64) {
		t.Helper()
		for end := time.Now().Add(hang); service.waiting.Load() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d clients wait, want %d", service.waiting.Load(), n)
			}
		}
	}
	waiting(30)
	service.finish("a")
	leave()
	waiting(10)
	holder.End(job.ErrDraining)
	clients.Wait()
	stop()
}

// resubmitted is a service whose job is queued anew as soon as it has ended.
type resubmitted struct{ *fake }

func (resubmitted) NotifyEnd(_ context.Context, _ job.ID, f func(job.Status)) (job.Status, func(), error) {
	var ending sync.WaitGroup
	ending.Go(func() { f(job.Status{State: job.Done}) })
	return job.Status{State: job.Processing}, ending.Wait, nil
}

func (resubmitted) Job(context.Context, job.ID) (job.Status, error) {
	return job.Status{State: job.Queued}, nil
}

// TestWaitHeldOfAJobThatIsSubmittedAgain is answered with the end that was waited for.
func TestWaitHeldOfAJobThatIsSubmittedAgain(t *testing.T) {
	service := newFake()
	service.add("a", job.Processing)
	base, _, stop := serveHeld(t, Config{Service: resubmitted{service}})
	defer stop()
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(base + "/jobs/a/wait_ready")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 || !strings.Contains(string(body), `"status": "done"`) {
		t.Errorf("%d %q, %v", response.StatusCode, body, err)
	}
}

// serveHeld serves c on a network address with a Holder that holds every request that waits.
func serveHeld(t *testing.T, c Config) (url string, holder *heldconn.Holder, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	holder = heldconn.New(listener.Addr(), hang)
	c.waitersInServer = -1
	server := &http.Server{Handler: New(c), ReadTimeout: hang, ConnContext: holder.ConnContext}
	var serving sync.WaitGroup
	for _, l := range []net.Listener{listener, holder} {
		serving.Go(func() { _ = server.Serve(l) })
	}
	return "http://" + listener.Addr().String(), holder, func() {
		server.Close()
		holder.Close()
		holder.Wait(context.Background())
		serving.Wait()
	}
}

// pipeListener is a network inside a test's bubble.
type pipeListener struct {
	connections chan net.Conn
	closed      chan struct{}
	once        sync.Once
	dialled     atomic.Int64
}

func (l *pipeListener) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	l.dialled.Add(1)
	l.connections <- there
	return here, nil
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case connection := <-l.connections:
		return connection, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
