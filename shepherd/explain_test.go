package shepherd

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var update = flag.Bool("update", false, "rewrite the expected texts")

// TestExplain compares the texts with testdata/explain.txt.
func TestExplain(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	model := job.Model{Name: "digits", Version: "v1"}
	view := func(state job.State, change func(*job.View)) job.View {
		v := job.View{Record: job.Record{ID: "job-1", Model: model, State: state, Run: 2, EnqueuedAt: now.Add(-time.Hour)}}
		if state != job.Queued {
			v.StartedAt, v.Holder = now.Add(-90*time.Second), "dolly"
		}
		if state.Final() {
			v.FinishedAt, v.Holder = now, ""
		}
		if change != nil {
			change(&v)
		}
		return v
	}
	attempt := func(number int, cause job.Cause, reason string) job.Attempt {
		return job.Attempt{Run: 2, Number: number, Sheep: "dolly", Began: now.Add(-time.Minute), Ended: now.Add(-time.Second), Cause: cause, Reason: reason}
	}
	free, busy := eligibility{sheep: "dolly"}, eligibility{sheep: "shaun", busy: true}
	rests := eligibility{sheep: "dolly", now: "it rests for 5s after a fault: the disk is full"}
	never := eligibility{sheep: "shaun", never: "there is no such model", advice: "A bare sheep runs it once there is a directory `/models/digits/v1` with a `config.yaml`."}
	lambs := []eligibility{never, never, {sheep: "dolly", advice: "A container sheep runs the image `registry.example.com/digits:v1`: shepherd models pull digits:v1 says whether the registry has it."}}
	first := view(job.Queued, func(v *job.View) { v.Position, v.Tenant = 1, "wool" })
	shares := bounds{shares: true, used: 2*time.Hour + 300*time.Millisecond, weight: 1.5}
	var b strings.Builder
	for _, c := range []struct {
		name  string
		view  job.View
		sheep []eligibility
		by    bounds
	}{
		{"a limit of models", first, []eligibility{free}, bounds{limit: &ledger.Limit{Models: "digits:*", MaxRunning: 2}, shares: true}},
		{"a limit of its tenant", first, []eligibility{free, busy}, bounds{limit: &ledger.Limit{Tenant: "wool", MaxRunning: 1}}},
		{"a limit, and no sheep", first, []eligibility{never}, bounds{limit: &ledger.Limit{Tenant: "wool", MaxRunning: 1}}},
		{"shares", first, []eligibility{busy}, shares},
		{"shares, of no tenant", view(job.Queued, func(v *job.View) { v.Position = 3 }), []eligibility{busy}, shares},
		{"shares, and a free sheep", first, []eligibility{free}, shares},
	} {
		fmt.Fprintf(&b, "== %s\n%s\n", c.name, explainJob(c.view, now, c.sheep, c.by))
	}
	for _, c := range []struct {
		name  string
		view  job.View
		sheep []eligibility
	}{
		{"free", view(job.Queued, func(v *job.View) { v.Position = 1 }), []eligibility{free, never}},
		{"first", view(job.Queued, func(v *job.View) { v.Position = 1 }), []eligibility{busy}},
		{"seventh", view(job.Queued, func(v *job.View) { v.Position, v.WaitUntil, v.Deadline = 7, now.Add(time.Hour), now.Add(2*time.Hour) }), []eligibility{free, busy}},
		{"far behind", view(job.Queued, func(v *job.View) { v.Position = job.MaxPosition }), []eligibility{busy}},
		{"resting", view(job.Queued, func(v *job.View) { v.Position = 1 }), []eligibility{rests, never}},
		{"all rest", view(job.Queued, func(v *job.View) { v.Position = 1 }), []eligibility{rests, {sheep: "timmy", now: "it restarts"}}},
		{"nobody", view(job.Queued, func(v *job.View) { v.Position = 1 }), []eligibility{never}},
		{"no sheep", view(job.Queued, nil), nil},
		{"no such sheep", view(job.Queued, func(v *job.View) { v.Sheep = "gone" }), nil},
		{"not before", view(job.Queued, func(v *job.View) { v.NotBefore = now.Add(time.Hour) }), []eligibility{free}},
		{"after another", view(job.Queued, func(v *job.View) {
			v.After, v.Blocked, v.WaitsFor, v.Deadline = []job.ID{"a", "b"}, true, []job.ID{"b"}, now.Add(time.Hour)
		}), []eligibility{free}},
		{"after others", view(job.Queued, func(v *job.View) { v.Blocked, v.WaitsFor = true, []job.ID{"a", "b", "c"} }), nil},
		{"after many", view(job.Queued, func(v *job.View) { v.Blocked, v.WaitsFor = true, []job.ID{"a", "b", "c", "d", "e", "f", "g"} }), nil},
		{"after others that are done", view(job.Queued, func(v *job.View) { v.Blocked = true }), nil},
		{"to be tried again", view(job.Queued, func(v *job.View) {
			v.NotBefore, v.Attempts = now.Add(time.Minute), []job.Attempt{{Run: 1, Number: 9, Ended: now, Cause: job.CauseError}, attempt(1, job.CauseError, "KeyError: 'x'\nmore")}
		}), []eligibility{free}},
		{"handed back", view(job.Queued, func(v *job.View) {
			v.Position, v.Attempts = 1, []job.Attempt{attempt(1, job.CauseHandedBack, "stopping")}
		}), []eligibility{busy}},
		{"prepared", view(job.Queued, func(v *job.View) { v.Holder = "dolly" }), []eligibility{busy}},
		{"prepared, and cancelled", view(job.Queued, func(v *job.View) { v.Holder, v.Cancelling = "dolly", true }), nil},
		{"never queued", view(job.Queued, func(v *job.View) { v.Run = 0 }), nil},
		{"an upload", view(job.Queued, func(v *job.View) { v.Run, v.Failure = 0, &job.Failure{Message: uploadUnderWay} }), nil},
		{"loading", view(job.Processing, func(v *job.View) {
			v.Detail, v.Loading, v.Limits = "pulling digits:v1: 43%", true, job.Limits{LoadTimeout: new(30 * time.Minute), RunTimeout: new(2 * time.Hour)}
		}), nil},
		{"processing", view(job.Processing, func(v *job.View) {
			v.Detail, v.Attempts = "40 %: resizing", []job.Attempt{attempt(1, job.CauseLost, "the shim was lost")}
			v.RunningSince, v.Limits = now.Add(-time.Minute), job.Limits{LoadTimeout: new(30 * time.Minute), RunTimeout: new(2 * time.Hour)}
		}), nil},
		{"processing, without a limit", view(job.Processing, func(v *job.View) {
			v.RunningSince, v.Limits = now.Add(-time.Minute), job.Limits{LoadTimeout: new(30 * time.Minute), RunTimeout: new(time.Duration(0))}
		}), nil},
		{"processing, on a sheep of which nothing is known", view(job.Processing, func(v *job.View) {
			v.Limits = job.Limits{LoadTimeout: new(30 * time.Minute), RunTimeout: new(2 * time.Hour)}
		}), nil},
		{"cancelling", view(job.Processing, func(v *job.View) { v.Cancelling = true }), nil},
		{"done", view(job.Done, func(v *job.View) { v.Warnings, v.KeptUntil = []string{"outputs/x is not stored"}, now.Add(time.Hour) }), nil},
		{"removed", view(job.Done, func(v *job.View) { v.FilesRemoved, v.KeptUntil = true, now }), nil},
		{"cancelled", view(job.Cancelled, nil), nil},
		{"failed", view(job.Failed, func(v *job.View) {
			v.Failure, v.Attempts = &job.Failure{Message: "KeyError: 'x'\nTraceback"}, []job.Attempt{attempt(1, job.CauseRunnerDied, "exit code 1"), attempt(2, job.CauseError, "KeyError: 'x'")}
		}), nil},
		{"failed at once", view(job.Failed, func(v *job.View) {
			v.Failure, v.Attempts = &job.Failure{Message: "KeyError: 'x'\nTraceback"}, []job.Attempt{attempt(1, job.CauseHandedBack, "stopping"), attempt(2, job.CauseError, "KeyError: 'x'")}
		}), nil},
		{"no such model", view(job.Failed, func(v *job.View) {
			v.Failure, v.Attempts = &job.Failure{Message: "There is no such model"}, []job.Attempt{attempt(1, job.CauseNotHere, "There is no such model")}
		}), lambs},
		{"failed, whatever the sheep", view(job.Failed, func(v *job.View) {
			v.Failure, v.Attempts = &job.Failure{Message: "KeyError: 'x'"}, []job.Attempt{attempt(1, job.CauseError, "KeyError: 'x'")}
		}), lambs},
		{"waited too long", view(job.Failed, func(v *job.View) {
			v.Failure, v.Timeline = &job.Failure{Message: "It waited too long"}, []job.Event{{Kind: job.EventQueued}, {Kind: job.EventEnded, Cause: job.CauseWaitTimeout}}
		}), nil},
		{"failed long ago", view(job.Failed, func(v *job.View) { v.Run = 0 }), nil},
	} {
		fmt.Fprintf(&b, "== %s\n%s\n", c.name, explainJob(c.view, now, c.sheep, bounds{}))
	}
	for _, cause := range slices.Sorted(maps.Values(causeNames(t))) {
		fmt.Fprintf(&b, "== %s\n%s\n", cause, nextStep(cause, view(job.Failed, nil)))
	}
	const golden = "testdata/explain.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || b.String() != string(want) {
		t.Errorf("%v: the texts are not those of %s (-update writes them):\n%s", err, golden, b.String())
	}
}

// TestEveryCauseHasANextStep finds the causes that nextStep has no row for.
func TestEveryCauseHasANextStep(t *testing.T) {
	source, err := os.ReadFile("explain.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rows, _ := strings.Cut(string(source), "func nextStep(")
	names := causeNames(t)
	if len(names) < 20 {
		t.Fatalf("only %d causes were found", len(names))
	}
	for name := range names {
		if !strings.Contains(rows, "job."+name) {
			t.Errorf("nextStep has no row for job.%s", name)
		}
	}
}

// causeNames are the causes that package job has, by the names of their constants.
func causeNames(t *testing.T) map[string]job.Cause {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), "../job/attempt.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]job.Cause)
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Cause" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			found[spec.Names[0].Name] = job.Cause(text)
		}
		return true
	})
	return found
}
