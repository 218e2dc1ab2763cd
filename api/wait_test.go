package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
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
			if w := <-answered; w.Code != 200 || !strings.Contains(w.Body.String(), `"status":"done"`) {
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
		{"?timeout=30", 30 * time.Second, 200, `"status":"processing"`},
		{"?timeout=0.5", 500 * time.Millisecond, 200, `"status":"processing"`},
		{"?timeout=1m30s", 90 * time.Second, 200, `"status":"processing"`},
		{"?timeout=0", 0, 200, `"status":"processing"`},
		{"?timeout=1e300", time.Hour, 200, `"status":"processing"`},
		{"?timeout=99h", time.Hour, 200, `"status":"processing"`},
		{"", time.Hour, 503, `{"message":"The job has not ended yet; wait again"}`},
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
		if w.Code == 200 && !strings.Contains(w.Body.String(), `"status":"done"`) {
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

// TestWaitEndsWithItsClient goes through a real connection whose server has
// short timeouts: they end neither the wait nor anything but the wait.
func TestWaitEndsWithItsClient(t *testing.T) {
	service := newFake()
	service.add("a", job.Processing)
	server := httptest.NewUnstartedServer(New(Config{Service: service}))
	server.Config.ReadTimeout = 50 * time.Millisecond
	server.Config.WriteTimeout = 50 * time.Millisecond
	server.Start()
	defer server.Close()

	ctx, leave := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, "GET", server.URL+"/jobs/a/wait_ready", nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		response, err := server.Client().Do(request)
		if err == nil {
			response.Body.Close()
		}
		ended <- err
	}()
	response, err := server.Client().Get(server.URL + "/jobs/a/wait_ready?timeout=0.3") // six times the server's
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 200 {
		t.Errorf("status %d", response.StatusCode)
	}
	<-service.left // that was the one whose time was up
	select {
	case err := <-ended:
		t.Fatalf("the wait without a timeout ended: %v", err)
	case <-service.left:
		t.Fatal("the server gave the waiting client up")
	default:
	}
	leave()
	<-service.left
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
