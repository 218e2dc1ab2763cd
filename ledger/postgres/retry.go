package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
)

// statementTime bounds one statement and its answer. A server that does not answer
// for that long is considered unreachable.
const statementTime = 10 * time.Second

// The pauses between tries.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// newKey identifies one request, so that a retry can tell whether it was made.
func newKey() string { return uuid.NewString() }

// retry runs do again while its error is transient, for up to Config.RetryFor. Each
// try has a bounded time. do finds out by itself what a try before it may have made.
func (d *database) retry(ctx context.Context, do func(ctx context.Context) error) error {
	return d.retryWithin(ctx, statementTime, do)
}

// retryWithin is retry, with another bound for each try.
func (d *database) retryWithin(ctx context.Context, bound time.Duration, do func(ctx context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	until := time.Now().Add(d.retryFor)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := within(ctx, bound, do)
		if err == nil || ctx.Err() != nil || !transient(err) && !errors.Is(err, errConflict) || time.Now().After(until) {
			return err
		}
		if errors.Is(err, errConflict) {
			pause = firstPause / 2
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errConflict says that another transaction changed the row between the read and
// the write.
var errConflict = fmt.Errorf("the record keeps being changed by others: %w", errdefs.ErrUnavailable)

// once runs do within the time of a statement.
func once(ctx context.Context, do func(ctx context.Context) error) error {
	return within(ctx, statementTime, do)
}

func within(ctx context.Context, bound time.Duration, do func(ctx context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := do(bounded)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && bounded.Err() != nil { // context.DeadlineExceeded would be taken for the caller's
		return fmt.Errorf("no answer within %s: %w", bound, errdefs.ErrUnavailable)
	}
	return err
}
