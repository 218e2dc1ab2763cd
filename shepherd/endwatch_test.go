package shepherd

import (
	"testing"

	"github.com/iterait/shepherd/job"
)

// TestEndWatch has events come in every order around the moment at which the run that is
// followed becomes known.
func TestEndWatch(t *testing.T) {
	end := func(run int, state job.State) job.Event {
		return job.Event{Kind: job.EventEnded, Run: run, Status: &job.Status{State: state}}
	}
	for name, c := range map[string]struct {
		before, after []job.Event
		want          []job.State
	}{
		"after":                  {nil, []job.Event{end(2, job.Done)}, []job.State{job.Done}},
		"before":                 {[]job.Event{end(2, job.Failed)}, nil, []job.State{job.Failed}},
		"once":                   {[]job.Event{end(2, job.Failed)}, []job.Event{end(2, job.Failed), end(3, job.Done)}, []job.State{job.Failed}},
		"an earlier run":         {[]job.Event{end(1, job.Failed)}, []job.Event{end(1, job.Failed)}, nil},
		"an earlier run, then":   {[]job.Event{end(1, job.Failed)}, []job.Event{end(2, job.Done)}, []job.State{job.Done}},
		"a later run":            {nil, []job.Event{end(3, job.Done)}, []job.State{job.Done}},
		"not an end":             {[]job.Event{{Kind: job.EventStarted, Run: 2}}, []job.Event{{Kind: job.EventReturned, Run: 2, Status: &job.Status{}}}, nil},
		"an end without a state": {nil, []job.Event{{Kind: job.EventEnded, Run: 2}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []job.State
			w := &endWatch{notify: func(s job.Status) { got = append(got, s.State) }}
			for _, e := range c.before {
				w.observe(e)
			}
			if len(got) > 0 {
				t.Errorf("%v before it was known which run is followed", got)
			}
			w.follow(2)
			for _, e := range c.after {
				w.observe(e)
			}
			if len(got) != len(c.want) || len(got) > 0 && got[0] != c.want[0] {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
