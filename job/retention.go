package job

import (
	"fmt"
	"strings"
	"time"
)

// MaxKeep is the longest retention time that can be set, besides forever.
const MaxKeep = 100 * 365 * 24 * time.Hour

// Retention configures how long the files of jobs are kept after their end. The zero
// Retention keeps all forever.
type Retention struct {
	All KeepTimes
	// Models are exceptions for some models: the first rule that matches counts, and its
	// nil times are taken from All.
	Models []KeepRule
}

// KeepRule are the KeepTimes for the models that a rule matches.
type KeepRule struct {
	Models Rule
	KeepTimes
}

// KeepTimes are how long files are kept, by the state in which the job ended; 0 is forever,
// nil is not set.
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

// For returns how long the files of an ended job are kept after its end; 0 is forever. The
// client's own choice takes precedence.
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

// String returns a text that differs for different Retentions.
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
