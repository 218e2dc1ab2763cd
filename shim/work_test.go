package shim

import (
	"slices"
	"testing"

	"github.com/iterait/shepherd/job"
)

// Each answer is returned once, whichever is acknowledged meanwhile.
func TestAnswersAreReturnedOnce(t *testing.T) {
	for _, c := range []struct {
		read   int // of three answers, before one is acknowledged
		forget job.ID
		want   []job.ID // returned after that
	}{
		{0, "a", []job.ID{"b", "c"}}, {0, "b", []job.ID{"a", "c"}}, {0, "c", []job.ID{"a", "b"}},
		{1, "a", []job.ID{"b", "c"}}, {1, "b", []job.ID{"c"}}, {1, "c", []job.ID{"b"}},
		{2, "c", nil}, {3, "b", nil}, {2, "unknown", []job.ID{"c"}},
	} {
		w := work{wake: make(chan struct{})}
		for _, id := range []job.ID{"a", "b", "c"} {
			w.add(Answer{Job: id})
		}
		for range c.read {
			w.nextAnswer()
		}
		w.forget(c.forget)
		var got []job.ID
		for a, ok := w.nextAnswer(); ok; a, ok = w.nextAnswer() {
			got = append(got, a.Job)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d read and %s acknowledged: got %q, want %q", c.read, c.forget, got, c.want)
		}
	}
}
