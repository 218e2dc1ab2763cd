package api

import (
	"context"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// readinessAge is how long the result of the readiness checks is used: they write to
// the ledger and query the storage, and /readyz needs no credentials.
const readinessAge = time.Second

// readinessTime bounds the checks, which continue when the client disconnects.
const readinessTime = 10 * time.Second

// readiness keeps the result of the last checks.
type readiness struct {
	check func(context.Context) []job.Check

	mu     sync.Mutex // held while the checks run: others wait for their result
	at     time.Time
	result []job.Check
}

// get is the state of everything the daemon depends on, not older than
// readinessAge.
func (c *readiness) get(ctx context.Context) []job.Check {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.at.IsZero() && time.Since(c.at) < readinessAge {
		return c.result
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readinessTime)
	defer cancel()
	c.result, c.at = c.check(ctx), time.Now()
	return c.result
}
