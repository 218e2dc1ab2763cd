package lifecycle

import (
	"fmt"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// KeptTime returns t as records keep it: in UTC, truncated to microseconds, and not before
// 1970.
func KeptTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return latest(t.UTC().Truncate(time.Microsecond), time.UnixMicro(1).UTC())
}

// latest returns the latest of the times.
func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// keptKeep returns how long a client wants files kept, bounded, truncated to microseconds.
func keptKeep(keep *time.Duration) *time.Duration {
	if keep == nil {
		return nil
	}
	return new(min(max(*keep, 0), job.MaxKeep).Truncate(time.Microsecond))
}

func keptUsage(usage job.Usage) job.Usage {
	usage.GPUTime = usage.GPUTime.Truncate(time.Microsecond)
	return usage
}

func keptPhases(phases job.Phases) job.Phases {
	for _, d := range []*time.Duration{&phases.Stage, &phases.Load, &phases.Run, &phases.Collect} {
		*d = d.Truncate(time.Microsecond)
	}
	return phases
}

// keptLog drops a text that is too long for the name of a part of a log.
func keptLog(log string) string {
	if len(log) > ledger.MaxLog {
		return ""
	}
	return log
}

// maxWarnings is how many warnings are kept with a record.
const maxWarnings = 50

func keptWarnings(warnings []string) []string {
	var kept []string
	for i, warning := range warnings {
		if i == maxWarnings-1 && len(warnings) > maxWarnings {
			return append(kept, fmt.Sprintf("… and %d more", len(warnings)-i))
		}
		kept = append(kept, job.ClipReason(warning))
	}
	return kept
}
