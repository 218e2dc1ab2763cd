package shepherd

import (
	"testing"

	"github.com/iterait/shepherd/messenger"
)

// The first progress of a job ends what was shown of the load, whose end may be told
// later; what is shown afterwards stays.
func TestProgressEndsTheLoad(t *testing.T) {
	var s laneState
	s.current.id = "job"
	s.show("waiting for port 9999")
	for _, c := range []struct {
		what string
		do   func()
		want string
	}{
		{"loading", func() {}, "waiting for port 9999"},
		{"progress", func() {
			s.tell(messenger.Event{Kind: messenger.EventProgress, JobID: "job", Progress: 0.5, Text: "half"})
		}, "50 %: half"},
		{"a warning", func() {
			s.tell(messenger.Event{Kind: messenger.EventWarning, JobID: "job", Text: "a child was killed"})
		}, "50 %: half; a child was killed"},
		{"the end of the runner", func() {
			s.show("unloading m:v1: cancelled")
			s.tell(messenger.Event{Kind: messenger.EventProgress, JobID: "job", Progress: 0.6})
		}, "unloading m:v1: cancelled; a child was killed"},
	} {
		c.do()
		if got := s.view().Detail; got != c.want {
			t.Errorf("%s: shown is %q, want %q", c.what, got, c.want)
		}
	}
}
