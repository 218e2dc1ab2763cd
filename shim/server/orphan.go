package server

import "time"

// orphan is the timer that ends a shim without a daemon.
type orphan struct {
	clock   *time.Timer
	waiting bool // clock runs
	expired bool // clock expired while the runner was up
}

// settleOrphan starts or stops the orphan timer: it runs while no daemon is connected
// and the shim has neither a job nor an unacknowledged answer. For a runner that has
// ended the latter does not matter: its answers are in the outcome on disk. The caller
// holds s.mu.
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

// orphaned is called when the orphan timer expires. It stops the runner if it is up, and
// ends the shim.
func (s *state) orphaned() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.quit: // the directory may be closed already
		return
	default:
	}
	if !s.waiting {
		return
	}
	s.waiting, s.expired = false, true
	if s.exit == nil {
		s.log.Info("no daemon came back and there is nothing to do: stopping the runner", "after", s.spec.OrphanTimeout)
		s.stop(stopRequest{grace: s.spec.Grace, why: "no daemon came back for " + s.spec.OrphanTimeout.String()})
		return
	}
	s.conclude()
}

// conclude ends a shim whose orphan timer has expired and whose runner has ended, unless
// a daemon has connected meanwhile. It removes the life's directory unless that has a
// job or answers for a later daemon; the directory's lock is held until the process
// ends. The caller holds s.mu.
func (s *state) conclude() {
	s.expired = false
	if s.session != nil {
		return
	}
	if s.job == "" && len(s.answers) == 0 {
		s.outcome.remove()
	}
	s.end()
}
