// Package tracing creates OpenTelemetry spans of a job's phases and sends them with OTLP
// over HTTP. It is configured with OpenTelemetry's standard environment variables, and
// disabled unless they name a receiver.
//
//	[the client's span]
//	└── submit              the request, until the job is durable
//	    ├── queued          until a sheep starts the job
//	    ├── stage           inputs are fetched from storage
//	    ├── pull, load      if another model was loaded
//	    ├── run             the runner has the job
//	    │   └── [the runner's own spans]
//	    └── collect         outputs are stored
//
// A job may wait for days, while daemons are restarted. So no span stays open between
// phases: the job stores the context of submit, which ends when the job is durable, and the
// span of each phase is created when the phase has ended. The id of the span of run is
// derived from the job and its attempt, so that the runner can be given the span's context
// in advance.
package tracing

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shepherd"
)

// Config configures a Tracing.
type Config struct {
	// Version is the daemon's version.
	Version string
	// Log receives a warning when spans cannot be sent; nil discards it.
	Log *slog.Logger
}

// Tracing sends the spans of jobs. It is the core's Tracer and one of its
// Observers.
type Tracing struct {
	shepherd.NopObserver
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

var (
	_ shepherd.Observer = (*Tracing)(nil)
	_ shepherd.Tracer   = (*Tracing)(nil)
)

// ErrOff is returned by Wanted if the environment does not enable tracing.
var ErrOff = errors.New("tracing is off")

// Wanted returns nil if the environment enables tracing, ErrOff if it does not, and another
// error if it asks for something unsupported: an exporter other than otlp, or a protocol
// other than http/protobuf.
func Wanted() error {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return ErrOff
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "none":
		return ErrOff
	case "otlp":
	case "":
		if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return ErrOff
		}
	default:
		return fmt.Errorf("OTEL_TRACES_EXPORTER is %q, which shepherd does not have: set it to otlp or none", exporter)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		switch protocol := os.Getenv(name); protocol {
		case "":
			continue
		case "http/protobuf":
			return nil
		default:
			return fmt.Errorf("%s is %q, which shepherd does not speak: set it to http/protobuf, and the endpoint to the receiver's port for it (4318 as a rule)", name, protocol)
		}
	}
	return nil
}

// New starts tracing as configured by the environment. The caller checks Wanted first, and
// calls Close. New does not connect to the receiver: an unreachable one is noticed when
// spans are sent.
func New(ctx context.Context, cfg Config) (*Tracing, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "shepherd"), attribute.String("service.version", cfg.Version)),
		resource.WithHost(),
		resource.WithFromEnv(), // overrides the attributes above
	)
	if err != nil {
		return nil, fmt.Errorf("set up tracing: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("set up tracing: %w", err)
	}
	t := &Tracing{provider: sdk.NewTracerProvider(
		sdk.WithBatcher(&quiet{exporter, log}), sdk.WithResource(about), sdk.WithIDGenerator(ids{}),
	)}
	t.tracer = t.provider.Tracer("github.com/iterait/shepherd")
	return t, nil
}

// closeTime bounds how long Close waits for the receiver.
const closeTime = 3 * time.Second

// Close sends the remaining spans, within closeTime.
func (t *Tracing) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last spans: %w", err)
	}
	return nil
}

// quiet logs errors of sending, which the library would otherwise write to standard error.
type quiet struct {
	sdk.SpanExporter
	log *slog.Logger
}

func (q *quiet) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	if err := q.SpanExporter.ExportSpans(ctx, spans); err != nil {
		q.log.Warn("Cannot send traces; these spans are lost", "spans", len(spans), "error", err)
	}
	return nil
}

// Submit implements shepherd.Tracer.
func (t *Tracing) Submit(r job.Request) (job.Trace, func(error)) {
	_, span := t.tracer.Start(above(r.Trace), "submit", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("shepherd.job.id", string(r.ID)), attribute.String("shepherd.model", r.Model.String()),
		attribute.Int("shepherd.priority", r.Priority),
	))
	return kept(span.SpanContext()), func(err error) {
		mark(span, err)
		span.End()
	}
}

