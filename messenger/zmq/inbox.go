package zmq

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// inbox queues received messages, bounded in number and bytes. While it is full, put blocks,
// which stops reading from the peer.
type inbox[T any] struct {
	messages chan T
	budget   *semaphore.Weighted
	size     func(T) int
}

func newInbox[T any](limits Limits, size func(T) int) *inbox[T] {
	return &inbox[T]{
		messages: make(chan T, 64),
		budget:   semaphore.NewWeighted(2 * int64(limits.MaxMessage)),
		size:     size,
	}
}

// put adds a message, waiting for space. It returns false if ctx ends first.
func (b *inbox[T]) put(ctx context.Context, m T) bool {
	if b.budget.Acquire(ctx, int64(b.size(m))) != nil {
		return false
	}
	select {
	case b.messages <- m:
		return true
	case <-ctx.Done():
		return false
	}
}

// take waits for a message. Messages that were put before ended is closed are still
// returned; then take returns false, as it does when ctx ends.
func (b *inbox[T]) take(ctx context.Context, ended <-chan struct{}) (T, bool) {
	select {
	case m := <-b.messages:
		return b.taken(m), true
	case <-ctx.Done():
	case <-ended:
		select {
		case m := <-b.messages:
			return b.taken(m), true
		default:
		}
	}
	var none T
	return none, false
}

func (b *inbox[T]) taken(m T) T {
	b.budget.Release(int64(b.size(m)))
	return m
}
