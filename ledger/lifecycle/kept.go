package lifecycle

import (
	"fmt"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// KeptTime is t as records keep times: UTC, whole microseconds. One before 1970 is
// as long past as a time can be.
func KeptTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return latest(t.UTC().Truncate(time.Microsecond), time.UnixMicro(1).UTC())
}

// latest is the last of the times.
func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// keptKeep is what a client asked for, bounded, in whole microseconds.
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

// keptLog drops what is too long to be the name of a part of a log.
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
