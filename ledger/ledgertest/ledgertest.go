// Package ledgertest is the conformance suite of ledger.Ledger. Every
// implementation runs it from a test of its own:
//
//	func TestLedger(t *testing.T) {
//		ledgertest.Run(t, func(t *testing.T, options ledgertest.Options) ledgertest.Harness { … })
//	}
//
// The suite knows nothing of an implementation but the contract, and asks for
// nothing that a ledger shared by several nodes could not promise too.
package ledgertest

import (
	"testing"

	"github.com/iterait/shepherd/ledger"
)

// Options are the settings that every implementation has. A zero field leaves
// it the implementation's default, except for MaxOvertakes, where zero means
// that no job is ever overtaken.
type Options struct {
	MaxOvertakes int
	Events       int // kept for watchers
	KeepJobs     int // ended records kept
}

// Harness is one ledger, empty at first, that can be opened again and again.
// The suite has one open at a time and closes each that it was given.
type Harness interface {
	// Open opens the ledger.
	Open(t testing.TB) ledger.Ledger
	// Crash opens what a process would leave behind that had open as its ledger
	// and is killed now. From then on open is only closed.
	Crash(t testing.TB, open ledger.Ledger) ledger.Ledger
}

// Run runs the suite. newHarness makes an empty ledger with the given options
// each time it is called;
// the groups run in parallel, on ledgers of their own.
func Run(t *testing.T, newHarness func(t *testing.T, options Options) Harness) {
	s := suite{newHarness}
	for _, group := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"Edges", s.testEdges},
		{"Create", s.testCreate},
		{"CreateAgain", s.testCreateAgain},
		{"Tenants", s.testTenants},
		{"Claim", s.testClaim},
		{"Attempts", s.testAttempts},
		{"Tokens", s.testTokens},
		{"Finish", s.testFinish},
		{"Cancel", s.testCancel},
		{"Unknown", s.testUnknown},
		{"Order", s.testOrder},
		{"Only", s.testOnly},
		{"Addressed", s.testAddressed},
		{"Overtaking", s.testOvertaking},
		{"OldPlace", s.testOldPlace},
		{"Held", s.testHeld},
		{"List", s.testList},
		{"ListUnderChanges", s.testListUnderChanges},
		{"Count", s.testCount},
		{"Waiting", s.testWaiting},
		{"Expiry", s.testExpiry},
		{"Watch", s.testWatch},
		{"WatchFrom", s.testWatchFrom},
		{"WatchGone", s.testWatchGone},
		{"WatchSlow", s.testWatchSlow},
		{"WatchEnds", s.testWatchEnds},
		{"WatchConcurrent", s.testWatchConcurrent},
		{"Durable", s.testDurable},
		{"Contexts", s.testContexts},
		{"Close", s.testClose},
		{"RaceForOne", s.testRaceForOne},
		{"RaceForMany", s.testRaceForMany},
		{"Model", s.testModel},
		{"ModelOvertaking", s.testModelOvertaking},
	} {
		t.Run(group.name, func(t *testing.T) {
			t.Parallel()
			group.run(t)
		})
	}
}

type suite struct {
	newHarness func(t *testing.T, options Options) Harness
}
