package job

import (
	"strings"
	"testing"
	"time"
)

func TestRetention(t *testing.T) {
	rule := func(s string) Rule {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	hours := func(n int) *time.Duration { return new(time.Duration(n) * time.Hour) }
	r := Retention{
		All: KeepTimes{Done: hours(10), Failed: hours(20)},
		Models: []KeepRule{
			{rule("big-*:v1"), KeepTimes{Done: hours(1)}},
			{rule("big-*"), KeepTimes{Done: hours(2), Failed: hours(0)}},
		},
	}
	for _, c := range []struct {
		model string
		state State
		own   *time.Duration
		want  int // hours
	}{
		{"small", Done, nil, 10},
		{"small", Failed, nil, 20},
		{"small", Cancelled, nil, 0},
		{"small", Done, hours(3), 3},
		{"small", Done, hours(0), 0},
		{"small", Cancelled, hours(4), 4},
		{"big-one", Done, nil, 2},
		{"big-one", Failed, nil, 0},
		{"big-one:v1", Done, nil, 1},
		{"big-one:v1", Failed, nil, 20},
		{"small", Queued, nil, 0},
	} {
		name, version, _ := strings.Cut(c.model, ":")
		rec := Record{Model: Model{Name: name, Version: version}, State: c.state, Keep: c.own}
		if got := r.For(rec); got != time.Duration(c.want)*time.Hour {
			t.Errorf("%s %s: kept for %s, want %d hours", c.model, c.state, got, c.want)
		}
	}
	if got := (Retention{}).For(Record{State: Done}); got != 0 {
		t.Errorf("nothing configured: kept for %s", got)
	}
	if got, want := r.String(), "10h 20h -; big-*:v1 1h - -; big-* 2h 0s -"; got != want {
		t.Errorf("written as %q, want %q", got, want)
	}
}
