// Package forecast estimates when jobs that wait will start, and when those that run
// will end, from what jobs of the same models took lately.
//
// History remembers how long the last jobs of each model ran and how long loading the
// model took. Simulate plays what the sheep have and what waits forward by the scheduling
// order that package ledger documents, many times over, each time with durations drawn
// from that history. Of the times that come out for a job, the median is the estimate,
// and the middle eight tenths are its error. Jobs that are submitted later, fail, or
// come back to the queue are not foreseen.
//
// Nothing here reads a clock, a ledger or a sheep, and the same State and History give
// the same Forecast.
package forecast

import (
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
)

// Forecast is what is expected of jobs.
type Forecast struct {
	// Starts has the jobs that wait, Ends those that wait or run, as far as anything
	// can be said of them.
	Starts, Ends map[job.ID]job.Estimate

	waiting map[job.ID]bool // the jobs that were simulated
	at      time.Time
	last    job.Estimate // the latest start among the jobs that were simulated
}

// Knows reports whether the job was among those that wait.
func (f *Forecast) Knows(id job.ID) bool { return f.waiting[id] }

// Beyond is the expected start of a job that waits at the position, behind all that were
// simulated, as if the queue went on as it begins. Its error is twice as wide. Ok is false
// where nothing is known.
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

// never is later than anything that is simulated.
const never = time.Duration(1<<63 - 1)

// estimate is what the outcomes say, which it sorts; ok is false where most of them never
// came.
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

// quantile is the value below which the part q of the sorted values lies.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}
