// Package tracing makes OpenTelemetry spans of a job's way, and sends them by
// OTLP over HTTP. It is set up by OpenTelemetry's own environment variables, and
// is not there at all unless they name a receiver.
//
//	[the client's span]
//	└── submit              the request, until the job is durable
//	    ├── queued          until a sheep begins with the job
//	    ├── stage           inputs come from storage
//	    ├── pull, load      where the model is not the one loaded
//	    ├── run             the runner has the job
//	    │   └── [what the runner adds]
//	    └── collect         outputs and state go to storage
//
// A job may wait for days, and daemons come and go meanwhile. So no span is open
// while a job is on its way: what is kept with the job is the context of submit,
// which has ended when the job is durable, and each phase is made a span of when
// it has ended. The span of run has an id that follows from the job and its
// attempt; so the runner can be told of it beforehand.
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

// Config says who is traced.
type Config struct {
	// Version is the daemon's.
	Version string
	// Log is told when spans cannot be sent.
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

// ErrOff is why there is no tracing: nobody asked for it.
var ErrOff = errors.New("tracing is off")

// Wanted answers nil when the environment asks for tracing, ErrOff when it does
// not, and another error when it asks for what there is not: an exporter other
// than otlp, a protocol other than http/protobuf.
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

// New begins to trace as the environment says. The caller asks Wanted first, and
// closes it. It connects to nobody: that the receiver is there is seen when
// spans are sent.
func New(ctx context.Context, cfg Config) (*Tracing, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "shepherd"), attribute.String("service.version", cfg.Version)),
		resource.WithHost(),
		resource.WithFromEnv(), // goes before the others
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

// closeTime bounds how long the end of the daemon waits for a receiver.
const closeTime = 3 * time.Second

// Close sends what is left, within a few seconds.
func (t *Tracing) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last spans: %w", err)
	}
	return nil
}

// quiet logs what goes wrong with sending: left to itself the library would
// write it to standard error.
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

// PhaseEnded implements shepherd.Observer. Only jobs that were submitted while there
// was tracing, or whose clients trace, have a trace to go on with.
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

// longest is how much of an error a span tells, in bytes.
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

// above is the context for a span below the trace's, or for one without any.
func above(t job.Trace) context.Context {
	sc, ok := parse(t)
	if !ok {
		return context.Background()
	}
	return trace.ContextWithRemoteSpanContext(context.Background(), sc)
}

// parse reads what job.ParseTrace let through.
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
	// Flags that version 00 does not define are not passed on: those who read it strictly
	// take the trace for none.
	c.TraceFlags, c.Remote = trace.TraceFlags(flags)&trace.FlagsSampled, true
	c.TraceState, _ = trace.ParseTraceState(t.State) // one that is not valid is none
	return trace.NewSpanContext(c), true
}

func kept(sc trace.SpanContext) job.Trace {
	return job.Trace{Parent: fmt.Sprintf("00-%s-%s-%s", sc.TraceID(), sc.SpanID(), sc.TraceFlags()), State: sc.TraceState().String()}
}

// runID is the id of the span of a job's run.
func runID(id trace.TraceID, name job.ID, run, attempt int) (span trace.SpanID) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d", id, name, run, attempt))
	copy(span[:], sum[:])
	return span
}

type idKey struct{}

// ids makes ids by chance, but for spans whose id is settled before.
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
