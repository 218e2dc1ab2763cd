package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	containerdlog "github.com/containerd/log"
)

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "-1": 0, "soon": 0, "99999999999999999999": 0,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): time.Hour,
	} {
		got := retryAfter(http.Header{"Retry-After": {value}})
		if d := got - want; d > time.Second || d < -5*time.Second {
			t.Errorf("%q is %s, want %s", value, got, want)
		}
	}
}

// TestStalledBody: a connection over which nothing comes any more is a broken
// one.
func TestStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := http.Client{Transport: &retryTransport{base: roundTrip(stalls), retryPolicy: hasty}}
		resp, err := client.Get("http://registry.test")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		begin := time.Now()
		got, err := io.ReadAll(resp.Body)
		if string(got) != "some" || err != io.ErrUnexpectedEOF {
			t.Errorf("%q, %v", got, err)
		}
		if took := time.Since(begin); took != hasty.stall {
			t.Errorf("it was given up after %s, want %s", took, hasty.stall)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// stalls answers with some of a body; the rest does not come until the request is given up.
func stalls(r *http.Request) (*http.Response, error) {
	body, rest := io.Pipe()
	go func() {
		_, _ = rest.Write([]byte("some"))
		<-r.Context().Done()
		rest.CloseWithError(r.Context().Err())
	}()
	return &http.Response{StatusCode: http.StatusOK, Body: body, Request: r}, nil
}

// TestStalledAnswer: what stalls in the text of an error, or in what a token server
// answers, does not hold a pull for ever.
func TestStalledAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		tokens bool
	}{
		"NotFound": {http.StatusNotFound, false}, "Unavailable": {http.StatusServiceUnavailable, false},
		"Token": {http.StatusOK, true}, "NoToken": {http.StatusUnauthorized, true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(c.status)
				fmt.Fprint(w, "some")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}))
			defer server.Close()
			transport, err := newTransport("")
			if err != nil {
				t.Fatal(err)
			}
			defer transport.CloseIdleConnections()
			patience := hasty
			patience.stall = 50 * time.Millisecond
			client := http.Client{Transport: &retryTransport{base: transport, retryPolicy: patience, tokens: c.tokens}}
			resp, err := client.Get(server.URL)
			if c.status == http.StatusOK || c.status == http.StatusServiceUnavailable {
				var refused *refusal
				if !errors.As(err, &refused) {
					t.Fatalf("the error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); resp.StatusCode != c.status || err != nil || !c.tokens && string(text) != "some" {
				t.Errorf("%s: %q, %v", resp.Status, text, err)
			}
		})
	}
}

// TestSwitchedProtocol: an answer that switches protocols does not hold a pull for ever either.
func TestSwitchedProtocol(t *testing.T) {
	for _, tokens := range []bool{false, true} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: wool\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		}))
		transport, err := newTransport("")
		if err != nil {
			t.Fatal(err)
		}
		client := http.Client{Transport: &retryTransport{base: transport, retryPolicy: hasty, tokens: tokens}}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			resp, err := client.Get(server.URL)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusSwitchingProtocols || len(text) > 0 || err != nil {
				t.Errorf("%s: %q, %v", resp.Status, text, err)
			}
		}()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("the body is read for ever")
		}
		transport.CloseIdleConnections()
		server.Close()
	}
}

// TestAttemptsEnd counts the attempts of requests that never succeed.
func TestAttemptsEnd(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		if body, _ := io.ReadAll(r.Body); r.Method == http.MethodPost && string(body) != "the same" {
			t.Errorf("the body became %q", body)
		}
		http.Error(w, "not\x1bnow\nplease", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	transport, err := newTransport("")
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: &retryTransport{base: transport, retryPolicy: hasty}}
	for _, c := range []struct {
		body io.Reader
		want int64
	}{
		{nil, 4},
		{strings.NewReader("the same"), 4},
		{io.MultiReader(strings.NewReader("the same")), 1}, // cannot be sent twice
	} {
		n.Store(0)
		method := http.MethodGet
		if c.body != nil {
			method = http.MethodPost
		}
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL, c.body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		var refused *refusal
		if !errors.As(err, &refused) || refused.status != 503 || refused.detail != "not now please" {
			t.Errorf("%v", err)
		}
		if n.Load() != c.want {
			t.Errorf("%d attempts, want %d", n.Load(), c.want)
		}
	}
}

func TestProgressTells(t *testing.T) {
	for _, c := range []struct {
		p    Progress
		want string
	}{
		{Progress{Reference: "r/m:v", Phase: Resolving}, "asking the registry for r/m:v"},
		{Progress{Reference: "r/m:v", Phase: Pulling}, "asking the registry for r/m:v"},
		{Progress{Reference: "r/m:v", Phase: Pulling, Done: 1 << 20, Total: 3 << 20, Rate: 1500, Layers: 4, LayersDone: 1}, "pulling r/m:v: 33%, 1.0 MiB of 3.0 MiB at 1.5 KiB/s, 1 of 4 layers"},
		{Progress{Reference: "r/m:v", Phase: Unpacking, Total: 5 << 30}, "unpacking r/m:v (5.0 GiB)"},
	} {
		if got := c.p.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestBoundedAnswers(t *testing.T) {
	var b bounded
	for range 100 {
		if n, err := fmt.Fprint(&b, strings.Repeat("x", 1000)); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(b.Bytes()) != 64<<10 || !bytes.HasPrefix(b.Bytes(), []byte("xxx")) {
		t.Errorf("%d bytes kept", len(b.Bytes()))
	}
}

// TestRateLimit: a registry that limits how often it is asked is up.
func TestRateLimit(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "21600") // as Docker Hub's window
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	s, err := newRemote(Registry{URL: server.URL}, 1, ignoreObservation, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.transport.CloseIdleConnections()
	_, err = s.resolve(containerdlog.WithLogger(t.Context(), quietLogger()), ref{name: s.endpoint.Name("model"), tag: "v1"}, hasty)
	f := s.explanation(err)
	if !errdefs.IsUnavailable(f) || !strings.Contains(f.message, "answers 429 Too Many Requests (4 attempts): it limits how often it is asked; ") {
		t.Errorf("%v", f)
	}
}

// silencedConn loses what is written to it once it is silenced.
type silencedConn struct {
	net.Conn
	silenced *atomic.Bool
}

func (c silencedConn) Write(p []byte) (int, error) {
	if c.silenced.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// A network may lose a connection without a sign. Later requests must not use it.
func TestLostHTTP2Connection(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	transport, err := newTransport("")
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	transport.HTTP2.SendPingTimeout, transport.HTTP2.PingTimeout = 100*time.Millisecond, 3*time.Second
	var silenced atomic.Bool
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if silenced.Load() {
			return conn, err
		}
		return silencedConn{conn, &silenced}, err
	}
	get := func() (string, error) {
		answer, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get(server.URL)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return string(text), err
	}
	if proto, err := get(); err != nil || proto != "HTTP/2.0" {
		t.Fatalf("got %q, %v", proto, err)
	}
	silenced.Store(true)
	_, _ = get() // it may be the one that shows the loss
	if proto, err := get(); err != nil || proto != "HTTP/2.0" {
		t.Errorf("after the connection was lost: %q, %v", proto, err)
	}
}
