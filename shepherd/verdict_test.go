package shepherd

import (
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// A row of the table of docs/job-states.md, and what the code says to it.
type verdictRow struct {
	cause                   job.Cause
	becomes, attempt, sheep string
	check                   func(t *testing.T, judge func(facts) verdict)
}

func TestVerdicts(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	base := facts{now: now, maxAttempts: 3, tries: 1}
	final := func(s job.State) func(*testing.T, func(facts) verdict) {
		return func(t *testing.T, judge func(facts) verdict) {
			f := base
			f.retries = 5
			if v := judge(f); v.state != s {
				t.Errorf("%+v, want %s", v, s)
			}
		}
	}
	back := func(t *testing.T, judge func(facts) verdict) {
		if v := judge(base); v.state != "" || v.spent || !v.notBefore.IsZero() {
			t.Errorf("%+v, want the job back unspent, at once", v)
		}
	}
	own := func(t *testing.T, judge func(facts) verdict) {
		f := base
		if v := judge(f); v.state != job.Failed {
			t.Errorf("without retries: %+v", v)
		}
		f.retries, f.pause = 2, time.Second
		if v := judge(f); v.state != "" || !v.spent || !v.notBefore.Equal(now.Add(time.Second)) || v.rests {
			t.Errorf("the first of two retries: %+v", v)
		}
		f.spent = 1
		if v := judge(f); v.state != "" || !v.notBefore.Equal(now.Add(2*time.Second)) {
			t.Errorf("the second of two retries: %+v", v)
		}
		f.spent = 2
		if v := judge(f); v.state != job.Failed {
			t.Errorf("after two retries: %+v", v)
		}
		f.spent, f.retries = 5000, 10000
		if v := judge(f); v.state != "" || v.notBefore.After(now.Add(maxRetryPause)) || v.notBefore.Before(now) {
			t.Errorf("after many retries: %+v", v)
		}
	}
	wrecked := func(t *testing.T, judge func(facts) verdict) {
		f := base
		f.elsewhere = true
		if v := judge(f); v.state != "" || !v.spent {
			t.Errorf("the first: %+v", v)
		}
		f.wrecked = 2
		if v := judge(f); v.state != job.Failed || !strings.Contains(v.message, "tried 1 times") {
			t.Errorf("the third: %+v", v)
		}
	}
	const retried = "failed; with `retries` left: queued, after a pause"
	const untilWrecked = "queued, while fewer than `max_attempts` attempts were wrecked; else failed"
	for _, row := range []verdictRow{
		{job.CauseDone, "done", "spent", "", final(job.Done)},
		{job.CauseCancelled, "cancelled", "spent", "", final(job.Cancelled)},
		{job.CauseError, retried, "spent", "", own},
		{job.CauseRunnerDied, retried, "spent", "", own},
		{job.CauseModel, retried, "spent", "", own},
		{job.CauseInputs, retried, "spent", "", own},
		{job.CauseOutputs, retried, "spent", "", own},
		{job.CauseLoadTimeout, retried, "spent", "", own},
		{job.CauseRunTimeout, retried, "spent", "", own},
		{job.CauseWaitTimeout, "failed", "spent", "", final(job.Failed)},
		{job.CauseDeadline, "failed", "spent", "", final(job.Failed)},
		{job.CauseAfter, "failed", "spent", "", final(job.Failed)},
		{job.CauseSheep, "queued", "not spent", "rests", func(t *testing.T, judge func(facts) verdict) {
			f := base
			f.spent, f.wrecked, f.tries = 100, 100, 100
			if v := judge(f); v.state != "" || v.spent || !v.rests {
				t.Errorf("%+v", v)
			}
		}},
		{job.CauseUnavailable, "queued; failed once it has been so for `load_timeout`", "not spent", "rests with the model", func(t *testing.T, judge func(facts) verdict) {
			f := base
			f.patience = time.Minute
			if v := judge(f); v.state != "" || v.spent || v.rests || !v.modelRests {
				t.Errorf("the first time: %+v", v)
			}
			f.unavailable = now.Add(-time.Minute + time.Second)
			if v := judge(f); v.state != "" {
				t.Errorf("within the time: %+v", v)
			}
			f.unavailable = now.Add(-time.Minute)
			if v := judge(f); v.state != job.Failed {
				t.Errorf("after the time: %+v", v)
			}
			f.patience = 0
			if v := judge(f); v.state != "" {
				t.Errorf("without a limit: %+v", v)
			}
		}},
		{job.CauseNotHere, "queued, where another sheep may have the model; else failed", "not spent", "", func(t *testing.T, judge func(facts) verdict) {
			f := base
			if v := judge(f); v.state != job.Failed {
				t.Errorf("nowhere: %+v", v)
			}
			f.elsewhere = true
			if v := judge(f); v.state != "" || v.spent || v.rests {
				t.Errorf("elsewhere: %+v", v)
			}
		}},
		{job.CauseDevice, "queued, where another sheep may run it and fewer than `max_attempts` attempts were wrecked; else failed", "not spent", "", func(t *testing.T, judge func(facts) verdict) {
			f := base
			if v := judge(f); v.state != job.Failed {
				t.Errorf("nowhere: %+v", v)
			}
			f.elsewhere = true
			if v := judge(f); v.state != "" || v.spent {
				t.Errorf("elsewhere: %+v", v)
			}
			f.wrecked = 2
			if v := judge(f); v.state != job.Failed {
				t.Errorf("the third: %+v", v)
			}
		}},
		{job.CauseLost, untilWrecked, "spent", "", wrecked},
		{job.CauseInterrupted, untilWrecked, "spent", "", wrecked},
		{job.CauseDaemonKilled, "queued, while fewer than 20 attempts ended so; else failed", "not spent", "", func(t *testing.T, judge func(facts) verdict) {
			back(t, judge)
			f := base
			f.wrecked, f.killed = 100, 1
			if v := judge(f); v.state != "" || v.spent || v.rests || !v.notBefore.Equal(now.Add(time.Second)) {
				t.Errorf("the second: %+v", v)
			}
			f.killed = 18
			if v := judge(f); v.state != "" || !v.notBefore.Equal(now.Add(time.Minute)) {
				t.Errorf("the nineteenth: %+v", v)
			}
			f.killed, f.tries = 19, 20
			if v := judge(f); v.state != job.Failed || !strings.Contains(v.message, "tried 20 times") {
				t.Errorf("the twentieth: %+v", v)
			}
		}},
		{job.CauseNodeLost, untilWrecked, "spent, if a runner may have had the job", "", final(job.Failed)},
		{job.CauseHandedBack, "queued", "not spent", "", back},
		{job.CauseTakenOver, "queued", "not spent", "", back},
	} {
		t.Run(string(row.cause), func(t *testing.T) {
			row.check(t, func(f facts) verdict { return judge(ending{cause: row.cause, reason: "why"}, f) })
			documented := documentedVerdict(t, row.cause)
			if documented[2] != row.becomes || documented[3] != row.attempt || documented[4] != row.sheep {
				t.Errorf("docs/job-states.md says %q", documented)
			}
		})
	}
	t.Run("a cause that is not known", func(t *testing.T) {
		own(t, func(f facts) verdict { return judge(ending{cause: "made up"}, f) })
	})
}

// documentedVerdict is the cells of a cause's row in the first table of
// docs/job-states.md.
func documentedVerdict(t *testing.T, c job.Cause) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/job-states.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 || strings.TrimSpace(cells[0]) != "`"+string(c)+"`" {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		return cells
	}
	t.Fatalf("docs/job-states.md has no row for %s", c)
	return nil
}

