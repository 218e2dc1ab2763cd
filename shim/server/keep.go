package server

import (
	"os"
	"sync"
	"time"

	"github.com/iterait/shepherd/shim"
)

// outcome persists the shim's outcome, which a later daemon reads if this process has
// ended. It writes in a goroutine of its own, so that no message waits for the disk.
type outcome struct {
	folder   string // the life's directory
	boot     string
	now      func() shim.Outcome
	attended func() bool // reports whether a daemon is connected
	limited  *limiter
	dirty    chan struct{} // has an element when the outcome has changed
	hurry    chan struct{} // has an element when the daemon's connection has ended

	writing sync.Mutex // serializes persist, so that an older outcome cannot replace a newer one
}

func newOutcome(folder, boot string, now func() shim.Outcome, attended func() bool, limited *limiter) *outcome {
	return &outcome{
		folder: folder, boot: boot, now: now, attended: attended, limited: limited,
		dirty: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
	}
}

// changed marks the outcome as changed; keep writes it.
func (s *outcome) changed() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// unattended is called when the daemon's connection has ended: keep writes at once what has
// changed.
func (s *outcome) unattended() {
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// The shortest times between two writes. Short jobs change the outcome three times each, and
// only the last state is written. A daemon that is connected knows what is not written yet.
const (
	keepInterval       = 20 * time.Millisecond
	keepWhileConnected = 200 * time.Millisecond
)

// keep writes the outcome when it has changed, until the shim ends.
func (s *outcome) keep(quit <-chan struct{}) {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-rest.C:
		case <-s.hurry:
		case <-quit:
			s.keepLast()
			return
		}
		select {
		case <-s.dirty:
			s.persist()
			interval := keepInterval
			if s.attended() {
				interval = keepWhileConnected
			}
			rest.Reset(interval)
		case <-quit:
			s.keepLast()
			return
		}
	}
}

// keepLast writes the outcome if it has changed since it was last written.
func (s *outcome) keepLast() {
	select {
	case <-s.dirty:
		s.persist()
	default:
	}
}

// persist writes the present outcome at once.
func (s *outcome) persist() {
	s.writing.Lock()
	defer s.writing.Unlock()
	o := s.now()
	o.Boot = s.boot
	if err := shim.WriteOutcome(s.folder, o); err != nil {
		s.limited.warn("cannot write the outcome; if this process is killed, it is lost", "error", err)
	}
}

// remove removes the life's directory, if it still exists.
func (s *outcome) remove() {
	select {
	case <-s.dirty: // drop the pending write, which would fail
	default:
	}
	if dir, err := os.Readlink(s.folder); err == nil {
		_ = os.RemoveAll(dir)
	}
}
