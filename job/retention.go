package job

import (
	"fmt"
	"strings"
	"time"
)

// MaxKeep is the longest time that files can be told to be kept; longer is for
// ever.
const MaxKeep = 100 * 365 * 24 * time.Hour

// Retention says how long the files of jobs are kept after their end. The zero
// Retention keeps all for ever.
type Retention struct {
	All KeepTimes
	// Models are exceptions for some models: the first whose rule matches counts,
	// and what it leaves open is taken from All.
	Models []KeepRule
}

// KeepRule are the KeepTimes of the models that a rule matches.
type KeepRule struct {
	Models Rule
	KeepTimes
}

// KeepTimes are how long files are kept, by how the job ended; 0 is for ever, nil
// is left open.
type KeepTimes struct{ Done, Failed, Cancelled *time.Duration }

func (k KeepTimes) of(state State) *time.Duration {
	switch state {
	case Done:
		return k.Done
	case Failed:
		return k.Failed
	case Cancelled:
		return k.Cancelled
	}
	return nil
}

// For is how long the files of a job that has ended are kept after its end; 0 is
// for ever. What its client asked for comes first.
func (r Retention) For(rec Record) time.Duration {
	own := rec.Keep
	for _, rule := range r.Models {
		if rule.Models.Matches(rec.Model) {
			own = first(own, rule.of(rec.State))
			break
		}
	}
	if d := first(own, r.All.of(rec.State)); d != nil {
		return max(*d, 0)
	}
	return 0
}

// String tells two Retentions that differ apart.
func (r Retention) String() string {
	var b strings.Builder
	write := func(k KeepTimes) {
		for _, d := range []*time.Duration{k.Done, k.Failed, k.Cancelled} {
			if d == nil {
				b.WriteString(" -")
			} else {
				fmt.Fprintf(&b, " %s", FormatDuration(*d))
			}
		}
	}
	write(r.All)
	for _, rule := range r.Models {
		fmt.Fprintf(&b, "; %s", rule.Models)
		write(rule.KeepTimes)
	}
	return strings.TrimSpace(b.String())
}