func TestHistory(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	attempts := []job.Attempt{
		{Run: 1, Number: 1, Cause: job.CauseInterrupted, Began: at(1)}, // another run
		{Run: 2, Number: 1, Cause: job.CauseUnavailable, Began: at(2)},
		{Run: 2, Number: 2, Cause: job.CauseLost, Began: at(3)},
		{Run: 2, Number: 3, Cause: job.CauseDevice, Began: at(4)},
		{Run: 2, Number: 4, Cause: job.CauseUnavailable, Began: at(5)},
		{Run: 2, Number: 5, Cause: job.CauseUnavailable, Began: at(6)},
		{Run: 2, Number: 6, Began: at(7)}, // this one
	}
	attempts = append(attempts, job.Attempt{Run: 3, Number: 1, Cause: job.CauseDaemonKilled, Began: at(8)})
	for _, c := range []struct {
		run, number int
		want        history
	}{
		{2, 6, history{wrecked: 2, unavailable: at(5)}},
		{2, 4, history{wrecked: 2}},
		{3, 2, history{killed: 1}},
		{3, 1, history{}},
	} {
		if got := historyOf(attempts, c.run, c.number); got != c.want {
			t.Errorf("before attempt %d of run %d: %+v, want %+v", c.number, c.run, got, c.want)
		}
	}
}

func TestRests(t *testing.T) {
	r := new(rests)
	now := time.Unix(1000, 0)
	var pauses []time.Duration
	for range 50 {
		pause := r.fault("disk full", now)
		pauses = append(pauses, pause)
		if again := r.fault("disk full", now.Add(pause/2)); again > pause {
			t.Fatalf("a fault during the rest made it longer: %v", again)
		}
		now = now.Add(pause)
	}
	if pauses[0] != firstRest || pauses[1] != 2*firstRest || pauses[49] != longestRest {
		t.Errorf("the pauses are %v", pauses)
	}
	if left, why := r.left(now.Add(-time.Second)); left != time.Second || why != "disk full" {
		t.Errorf("left %v, %q", left, why)
	}
	r.succeeded()
	if pause := r.fault("disk full", now); pause != firstRest {
		t.Errorf("after a job that went well: %v", pause)
	}
	r.wake()
	if left, _ := r.left(now); left != 0 {
		t.Errorf("it rests for %v after it was woken", left)
	}
}

