package server

import (
	"fmt"
	"time"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// memoryInterval is the time between two checks whether the kernel's OOM killer has
// killed a process of the runner.
const memoryInterval = time.Second

// Whether the OOM killer has killed a process of the runner.
const (
	oomNone   = iota
	oomShared // it recently killed a process in a control group that the runner shares with others
	oomOwn    // it killed a process in the runner's own control group
)

// memoryWatch counts OOM kills among a runner's processes.
type memoryWatch struct {
	of       process
	reported int    // own kills at the last look
	shared   [2]int // kills in the shared control group at the last two looks
}

func newMemoryWatch(of process) *memoryWatch {
	own, shared := of.oomKills()
	return &memoryWatch{of: of, reported: own, shared: [2]int{shared, shared}}
}

// look returns how many processes in the runner's own control group were killed so far,
// and whether more than at the last look.
func (m *memoryWatch) look() (own int, more bool) {
	own, shared := m.of.oomKills()
	m.shared = [2]int{m.shared[1], shared}
	more = own > m.reported
	m.reported = max(m.reported, own)
	return own, more
}

// killed returns oomNone, oomShared or oomOwn, for a runner that has ended.
func (m *memoryWatch) killed() int {
	own, shared := m.of.oomKills()
	switch {
	case own > 0 || m.reported > 0: // the control group may have been removed, and its count with it
		return oomOwn
	case shared > m.shared[0]:
		return oomShared
	}
	return oomNone
}

// watchMemory starts counting OOM kills.
func (s *state) watchMemory(of process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory = newMemoryWatch(of)
}

// killedForMemory is memoryWatch.killed under s.mu.
func (s *state) killedForMemory() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.killed()
}

func (s *state) checkOOMKillsNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checkOOMKills()
}

// checkOOMKills logs and reports OOM kills since the last check, while the runner is
// alive. The caller holds s.mu.
func (s *state) checkOOMKills() {
	if s.memory == nil || !s.memory.of.alive() {
		return
	}
	own, more := s.memory.look()
	if !more {
		return
	}
	s.log.Warn("the kernel killed a process that the runner had started, for lack of memory; the runner continues", "killed_so_far", own)
	warning := "the kernel killed a process that the runner had started, for lack of memory"
	if own > 1 {
		warning = fmt.Sprintf("the kernel killed processes that the runner had started, for lack of memory (%d so far)", own)
	}
	event := shim.Event{Kind: messenger.EventWarning, Time: time.Now(), Text: warning}
	if s.job != "" && s.frame == nil {
		event.Job = s.job
		s.current.warnings = []string{warning} // it includes the earlier ones' count
	}
	s.session.event(event)
}
