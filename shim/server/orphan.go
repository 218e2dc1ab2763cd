package server

import "time"

// orphan is the clock that ends a shim nobody wants.
type orphan struct {
	clock    *time.Timer
	waiting  bool // it runs
	forsaken bool // it ran out
}

// settleOrphan starts or stops the clock that ends a shim nobody wants: it runs
// while no daemon is there and there is nothing to do for one. What is left of a
// runner that has ended is in the outcome and needs no process. The caller holds
// s.mu.
func (s *state) settleOrphan() {
	idle := s.session == nil && (s.exit != nil || s.job == "" && len(s.answers) == 0)
	if idle == s.waiting || s.spec.OrphanTimeout <= 0 {
		return
	}
	s.waiting = idle
	if idle {
		s.clock.Reset(s.spec.OrphanTimeout)
	} else {
		s.clock.Stop()
	}
}

// orphaned ends the shim, and the runner first.
func (s *state) orphaned() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.quit: // and the folder may be closed
		return
	default:
	}
	if !s.waiting {
		return
	}
	s.waiting, s.forsaken = false, true
	if s.exit == nil {
		s.log.Info("no daemon came back and there is nothing to do: stopping the runner", "after", s.spec.OrphanTimeout)
		s.stop(stopRequest{grace: s.spec.Grace, why: "no daemon came back for " + s.spec.OrphanTimeout.String()})
		return
	}
	s.conclude()
}

// conclude ends a shim whose runner has ended and that no daemon came back to,
// unless one has come meanwhile. The folder goes, too, if there is nothing in it
// that a later daemon would want to know; its lock is held until the process
// ends. The caller holds s.mu.
func (s *state) conclude() {
	s.forsaken = false
	if s.session != nil {
		return
	}
	if s.job == "" && len(s.answers) == 0 {
		s.outcome.remove()
	}
	s.end()
}