// Run implements shepherd.Tracer.
func (t *Tracing) Run(id job.ID, run, attempt int, parent job.Trace) job.Trace {
	sc, ok := parse(parent)
	if !ok {
		return parent
	}
	return kept(sc.WithSpanID(runID(sc.TraceID(), id, run, attempt)))
}

// PhaseEnded implements shepherd.Observer. Jobs that were submitted without tracing, and
// whose clients do not trace, have no trace to continue.
func (t *Tracing) PhaseEnded(p shepherd.PhaseResult) {
	parent, ok := parse(p.Trace)
	if !ok {
		return
	}
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), parent)
	if p.Phase == shepherd.PhaseRun {
		ctx = context.WithValue(ctx, idKey{}, runID(parent.TraceID(), p.Job, p.Run, p.Attempt))
	}
	_, span := t.tracer.Start(ctx, string(p.Phase), trace.WithTimestamp(p.Began), trace.WithAttributes(
		attribute.String("shepherd.job.id", string(p.Job)), attribute.String("shepherd.model", p.Model.String()),
		attribute.String("shepherd.sheep", p.Sheep), attribute.Int("shepherd.run", p.Run), attribute.Int("shepherd.attempt", p.Attempt),
	))
	mark(span, p.Err)
	span.End(trace.WithTimestamp(p.Ended))
}

// longest bounds the text of an error in a span, in bytes.
const longest = 1 << 10

func mark(span trace.Span, err error) {
	if err == nil || !span.IsRecording() {
		return
	}
	text := err.Error()
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	span.SetStatus(codes.Error, text)
}

// above returns a context with the trace as the parent of new spans, if there is one.
func above(t job.Trace) context.Context {
	sc, ok := parse(t)
	if !ok {
		return context.Background()
	}
	return trace.ContextWithRemoteSpanContext(context.Background(), sc)
}

// parse reads a trace that job.ParseTrace has validated.
func parse(t job.Trace) (trace.SpanContext, bool) {
	if t.IsZero() {
		return trace.SpanContext{}, false
	}
	var c trace.SpanContextConfig
	var err1, err2, err3 error
	c.TraceID, err1 = trace.TraceIDFromHex(t.Parent[3:35])
	c.SpanID, err2 = trace.SpanIDFromHex(t.Parent[36:52])
	flags, err3 := strconv.ParseUint(t.Parent[53:55], 16, 8)
	if errors.Join(err1, err2, err3) != nil {
		return trace.SpanContext{}, false
	}
	// Flags that version 00 does not define are not passed on: strict readers would reject
	// the trace.
	c.TraceFlags, c.Remote = trace.TraceFlags(flags)&trace.FlagsSampled, true
	c.TraceState, _ = trace.ParseTraceState(t.State) // an invalid tracestate is dropped
	return trace.NewSpanContext(c), true
}

func kept(sc trace.SpanContext) job.Trace {
	return job.Trace{Parent: fmt.Sprintf("00-%s-%s-%s", sc.TraceID(), sc.SpanID(), sc.TraceFlags()), State: sc.TraceState().String()}
}

// runID returns the id of the span of a job's run.
func runID(id trace.TraceID, name job.ID, run, attempt int) (span trace.SpanID) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d", id, name, run, attempt))
	copy(span[:], sum[:])
	return span
}

type idKey struct{}

// ids generates random ids, except for spans whose id is given in the context.
type ids struct{}

// NewIDs implements sdk.IDGenerator.
func (i ids) NewIDs(ctx context.Context) (t trace.TraceID, s trace.SpanID) {
	for !t.IsValid() {
		binary.NativeEndian.PutUint64(t[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(t[8:], rand.Uint64())
	}
	return t, i.NewSpanID(ctx, t)
}

// NewSpanID implements sdk.IDGenerator.
func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) (s trace.SpanID) {
	if settled, ok := ctx.Value(idKey{}).(trace.SpanID); ok {
		return settled
	}
	for !s.IsValid() {
		binary.NativeEndian.PutUint64(s[:], rand.Uint64())
	}
	return s
}
