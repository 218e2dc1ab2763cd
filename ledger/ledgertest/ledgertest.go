// Package ledgertest is the conformance suite of ledger.Ledger. Every
// implementation runs it from a test of its own:
//
//	func TestLedger(t *testing.T) {
//		ledgertest.Run(t, func(t *testing.T, options ledgertest.Options) ledgertest.Harness { … })
//	}
//
// The suite tests only the contract, and only guarantees that a ledger shared by several
// nodes can give, too.
package ledgertest

import (
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Options are the settings that every implementation has. A zero field stands for the
// implementation's default.
type Options struct {
	KeepJobs    int // ended records kept
	EventNumber int // events kept
	// Retention says how long files of jobs are kept; nil is for ever.
	Retention func(job.Record) time.Duration
	// Policy limits which jobs may be held at the same time; the zero Policy has no limits.
	Policy ledger.Policy
}

// Harness is one ledger, empty at first, that can be opened repeatedly. The suite closes
// each ledger that it was given.
type Harness interface {
	// Open opens the ledger. The suite has closed the one that it got before.
	Open(t testing.TB) ledger.Ledger
	// Another opens the ledger for a second node while open is open. Where only one
	// process can have the ledger open, it returns open without its Close.
	Another(t testing.TB, open ledger.Ledger) ledger.Ledger
	// Crash opens the ledger as it would be if the process that has it open were killed
	// now. After that the suite only closes open.
	Crash(t testing.TB, open ledger.Ledger) ledger.Ledger
}

// Run runs the suite. newHarness makes an empty ledger with the given options
// each time it is called; the groups run in parallel, on ledgers of their own.
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
		{"Spent", s.testSpent},
		{"Attempts", s.testAttempts},
		{"AttemptsOfRuns", s.testAttemptsOfRuns},
		{"LastAttempts", s.testLastAttempts},
		{"Tokens", s.testTokens},
		{"Finish", s.testFinish},
		{"Clip", s.testClip},
		{"Cancel", s.testCancel},
		{"CancelHeld", s.testCancelHeld},
		{"Repeated", s.testRepeated},
		{"Unknown", s.testUnknown},
		{"Order", s.testOrder},
		{"Except", s.testExcept},
		{"Only", s.testOnly},
		{"Addressed", s.testAddressed},
		{"Addresses", s.testAddresses},
		{"OldPlace", s.testOldPlace},
		{"ModelLimits", s.testModelLimits},
		{"TenantLimits", s.testTenantLimits},
		{"LimitsOfClaimsAtOnce", s.testLimitsOfClaimsAtOnce},
		{"LimitsKept", s.testLimitsKept},
		{"Shares", s.testShares},
		{"SharesKept", s.testSharesKept},
		{"Queued", s.testQueued},
		{"NotBefore", s.testNotBefore},
		{"WaitUntil", s.testWaitUntil},
		{"Deadline", s.testDeadline},
		{"After", s.testAfter},
		{"AfterFailed", s.testAfterFailed},
		{"AfterRefused", s.testAfterRefused},
		{"AfterNotBefore", s.testAfterNotBefore},
		{"AfterRace", s.testAfterRace},
		{"Needed", s.testNeeded},
		{"CreateAll", s.testCreateAll},
		{"Held", s.testHeld},
		{"TwoNodes", s.testTwoNodes},
		{"Lease", s.testLease},
		{"List", s.testList},
		{"ListUnderChanges", s.testListUnderChanges},
		{"Labels", s.testLabels},
		{"Position", s.testPosition},
		{"Count", s.testCount},
		{"Waiting", s.testWaiting},
		{"Expiry", s.testExpiry},
		{"Retention", s.testRetention},
		{"Removal", s.testRemoval},
		{"RetainedExpiry", s.testRetainedExpiry},
		{"Uploads", s.testUploads},
		{"UploadRemoval", s.testUploadRemoval},
		{"UploadRace", s.testUploadRace},
		{"Events", s.testEvents},
		{"EventsFilter", s.testEventsFilter},
		{"NewestEvents", s.testNewestEvents},
		{"EventsDurable", s.testEventsDurable},
		{"EventsGone", s.testEventsGone},
		{"EventsConcurrent", s.testEventsConcurrent},
		{"Changed", s.testChanged},
		{"Checkpoint", s.testCheckpoint},
		{"JobWebhooks", s.testJobWebhooks},
		{"Deliveries", s.testDeliveries},
		{"DeliveriesListed", s.testDeliveriesListed},
		{"DeliveriesConcurrent", s.testDeliveriesConcurrent},
		{"Durable", s.testDurable},
		{"Contexts", s.testContexts},
		{"Close", s.testClose},
		{"RaceForOne", s.testRaceForOne},
		{"RaceForMany", s.testRaceForMany},
		{"Model", s.testModel},
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
