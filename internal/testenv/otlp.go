package testenv

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// OTLP is a receiver of traces, by OTLP over HTTP.
type OTLP struct {
	URL    string
	server *httptest.Server

	mu       sync.Mutex
	spans    []*spans.Span
	resource map[string]string
	headers  http.Header
	raw      []byte
}

// StartOTLP starts a receiver that ends with the test. A request that it cannot decode fails the
// test.
func StartOTLP(t testing.TB) *OTLP {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ServeOTLP(t, listener)
}

// ServeOTLP is StartOTLP at a listener, which it closes.
func ServeOTLP(t testing.TB, listener net.Listener) *OTLP {
	t.Helper()
	o := &OTLP{resource: map[string]string{}}
	o.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var sent collector.ExportTraceServiceRequest
		if err := errors.Join(err, proto.Unmarshal(body, &sent)); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("sent to the receiver of traces, %s: %v", r.URL.Path, err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.headers = r.Header.Clone()
		o.raw = append(o.raw, body...)
		for _, rs := range sent.ResourceSpans {
			for _, a := range rs.Resource.Attributes {
				o.resource[a.Key] = a.Value.GetStringValue()
			}
			for _, ss := range rs.ScopeSpans {
				o.spans = append(o.spans, ss.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	o.server.Listener.Close()
	o.server.Listener = listener
	o.server.Start()
	o.URL = o.server.URL
	t.Cleanup(o.server.Close)
	return o
}

// Stop stops it before the end of the test.
func (o *OTLP) Stop() { o.server.Close() }

// Spans returns the spans received so far.
func (o *OTLP) Spans() []*spans.Span {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]*spans.Span(nil), o.spans...)
}

// Span returns the last span of the name, nil for none.
func (o *OTLP) Span(name string) (last *spans.Span) {
	for _, s := range o.Spans() {
		if s.Name == name {
			last = s
		}
	}
	return last
}

// Resource returns the resource attributes of the sender.
func (o *OTLP) Resource(key string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.resource[key]
}

// Header returns a header of the latest request.
func (o *OTLP) Header(name string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.headers.Get(name)
}

// Raw returns the received bodies.
func (o *OTLP) Raw() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.raw)
}
