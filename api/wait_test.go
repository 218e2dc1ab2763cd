package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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