func TestModelRests(t *testing.T) {
	var r modelRests
	a, b := job.Model{Name: "a", Version: "v1"}, job.Model{Name: "b", Version: "v1"}
	now := time.Unix(1000, 0)
	r.fault(b, "no answer", now)
	r.fault(b, "no answer", now.Add(firstRest))
	if pause := r.fault(a, "other reason", now.Add(firstRest)); pause != firstRest {
		t.Errorf("the first fault of a rests for %v", pause)
	}
	now = now.Add(firstRest)
	if models, next := r.all(now); len(models) != 2 || models[0] != a || next != firstRest {
		t.Errorf("%v rest, the first for %v", models, next)
	}
	if left, why := r.left(b, now); left != 2*firstRest || why != "no answer" {
		t.Errorf("b rests for %v: %q", left, why)
	}
	now = now.Add(firstRest)
	if models, next := r.all(now); len(models) != 1 || models[0] != b || next != firstRest {
		t.Errorf("%v rest, the first for %v", models, next)
	}
	r.succeeded(b)
	if models, next := r.all(now); len(models) != 0 || next != 0 {
		t.Errorf("%v rest, the first for %v", models, next)
	}
	if pause := r.fault(a, "again", now); pause != 2*firstRest {
		t.Errorf("the second fault of a rests for %v", pause)
	}
	now = now.Add(time.Hour)
	r.fault(b, "later", now)
	if pause := r.fault(a, "much later", now); pause != firstRest {
		t.Errorf("a fault of a after an hour rests for %v", pause)
	}
	r.wake()
	if left, _ := r.left(a, now); left != 0 {
		t.Errorf("a rests for %v after all were woken", left)
	}
}

func TestTurns(t *testing.T) {
	a, b := job.Model{Name: "a"}, job.Model{Name: "b"}
	now := time.Unix(1000, 0)
	turns := newTurns(5 * time.Minute)
	turns.loaded(a, 3*time.Second, now)
	for _, c := range []struct {
		after time.Duration
		model job.Model
		want  job.Model
	}{
		{0, a, a}, {30*time.Second - 1, a, a}, {30 * time.Second, a, job.Model{}}, {time.Hour, a, job.Model{}},
		{time.Hour, b, b}, // its turn has not begun
	} {
		if got := turns.prefer(c.model, now.Add(c.after)); got != c.want {
			t.Errorf("%v after the load of a, with %v: prefers %v", c.after, c.model, got)
		}
	}
	// The oldest job is the same model's: another turn.
	now = now.Add(time.Minute)
	turns.claimed(a, now)
	if got := turns.prefer(a, now.Add(29*time.Second)); got != a {
		t.Errorf("in its second turn it prefers %v", got)
	}
	// Bounds.
	turns.loaded(b, time.Millisecond, now)
	if m, ends := turns.turn(); m != b || !ends.Equal(now.Add(minTurn)) {
		t.Errorf("a quick load: %v for %v", m, ends.Sub(now))
	}
	turns.loaded(b, time.Hour, now)
	if _, ends := turns.turn(); !ends.Equal(now.Add(5 * time.Minute)) {
		t.Errorf("a slow load: %v", ends.Sub(now))
	}
	turns.loaded(a, 0, now) // found alive: what its load took before counts
	if _, ends := turns.turn(); !ends.Equal(now.Add(30 * time.Second)) {
		t.Errorf("a runner that was adopted: %v", ends.Sub(now))
	}
}

// What many sheep prepare at once never takes more than the budget.
func TestBudget(t *testing.T) {
	b := &budget{limit: 100}
	var reserved atomic.Int64
	var sheep sync.WaitGroup
	for range 32 {
		sheep.Go(func() {
			for range 100 {
				if b.reserve(7) == nil {
					if n := reserved.Add(7); n > 100 {
						t.Errorf("%d bytes are taken", n)
					}
					reserved.Add(-7)
					b.free(7)
				}
			}
		})
	}
	sheep.Wait()
	if used, limit := b.state(); used != 0 || limit != 100 {
		t.Errorf("%d of %d bytes are taken in the end", used, limit)
	}
	if err := b.reserve(101); !errdefs.IsResourceExhausted(err) {
		t.Errorf("more than there is: %v", err)
	}
	if err := (&budget{}).reserve(1 << 50); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}
