package durable

import "sync"

// SharedSync is a sync, such as that of a directory, that goroutines share which need it at
// the same time.
type SharedSync struct {
	sync func() error

	mu     sync.Mutex
	next   *round // that has not begun, or nil
	latest *round // that was made last, or nil
}

// round is one sync.
type round struct {
	done chan struct{}
	err  error // valid once done is closed
}

// NewSharedSync returns a SharedSync that calls f, one call at a time.
func NewSharedSync(f func() error) *SharedSync { return &SharedSync{sync: f} }

// Sync returns after a sync that began after the call. Calls that come while one is under way
// wait for its end, and share the next.
func (s *SharedSync) Sync() error {
	s.mu.Lock()
	if r := s.next; r != nil {
		s.mu.Unlock()
		<-r.done
		return r.err
	}
	before, r := s.latest, &round{done: make(chan struct{})}
	s.next, s.latest = r, r
	s.mu.Unlock()
	if before != nil {
		<-before.done
	}
	s.mu.Lock()
	s.next = nil // the sync that begins now may miss what later callers made
	s.mu.Unlock()
	r.err = s.sync()
	close(r.done)
	return r.err
}
