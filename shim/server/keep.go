package server

import (
	"os"
	"slices"
	"time"

	"github.com/iterait/shepherd/shim"
)

// changed notes that the outcome must be written.
func (s *server) changed() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// keepEvery is how often the outcome is written at most. A job of a few milliseconds
// changes it three times; what is written is what it is in the end.
const keepEvery = 20 * time.Millisecond

// keep writes the outcome when it has changed, until the shim ends.
func (s *server) keep() {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-rest.C:
		case <-s.quit:
			s.keepLast()
			return
		}
		select {
		case <-s.dirty:
			s.persist()
			rest.Reset(keepEvery)
		case <-s.quit:
			s.keepLast()
			return
		}
	}
}

// keepLast writes what has changed since the outcome was last written.
func (s *server) keepLast() {
	select {
	case <-s.dirty:
		s.persist()
	default:
	}
}

// persist writes what a later daemon must find if this process is gone.
func (s *server) persist() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	o := shim.Outcome{Boot: s.boot, Job: s.job, Answers: slices.Clone(s.answers), Exit: s.exit}
	s.mu.Unlock()
	if err := shim.WriteOutcome(s.cfg.Folder.Path(), o); err != nil {
		s.noise.warn("cannot write the outcome; it would be lost with this process", "error", err)
	}
}

// settleOrphan starts or stops the clock that ends a shim nobody wants: it runs
// while no daemon is there and there is nothing to do for one. What is left of a
// runner that has ended is in the outcome and needs no process. The caller holds
// s.mu.
func (s *server) settleOrphan() {
	idle := s.session == nil && (s.exit != nil || s.job == "" && len(s.answers) == 0)
	if idle == s.waiting || s.spec.OrphanTimeout <= 0 {
		return
	}
	s.waiting = idle
	if idle {
		s.orphan.Reset(s.spec.OrphanTimeout)
	} else {
		s.orphan.Stop()
	}
}

// orphaned ends the shim, and the runner first.
func (s *server) orphaned() {
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
func (s *server) conclude() {
	s.forsaken = false
	if s.session != nil {
		return
	}
	if s.job == "" && len(s.answers) == 0 {
		select {
		case <-s.dirty: // nothing is written to a folder that is gone
		default:
		}
		if dir, err := os.Readlink(s.cfg.Folder.Path()); err == nil {
			_ = os.RemoveAll(dir)
		}
	}
	s.end()
}
