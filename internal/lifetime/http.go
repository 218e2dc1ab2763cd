// Package lifetime lets servers begin and end in one way: each is run by a call
// that blocks, ends with its context, and leaves nothing behind.
package lifetime

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// Serve answers requests on l until ctx ends. It then takes no more, lets those
// under way finish for as long as grace, breaks off the rest and returns nil. Any
// other end is an error. l is closed when it returns; s serves once.
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
			s.Close() // they had their time
		}
	})
	err := s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return err
}
