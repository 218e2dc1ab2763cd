package runtime

import (
	"context"

	"github.com/iterait/shepherd/job"
)

type traceKey struct{}

// WithTrace returns a context for Run: a runner that it starts is told in its
// environment, as TRACEPARENT and TRACESTATE, to which trace its start belongs.
func WithTrace(ctx context.Context, t job.Trace) context.Context {
	if t.IsZero() {
		return ctx
	}
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf is the trace that ctx was given by WithTrace, zero where it was given
// none.
func TraceOf(ctx context.Context) job.Trace {
	t, _ := ctx.Value(traceKey{}).(job.Trace)
	return t
}
