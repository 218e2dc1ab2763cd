package tracing

import (
	"bytes"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shepherd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// variables are those that tracing looks at.
var variables = []string{
	"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
	"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES",
	"OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_EXPORTER_OTLP_HEADERS",
}

func setenv(t *testing.T, pairs ...string) {
	t.Helper()
	for _, name := range variables {
		t.Setenv(name, "")
	}
	for i := 0; i < len(pairs); i += 2 {
		t.Setenv(pairs[i], pairs[i+1])
	}
}

func TestWanted(t *testing.T) {
	const at = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for _, c := range []struct {
		env  []string
		off  bool
		says string // of an error
	}{
		{nil, true, ""},
		{[]string{at, "http://x"}, false, ""},
		{[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x"}, false, ""},
		{[]string{"OTEL_TRACES_EXPORTER", "otlp"}, false, ""},
		{[]string{at, "http://x", "OTEL_TRACES_EXPORTER", "none"}, true, ""},
		{[]string{at, "http://x", "OTEL_SDK_DISABLED", "true"}, true, ""},
		{[]string{at, "http://x", "OTEL_SDK_DISABLED", "false"}, false, ""},
		{[]string{"OTEL_TRACES_EXPORTER", "jaeger"}, false, "OTEL_TRACES_EXPORTER"},
		{[]string{at, "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"}, false, ""},
		{[]string{at, "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, false, "4318"},
		{[]string{at, "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"}, false, ""},
	} {
		setenv(t, c.env...)
		err := Wanted()
		if errors.Is(err, ErrOff) != c.off || (err != nil && !c.off) != (c.says != "") || c.says != "" && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v", c.env, err)
		}
	}
}

var model = job.Model{Name: "m", Version: "v"}

// TestOneTrace follows a job from its client's request to its end: every span is
// below submit, which is below the client's, and run has the id that the runner
// was told.
func TestOneTrace(t *testing.T) {
	r := testenv.StartOTLP(t)
	setenv(t, "OTEL_EXPORTER_OTLP_ENDPOINT", r.URL, "OTEL_SERVICE_NAME", "flock", "OTEL_RESOURCE_ATTRIBUTES", "room=7,service.version=mine",
		"OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20xyz")
	tr, err := New(t.Context(), Config{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	client := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", State: "vendor=1"}
	kept, done := tr.Submit(job.Request{ID: "j", Model: model, Trace: client})
	done(nil)
	if kept != job.ParseTrace(kept.Parent, kept.State) || kept.Parent[:36] != client.Parent[:36] || kept.Parent == client.Parent || kept.State != client.State {
		t.Errorf("kept %+v", kept)
	}
	told := tr.Run("j", 1, 2, kept)
	if told != tr.Run("j", 1, 2, kept) || told == tr.Run("j", 1, 1, kept) || told == tr.Run("j", 2, 2, kept) || told == tr.Run("k", 1, 2, kept) {
		t.Error("what the runner is told does not follow from job, run and attempt")
	}
	began := time.Now().Add(-time.Minute)
	for _, phase := range shepherd.Phases() {
		p := shepherd.PhaseResult{Phase: phase, Sheep: "s", Model: model, Job: "j", Trace: kept, Run: 1, Attempt: 2, Began: began, Ended: began.Add(time.Second)}
		if phase == shepherd.PhaseCollect {
			p.Err = errors.New(strings.Repeat("ö", 1000))
		}
		tr.PhaseEnded(p)
	}
	tr.PhaseEnded(shepherd.PhaseResult{Phase: "no trace", Job: "j"})
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}

	if r.Resource("service.name") != "flock" || r.Resource("room") != "7" || r.Resource("service.version") != "mine" || r.Resource("host.name") == "" {
		t.Errorf("the resource is %q of %q", r.Resource("service.name"), r.Resource("host.name"))
	}
	if got := r.Header("Authorization"); got != "Bearer xyz" {
		t.Errorf("authorization %q", got)
	}
	if len(r.Spans()) != 1+len(shepherd.Phases()) {
		t.Fatalf("received %v", r.Spans())
	}
	submit := r.Span("submit")
	for _, s := range r.Spans() {
		name := s.Name
		parent := submit.SpanId
		if name == "submit" {
			parent = unhex(t, client.Parent[36:52])
		} else if start := time.Unix(0, int64(s.StartTimeUnixNano)); !start.Equal(began) || s.EndTimeUnixNano-s.StartTimeUnixNano != uint64(time.Second) {
			t.Errorf("%s is from %v", name, start)
		}
		if !bytes.Equal(s.TraceId, unhex(t, client.Parent[3:35])) || !bytes.Equal(s.ParentSpanId, parent) {
			t.Errorf("%s is not where it belongs: %v", name, s)
		}
		if got := attributeOf(s.Attributes, "shepherd.job.id"); got != "j" {
			t.Errorf("%s has job id %q", name, got)
		}
		if failed := s.GetStatus().GetCode() == spans.Status_STATUS_CODE_ERROR; failed != (name == "collect") {
			t.Errorf("%s has status %v", name, s.GetStatus())
		}
	}
	if !bytes.Equal(r.Span("run").SpanId, unhex(t, told.Parent[36:52])) {
		t.Errorf("the runner was told of %s, the span is %x", told.Parent, r.Span("run").SpanId)
	}
	if text := r.Span("collect").Status.Message; len(text) > 1100 || !strings.HasSuffix(text, "ö…") {
		t.Errorf("the error is %d bytes", len(text))
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func attributeOf(list []*common.KeyValue, key string) string {
	for _, a := range list {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// A sampler that wants nothing of a trace has nothing sent, and says so to
// clients' and runners' next ones; the trace goes on all the same.
func TestNotSampled(t *testing.T) {
	r := testenv.StartOTLP(t)
	setenv(t, "OTEL_EXPORTER_OTLP_ENDPOINT", r.URL, "OTEL_TRACES_SAMPLER", "parentbased_always_off")
	tr, err := New(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	kept, done := tr.Submit(job.Request{ID: "j", Model: model})
	done(errors.New("x"))
	tr.PhaseEnded(shepherd.PhaseResult{Phase: shepherd.PhaseRun, Job: "j", Trace: kept})
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if kept.IsZero() || !strings.HasSuffix(kept.Parent, "-00") || len(r.Spans()) != 0 {
		t.Errorf("kept %+v, received %v", kept, r.Spans())
	}
}

// A receiver that is away is told of in the log, and the end does not wait for
// it.
func TestReceiverAway(t *testing.T) {
	r := testenv.StartOTLP(t)
	r.Stop()
	setenv(t, "OTEL_EXPORTER_OTLP_ENDPOINT", r.URL)
	var log bytes.Buffer
	tr, err := New(t.Context(), Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	_, done := tr.Submit(job.Request{ID: "j", Model: model})
	done(nil)
	err = tr.Close()
	if !strings.Contains(log.String(), "Cannot send traces") {
		t.Errorf("closing answered %v; logged %q", err, &log)
	}
}

// FuzzParse reads traces as OpenTelemetry's own propagator does.
func FuzzParse(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=1,b=2")
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", "")
	f.Add("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x", "a=1")
	f.Fuzz(func(t *testing.T, parent, state string) {
		got, ok := parse(job.ParseTrace(parent, state))
		if !ok {
			return
		}
		kept := kept(got)
		ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": kept.Parent, "tracestate": kept.State})
		want := trace.SpanContextFromContext(ctx)
		if got.TraceID() != want.TraceID() || got.SpanID() != want.SpanID() || got.IsSampled() != want.IsSampled() || got.TraceState().String() != want.TraceState().String() {
			t.Fatalf("%q, %q: %+v, want %+v", parent, state, got, want)
		}
	})
}
