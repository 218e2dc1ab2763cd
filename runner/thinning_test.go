package runner

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/messenger"
)

func TestThinning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		progress := func(done float64) messenger.Event {
			return messenger.Event{Kind: messenger.EventProgress, JobID: "a", Progress: done}
		}
		var kept thinning
		for i, c := range []struct {
			after time.Duration
			event messenger.Event
			want  bool
		}{
			{0, progress(0.25), true},
			{progressInterval - 1, progress(0.3), false},
			{0, messenger.Event{Kind: messenger.EventLog, JobID: "a", Text: "a line"}, true},
			{1, progress(0.4), true},
			{0, progress(0.5), false},
			{0, progress(1), true},
			{0, progress(1), true},
		} {
			time.Sleep(c.after)
			if got := kept.passes(c.event); got != c.want {
				t.Errorf("event %d passes: %t", i, got)
			}
		}
	})
}
