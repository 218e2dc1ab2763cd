package server

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/shim"
)

// mortal is a process whose end and whose counters are set by the test.
type mortal struct {
	exited      chan struct{}
	own, shared atomic.Int64
	exit        shim.Exit
}

func (m *mortal) ended() <-chan struct{} { return m.exited }
func (m *mortal) alive() bool {
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}
func (m *mortal) terminate()            {}
func (m *mortal) endAll() string        { return "" }
func (m *mortal) exitStatus() shim.Exit { return m.exit }
func (m *mortal) oomKills() (int, int)  { return int(m.own.Load()), int(m.shared.Load()) }

// Where the kernel counts the runner's own processes, an end by SIGKILL beside such
// a count is one for memory; where it counts them with those of others, if the count
// has grown at the time.
func TestEndForMemory(t *testing.T) {
	killed := shim.Exit{Code: -1, Signal: "SIGKILL"}
	for name, c := range map[string]struct {
		live   func(m *mortal) // up to its end
		exit   shim.Exit
		oom    bool
		nearby bool
		detail string
	}{
		"killed by somebody":                {func(m *mortal) {}, killed, false, false, ""},
		"its own, killed":                   {func(m *mortal) { m.own.Add(1) }, killed, true, false, ""},
		"its own, of which little is known": {func(m *mortal) { m.own.Add(1) }, shim.Exit{Code: -1}, true, false, ""},
		"its own, which failed of it":       {func(m *mortal) { m.own.Add(1); time.Sleep(time.Hour) }, shim.Exit{Code: 1}, false, false, "the kernel killed one of its processes for lack of memory"},
		"its own, and the count is gone":    {func(m *mortal) { m.own.Add(1); time.Sleep(time.Hour); m.own.Store(0) }, shim.Exit{Code: 1}, false, false, "the kernel killed one of its processes for lack of memory"},
		"shared, at the time":               {func(m *mortal) { m.shared.Add(1) }, killed, true, false, ""},
		"shared, looked at at the time":     {func(m *mortal) { m.shared.Add(1); time.Sleep(memoryInterval) }, killed, true, false, ""},
		"shared, long ago":                  {func(m *mortal) { m.shared.Add(1); time.Sleep(time.Minute) }, killed, false, false, ""},
		"shared, before its start":          {nil, killed, false, false, ""},
		"shared, and not killed":            {func(m *mortal) { m.shared.Add(1) }, shim.Exit{Code: 1}, false, false, ""},
		"shared, of which little is known":  {func(m *mortal) { m.shared.Add(1) }, shim.Exit{Code: -1}, false, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mortal{exited: make(chan struct{}), exit: c.exit}
				m.shared.Store(7)
				s := &life{state: newState(shim.Spec{}, slog.New(slog.DiscardHandler))}
				exits := make(chan shim.Exit)
				go func() { exits <- s.awaitExit(t.Context(), m) }()
				synctest.Wait()
				time.Sleep(time.Minute + memoryInterval/2)
				synctest.Wait() // between two looks
				if c.live != nil {
					c.live(m)
				}
				close(m.exited)
				got := <-exits
				if got.OutOfMemory != c.oom || got.OOMNearby != c.nearby || got.Detail != c.detail {
					t.Errorf("got %+v", got)
				}
			})
		})
	}
}
