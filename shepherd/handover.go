package shepherd

import (
	"context"
	"sync"
	"time"
)

// handoverLimit bounds how long other work waits for a handover, for example while the ledger
// retries on a full disk.
const handoverLimit = time.Second

// handover is the interval from a runner's answer until the runner has its next job. The
// runner is idle in it, so work that the next job does not need is deferred until it has
// ended: storing the results of the last job, and claiming and staging the job after the next.
//
// Only the worker calls begin and end. The zero handover is not in progress.
type handover struct {
	mu   sync.Mutex
	over chan struct{} // closed by end; nil if no handover is in progress
}

// begin starts a handover and returns a channel that is closed at its end.
func (h *handover) begin() (over <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over == nil {
		h.over = make(chan struct{})
	}
	return h.over
}

// end ends the handover. It does nothing if none is in progress.
func (h *handover) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over != nil {
		close(h.over)
		h.over = nil
	}
}

// wait returns at the end of the handover in progress, if any, at the end of ctx, or after
// handoverLimit.
func (h *handover) wait(ctx context.Context) {
	h.mu.Lock()
	over := h.over
	h.mu.Unlock()
	waitOver(ctx, over)
}

// waitOver returns when over is closed, at the end of ctx, or after handoverLimit. A nil over
// counts as closed.
func waitOver(ctx context.Context, over <-chan struct{}) {
	if over == nil || closed(over) {
		return
	}
	limit := time.NewTimer(handoverLimit)
	defer limit.Stop()
	select {
	case <-over:
	case <-limit.C:
	case <-ctx.Done():
	}
}
