// Package lifetime runs servers: a call that blocks until its context ends, and leaves
// nothing running.
package lifetime

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// Serve answers requests on l until ctx ends. It then accepts no more, lets open requests
// finish for up to grace, aborts the rest and returns nil. Any other end is an error. Serve
// closes l; s can be used only once.
func Serve(ctx context.Context, s *http.Server, l net.Listener, grace time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	var ending sync.WaitGroup
	defer ending.Wait()
	defer cancel()
	ending.Go(func() {
		<-ctx.Done()
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if s.Shutdown(within) != nil {
			s.Close() // grace is over
		}
	})
	err := s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return err
}
