package runtime

import (
	"context"

	"github.com/iterait/shepherd/job"
)

type traceKey struct{}

// WithTrace returns a context for Run: a runner that Run starts gets the trace of its start
// in its environment, as TRACEPARENT and TRACESTATE.
func WithTrace(ctx context.Context, t job.Trace) context.Context {
	if t.IsZero() {
		return ctx
	}
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf returns the trace that WithTrace has set in ctx, zero if there is none.
func TraceOf(ctx context.Context) job.Trace {
	t, _ := ctx.Value(traceKey{}).(job.Trace)
	return t
}
