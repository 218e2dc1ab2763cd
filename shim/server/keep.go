package server

import (
	"os"
	"sync"
	"time"

	"github.com/iterait/shepherd/shim"
)

// outcome writes what a later daemon must find if this process is gone, beside the
// way of a message and not in it.
type outcome struct {
	folder  string // of the life
	boot    string
	now     func() shim.Outcome
	limited *limiter
	dirty   chan struct{} // has an element when the outcome has changed

	writing sync.Mutex // one at a time, and none older than the last
}

func newOutcome(folder, boot string, now func() shim.Outcome, limited *limiter) *outcome {
	return &outcome{folder: folder, boot: boot, now: now, limited: limited, dirty: make(chan struct{}, 1)}
}

// changed notes that the outcome must be written.
func (s *outcome) changed() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// keepEvery is how often the outcome is written at most. A job of a few milliseconds
// changes it three times; what is written is what it is in the end.
const keepEvery = 20 * time.Millisecond

// keep writes the outcome when it has changed, until the shim ends.
func (s *outcome) keep(quit <-chan struct{}) {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-rest.C:
		case <-quit:
			s.keepLast()
			return
		}
		select {
		case <-s.dirty:
			s.persist()
			rest.Reset(keepEvery)
		case <-quit:
			s.keepLast()
			return
		}
	}
}

// keepLast writes what has changed since the outcome was last written.
func (s *outcome) keepLast() {
	select {
	case <-s.dirty:
		s.persist()
	default:
	}
}

// persist writes the outcome as it is now.
func (s *outcome) persist() {
	s.writing.Lock()
	defer s.writing.Unlock()
	o := s.now()
	o.Boot = s.boot
	if err := shim.WriteOutcome(s.folder, o); err != nil {
		s.limited.warn("cannot write the outcome; it would be lost with this process", "error", err)
	}
}

// remove removes the folder of the life, where that is still there.
func (s *outcome) remove() {
	select {
	case <-s.dirty: // nothing is written to a folder that is gone
	default:
	}
	if dir, err := os.Readlink(s.folder); err == nil {
		_ = os.RemoveAll(dir)
	}
}
