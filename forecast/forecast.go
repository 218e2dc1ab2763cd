// Package forecast estimates when waiting jobs will start and when running jobs will end,
// from the durations of recent jobs of the same models.
//
// History records how long recent jobs of each model ran and how long loading the model
// took. Simulate simulates the sheep and the queue in the scheduling order that package
// ledger documents, many times, with durations drawn from that history. Of the resulting
// times of a job, the median is the estimate, and the middle 80 percent its error. Jobs that
// fail or come back to the queue are not predicted.
//
// The package uses no clock, ledger or sheep: the same State and History give the same
// Forecast.
package forecast

import (
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
)

// Forecast holds the estimates for jobs.
type Forecast struct {
	// Starts holds the expected starts of waiting jobs, Ends the expected ends of waiting
	// and running jobs, as far as they can be estimated.
	Starts, Ends map[job.ID]job.Estimate

	waiting map[job.ID]bool // the jobs that were simulated
	at      time.Time
	last    job.Estimate // the latest start among the jobs that were simulated
}

// Knows reports whether the job was among the simulated waiting jobs.
func (f *Forecast) Knows(id job.ID) bool { return f.waiting[id] }

// Beyond extrapolates the expected start of a job at a position behind all simulated jobs.
// Its error is twice as wide. ok is false if nothing is known.
func (f *Forecast) Beyond(position int) (_ job.Estimate, ok bool) {
	if len(f.waiting) == 0 || f.last.Likely.IsZero() {
		return job.Estimate{}, false
	}
	scale := max(float64(position)/float64(len(f.waiting)), 1)
	likely := float64(f.last.Likely.Sub(f.at)) * scale
	after := func(d float64) time.Time { return f.at.Add(time.Duration(max(d, 0))) }
	return job.Estimate{
		Earliest: after(likely - 2*scale*float64(f.last.Likely.Sub(f.last.Earliest))),
		Likely:   after(likely),
		Latest:   after(likely + 2*scale*float64(f.last.Latest.Sub(f.last.Likely))),
	}, true
}

// never is later than any simulated time.
const never = time.Duration(1<<63 - 1)

// estimate returns the quantiles of the outcomes, which it sorts. ok is false if most of
// them are never.
func estimate(at time.Time, outcomes []time.Duration) (_ job.Estimate, ok bool) {
	slices.Sort(outcomes)
	if len(outcomes) == 0 || quantile(outcomes, 0.5) == never {
		return job.Estimate{}, false
	}
	known := outcomes
	for known[len(known)-1] == never {
		known = known[:len(known)-1]
	}
	return job.Estimate{
		Earliest: at.Add(quantile(known, 0.1)), Likely: at.Add(quantile(outcomes, 0.5)), Latest: at.Add(quantile(known, 0.9)),
	}, true
}

// quantile returns the q-quantile of the sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}
