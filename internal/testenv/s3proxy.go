package testenv

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// S3Proxy is a proxy between an S3 client and its server that counts requests and injects
// the faults that a test configures.
type S3Proxy struct {
	// URL is the server's address through the proxy.
	URL string

	server  *httptest.Server
	forward *httputil.ReverseProxy

	mu         sync.Mutex
	requests   []string
	rules      []*rule
	otherETags bool
}

// OtherETags makes listings return other ETags than those of the files.
func (p *S3Proxy) OtherETags() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.otherETags = true
}

// changeETags changes the ETags in a listing.
func (p *S3Proxy) changeETags(answer *http.Response) error {
	p.mu.Lock()
	other := p.otherETags
	p.mu.Unlock()
	if !other || !answer.Request.URL.Query().Has("list-type") {
		return nil
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	body = bytes.ReplaceAll(body, []byte("</ETag>"), []byte("-listed</ETag>"))
	answer.Body, answer.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	answer.Header.Set("Content-Length", fmt.Sprint(len(body)))
	return nil
}

// Fault is a fault that is injected into a request.
type Fault int

const (
	// Unavailable answers 503 SlowDown without forwarding the request.
	Unavailable Fault = iota
	// Reset resets the connection without forwarding the request.
	Reset
	// LoseAnswer forwards the request, and resets the connection instead of answering.
	LoseAnswer
	// CutBody passes half of the answer's body on and then resets the connection.
	CutBody
	// Stall never answers. It ends when the client gives up or the test ends.
	Stall
	// NotImplemented answers 501 without forwarding the request, like a server without the
	// feature.
	NotImplemented
	// FailInside answers 200 without forwarding the request, and in the body that it
	// failed, as S3 does when it had begun to answer.
	FailInside
)

type rule struct {
	match func(*http.Request) bool
	times int
	fault Fault
}

// StartS3Proxy starts a proxy for the server at target; it ends with the test.
func StartS3Proxy(t testing.TB, target string) *S3Proxy {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	p := &S3Proxy{forward: &httputil.ReverseProxy{
		// The path is signed as the client wrote it, so it stays untouched, as
		// does the Host header.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
		},
		Transport:    transport,
		ErrorLog:     log.New(io.Discard, "", 0), // broken connections are expected
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { reset(w) },
	}}
	p.forward.ModifyResponse = p.changeETags
	p.server = httptest.NewUnstartedServer(p)
	p.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	// Stalled requests end when the server's base context does.
	base, end := context.WithCancel(context.Background())
	p.server.Config.BaseContext = func(net.Listener) context.Context { return base }
	p.server.Start()
	p.URL = p.server.URL
	t.Cleanup(func() {
		end()
		p.server.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Inject injects the fault into so many of the next requests that match: all if times is
// negative. A nil match matches every request.
func (p *S3Proxy) Inject(fault Fault, times int, match func(*http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if match == nil {
		match = func(*http.Request) bool { return true }
	}
	p.rules = append(p.rules, &rule{match: match, times: times, fault: fault})
}

// Heal removes all faults.
func (p *S3Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = nil
}

// Reset clears the recorded requests.
func (p *S3Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = nil
}

// Requests returns the requests since Reset, each as METHOD PATH?QUERY.
func (p *S3Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// Counts returns the number of requests of each method since Reset.
func (p *S3Proxy) Counts() map[string]int {
	counts := make(map[string]int)
	for _, request := range p.Requests() {
		method, _, _ := strings.Cut(request, " ")
		counts[method]++
	}
	return counts
}

// ServeHTTP forwards a request, or injects a fault.
func (p *S3Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault, broken := p.note(r)
	if !broken {
		p.forward.ServeHTTP(w, r)
		return
	}
	switch fault {
	case Unavailable:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>`)
	case NotImplemented:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusNotImplemented)
		fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>NotImplemented</Code><Message>not here</Message></Error>`)
	case FailInside:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error>`)
	case Reset:
		reset(w)
	case LoseAnswer:
		p.forward.ServeHTTP(httptest.NewRecorder(), r)
		reset(w)
	case CutBody:
		answer := httptest.NewRecorder()
		p.forward.ServeHTTP(answer, r)
		maps.Copy(w.Header(), answer.Header())
		w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case Stall:
		_, _ = io.Copy(io.Discard, r.Body) // the server notices a client that left once the body is read
		<-r.Context().Done()
		reset(w)
	}
}

func (p *S3Proxy) note(r *http.Request) (Fault, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, r.Method+" "+r.URL.RequestURI())
	for _, rule := range p.rules {
		if rule.times != 0 && rule.match(r) {
			rule.times--
			return rule.fault, true
		}
	}
	return 0, false
}

// reset ends the client's connection with a TCP reset.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
