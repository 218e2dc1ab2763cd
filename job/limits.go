package job

import (
	"fmt"
	"time"
)

// Maximum values of Limits.
const (
	MaxRetries = 100
	MaxTimeout = 365 * 24 * time.Hour
)

// Limits bound the retries and durations of a job. A nil field means the configured default;
// a duration of 0 is no limit.
type Limits struct {
	// Retries is how many times a job that failed by its own fault is retried. RetryPause
	// is the pause before the first retry; it doubles with each further one.
	Retries    *int           `json:"retries,omitempty"`
	RetryPause *time.Duration `json:"retry_pause,omitempty"`
	// WaitTimeout bounds the time from submission to the first start, LoadTimeout the time
	// for loading the model and starting its runner in one attempt, RunTimeout the time
	// that the runner has the job.
	WaitTimeout *time.Duration `json:"wait_timeout,omitempty"`
	LoadTimeout *time.Duration `json:"load_timeout,omitempty"`
	RunTimeout  *time.Duration `json:"run_timeout,omitempty"`
}

// Over returns l with nil fields taken from defaults.
func (l Limits) Over(defaults Limits) Limits {
	return Limits{
		Retries:     first(l.Retries, defaults.Retries),
		RetryPause:  first(l.RetryPause, defaults.RetryPause),
		WaitTimeout: first(l.WaitTimeout, defaults.WaitTimeout),
		LoadTimeout: first(l.LoadTimeout, defaults.LoadTimeout),
		RunTimeout:  first(l.RunTimeout, defaults.RunTimeout),
	}
}

// Clone returns a deep copy of l.
func (l Limits) Clone() Limits {
	return Limits{
		Retries: clone(l.Retries), RetryPause: clone(l.RetryPause),
		WaitTimeout: clone(l.WaitTimeout), LoadTimeout: clone(l.LoadTimeout), RunTimeout: clone(l.RunTimeout),
	}
}

func clone[T any](value *T) *T {
	if value == nil {
		return nil
	}
	copied := *value
	return &copied
}

func first[T any](values ...*T) *T {
	for _, v := range values {
		if v != nil {
			return v
		}
	}
	return nil
}

// Validate returns an *Invalid for each field that is out of range, named as in JSON.
func (l Limits) Validate() []*Invalid {
	var wrong []*Invalid
	if l.Retries != nil && (*l.Retries < 0 || *l.Retries > MaxRetries) {
		wrong = append(wrong, &Invalid{Field: "retries", Problem: fmt.Sprintf("must lie between 0 and %d", MaxRetries)})
	}
	for _, t := range []struct {
		field string
		value *time.Duration
	}{
		{"retry_pause", l.RetryPause}, {"wait_timeout", l.WaitTimeout}, {"load_timeout", l.LoadTimeout}, {"run_timeout", l.RunTimeout},
	} {
		if t.value != nil && (*t.value < 0 || *t.value > MaxTimeout) {
			wrong = append(wrong, &Invalid{Field: t.field, Problem: "must lie between 0 and a year"})
		}
	}
	return wrong
}
