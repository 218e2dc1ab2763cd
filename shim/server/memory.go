package server

import (
	"fmt"
	"time"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// memoryInterval is how often it is looked whether the kernel has killed a process
// of the runner for memory.
const memoryInterval = time.Second

// What is known of processes that the kernel killed for memory.
const (
	notKilled = iota
	perhaps   // one of a group that the runner shares with others, a moment ago
	itsOwn    // one of the runner's
)

// memoryWatch counts the processes of a runner that the kernel kills for memory.
type memoryWatch struct {
	of     process
	told   int
	shared [2]int // what is counted of the shared group, at the last two looks
}

func newMemoryWatch(of process) *memoryWatch {
	own, shared := of.oomKills()
	return &memoryWatch{of: of, told: own, shared: [2]int{shared, shared}}
}

// look returns how many processes of the runner's own were killed so far, and
// whether some were since the last look.
func (m *memoryWatch) look() (own int, more bool) {
	own, shared := m.of.oomKills()
	m.shared = [2]int{m.shared[1], shared}
	more = own > m.told
	m.told = max(m.told, own)
	return own, more
}

// killed says what is known of the runner's end.
func (m *memoryWatch) killed() int {
	own, shared := m.of.oomKills()
	switch {
	case own > 0 || m.told > 0: // the group that counts may be gone
		return itsOwn
	case shared > m.shared[0]:
		return perhaps
	}
	return notKilled
}

// watchMemory begins to watch the runner.
func (s *state) watchMemory(of process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory = newMemoryWatch(of)
}

// killedForMemory says what is known of the runner's end.
func (s *state) killedForMemory() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.killed()
}

func (s *state) lookForKillsNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookForKills()
}

// lookForKills tells of a process that the kernel killed for memory while the runner
// goes on. The caller holds s.mu.
func (s *state) lookForKills() {
	if s.memory == nil || !s.memory.of.alive() {
		return
	}
	own, more := s.memory.look()
	if !more {
		return
	}
	s.log.Warn("the kernel killed a process that the runner had started for memory; the runner goes on", "killed_so_far", own)
	warning := "the kernel killed a process that the runner had started, for memory"
	if own > 1 {
		warning = fmt.Sprintf("the kernel killed processes that the runner had started, for memory (%d so far)", own)
	}
	told := shim.Event{Kind: messenger.EventWarning, Time: time.Now(), Text: warning}
	if s.job != "" && s.frame == nil {
		told.Job = s.job
		s.current.warnings = []string{warning} // the latest says all
	}
	s.session.event(told)
}
