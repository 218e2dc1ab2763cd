package shepherd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
)

// eligibility is what keeps a sheep from running a job.
type eligibility struct {
	sheep string
	// never is why the sheep cannot run the job at all, now why it takes no job at the
	// moment; both are empty if it can.
	never, now string
	busy       bool // it has another job
	// advice describes where the sheep looks for the job's model; empty if unknown.
	advice string
}

// Explain says why a job waits, what it is doing or why it failed, and what can be done
// about it. A tenant gets no details of other tenants' jobs. The errors are those of Job.
func (r *reader) Explain(ctx context.Context, id job.ID, tenant string) (job.Explanation, error) {
	view, err := r.View(ctx, id)
	if err != nil {
		return job.Explanation{}, err
	}
	now := r.env.clock.now()
	var sheep []eligibility
	if (view.State == job.Queued || view.State == job.Failed) && view.Run > 0 {
		for _, l := range r.env.flock.all() {
			if may, _ := l.answers(view.Sheep); may {
				sheep = append(sheep, l.eligibility(view.Record, tenant == ""))
			}
		}
	}
	bounds, err := r.bounds(ctx, view.Record)
	if err != nil {
		return job.Explanation{}, serviceError("ledger", fmt.Errorf("look up what is held: %w", err))
	}
	e := explainJob(view, now, sheep, bounds)
	e.State = view.State
	return e, nil
}

// bounds is how the ledger's policy delays a job.
type bounds struct {
	limit *ledger.Limit // the limit that is reached; nil for none
	// shares is set if tenants share by weight. used is the recent GPU time of the job's
	// tenant.
	shares bool
	used   time.Duration
	weight float64
}

// bounds returns how the policy delays a job that nobody holds.
func (r *reader) bounds(ctx context.Context, rec job.Record) (bounds, error) {
	policy := r.cfg.Policy
	if !policy.BoundsClaims() || rec.State != job.Queued || rec.Run == 0 || rec.Holder != "" {
		return bounds{}, nil
	}
	load, err := r.cfg.Ledger.Load(ctx)
	if err != nil {
		return bounds{}, err
	}
	admission := policy.Admit(load)
	return bounds{
		limit: admission.Reached(rec.Tenant, rec.Model), shares: policy.Shares(), used: load.Used[rec.Tenant], weight: policy.Tenant(rec.Tenant).Weight,
	}, nil
}

// limitReached describes the limit that a job waits for.
func limitReached(l *ledger.Limit) string {
	if l.Tenant != "" {
		return fmt.Sprintf("It waits for a limit: sheep have %d of the jobs of tenant `%s`, and may have no more at a time (scheduling.tenants).", l.MaxRunning, l.Tenant)
	}
	return fmt.Sprintf("It waits for a limit: sheep have %d of the jobs of the models `%s`, and may have no more at a time (scheduling.models).", l.MaxRunning, l.Models)
}

// shareReason describes the fair share of the job's tenant.
func (b bounds) shareReason(tenant string) string {
	who := "jobs of no tenant have"
	if tenant != "" {
		who = "tenant `" + tenant + "` has"
	}
	return fmt.Sprintf("Tenants share the sheep (scheduling.fair_share): %s recently used %s of GPU time, with a weight of %g; jobs of tenants that have used less for their weight come first.",
		who, b.used.Round(time.Second), b.weight)
}

// eligibility returns what keeps the sheep from running the job. Without whole, the reason
// of a rest is withheld: it may concern another tenant's job.
func (l *lane) eligibility(rec job.Record, whole bool) eligibility {
	st := eligibility{sheep: l.Name, busy: l.state.busy()}
	now := time.Now()
	if l.state.isRemoved() {
		st.never = "it is no longer configured"
		return st
	}
	if a, ok := l.Sheep.(runtime.ModelAdviser); ok {
		st.advice = a.ModelAdvice(rec.Model)
	}
	if err := l.cannot(rec.Model); err != nil {
		st.never = reasonOf(err)
		return st
	}
	left, why := l.rests.left(now)
	if !whole {
		why = "something is wrong with it or its machine"
	}
	modelLeft, modelWhy := l.modelRests.left(rec.Model, now)
	nearer := time.Duration(0)
	if !named(rec.Sheep) && l.nextModel() != rec.Model {
		nearer = l.flock.deferrals.rest(rec.Model, now)
	}
	switch admission := l.share.admission(); {
	case l.state.isStopped():
		st.now = "it was told to stop; `shepherdd sheep resume " + l.Name + "` lets it take jobs again"
	case l.state.isDrained():
		st.now = "it was told to take no more jobs; `shepherdd sheep resume " + l.Name + "` lets it take them again"
	case admission == job.NoJobs || admission == job.OwnJobs && !named(rec.Sheep):
		st.now = cmp.Or(l.share.state(), "its devices are not at hand")
	case left > 0:
		st.now = "it rests for " + left.Round(time.Second).String() + " after a fault: " + why
	case modelLeft > 0:
		st.now = "it tries the model again in " + modelLeft.Round(time.Second).String() + ": " + modelWhy
	case nearer > 0:
		st.now = "it leaves the job for " + nearer.Round(time.Second).String() + " to another node, which has the model loaded or on its disk"
	}
	return st
}

// explainJob is Explain for a given view and the sheep that the job's address allows.
func explainJob(v job.View, now time.Time, sheep []eligibility, by bounds) job.Explanation {
	switch {
	case v.State == job.Queued && v.Run == 0:
		return explainUnknown(v)
	case v.State == job.Queued:
		return explainQueued(v, now, sheep, by)
	case v.State == job.Processing:
		return explainProcessing(v, now)
	case v.State == job.Done:
		return explainDone(v)
	case v.State == job.Cancelled:
		return job.Explanation{
			Summary: "It was cancelled at " + moment(v.FinishedAt) + ".", Reasons: attemptReasons(v),
			Next: []string{"To run it after all: POST /jobs/" + string(v.ID) + "/retry."},
		}
	}
	return explainFailed(v, sheep)
}

// explainUnknown explains a job that only storage knows.
func explainUnknown(v job.View) job.Explanation {
	if v.Failure != nil {
		return job.Explanation{Summary: sentence(v.Failure.Message), Next: []string{"Submit it again."}}
	}
	return job.Explanation{
		Summary: "It was never queued here: storage has its inputs, and the ledger does not know it.",
		Next:    []string{"Submit it again.", "If the ledger was lost, shepherdd recover queues such jobs again."},
	}
}

func explainQueued(v job.View, now time.Time, sheep []eligibility, by bounds) job.Explanation {
	var e job.Explanation
	switch {
	case v.Cancelling:
		e.Summary = fmt.Sprintf("Its cancellation was requested, and sheep `%s` is dropping it.", v.Holder)
		return e
	case v.Holder != "":
		e.Summary = fmt.Sprintf("Sheep `%s` has it and prepares it; it starts when the job before it there has ended.", v.Holder)
	case v.Blocked:
		e = explainBlocked(v)
	case v.NotBefore.After(now):
		e = explainDelayed(v)
	default:
		e = explainWaiting(v, sheep, by)
	}
	if expected := v.ExpectedStart; expected != nil && expected.Likely.Sub(now) > time.Second {
		e.Reasons = append([]string{fmt.Sprintf("It is expected to start in about %s%s, estimated from recent jobs of these models.",
			job.FormatDuration(roughly(expected.Likely.Sub(now))), between(*expected, now))}, e.Reasons...)
	}
	if !v.WaitUntil.IsZero() {
		e.Reasons = append(e.Reasons, "It fails at "+moment(v.WaitUntil)+" if no sheep has started it by then (wait_timeout).")
	}
	if !v.Deadline.IsZero() {
		e.Reasons = append(e.Reasons, "It fails at "+moment(v.Deadline)+" if it has not ended by then (deadline).")
	}
	return e
}

func explainBlocked(v job.View) job.Explanation {
	next := []string{"To run it without them, cancel it and submit it without after."}
	if len(v.WaitsFor) == 0 { // the last one was done a moment ago
		return job.Explanation{Summary: "The jobs that it is after are done; it can be started in a moment."}
	}
	const most = 5
	named := make([]string, 0, most)
	for _, id := range v.WaitsFor[:min(len(v.WaitsFor), most)] {
		named = append(named, "`"+string(id)+"`")
	}
	which := "job " + named[0]
	switch more := len(v.WaitsFor) - len(named); {
	case more > 0:
		which = fmt.Sprintf("jobs %s and %d more", strings.Join(named, ", "), more)
	case len(named) > 1:
		which = "jobs " + strings.Join(named[:len(named)-1], ", ") + " and " + named[len(named)-1]
	default:
		next[0] = "GET /jobs/" + string(v.WaitsFor[0]) + "/explain says how that job stands. " + next[0]
	}
	return job.Explanation{Summary: "It waits for the outputs of " + which + " (after).", Next: next}
}

func explainDelayed(v job.View) job.Explanation {
	if last, ok := lastAttempt(v); ok {
		return job.Explanation{
			Summary: fmt.Sprintf("Attempt %d did not succeed; it is tried again from %s on.", last.Number, moment(v.NotBefore)), Reasons: attemptReasons(v),
		}
	}
	return job.Explanation{
		Summary: "It waits until " + moment(v.NotBefore) + ", as its client asked (not_before).",
		Next:    []string{"To run it sooner, cancel it and submit it with another not_before."},
	}
}

// cannotNow is what to do where no sheep can take a job at the moment.
const cannotNow = "`shepherd sheep ls` shows the sheep, and `shepherdd doctor` what is wrong with the machine."

// explainWaiting explains a job that waits for a sheep.
func explainWaiting(v job.View, sheep []eligibility, by bounds) job.Explanation {
	var able, ready, free int
	var only string // the last of those that could run it
	var reasons []string
	for _, st := range sheep {
		switch {
		case st.never != "":
			reasons = append(reasons, fmt.Sprintf("Sheep `%s` cannot run it: %s", st.sheep, sentence(st.never)))
			continue
		case st.now != "":
			reasons = append(reasons, fmt.Sprintf("Sheep `%s` cannot take it at the moment: %s", st.sheep, sentence(st.now)))
		case st.busy:
			ready++
			reasons = append(reasons, fmt.Sprintf("Sheep `%s` is busy with another job.", st.sheep))
		default:
			ready++
			free++
		}
		able++
		only = st.sheep
	}
	e := job.Explanation{Reasons: reasons}
	to := job.ParseAddress(v.Sheep)
	switch {
	case len(sheep) == 0 && len(to.Labels) > 0:
		e.Summary = fmt.Sprintf("It waits for a node with %s; this one has other labels (node_labels).", labelText(to.Labels))
		e.Next = []string{"shepherdd nodes ls shows the nodes with their labels. Ask one that has them, or submit the job without."}
	case len(sheep) == 0 && to.Node != "":
		e.Summary = fmt.Sprintf("It is addressed to sheep `%s` of node `%s`, which is not this one.", to.Sheep, to.Node)
		e.Next = []string{"shepherdd nodes ls shows whether that node is up; it tells more."}
	case len(sheep) == 0 && to.Sheep != "":
		e.Summary = fmt.Sprintf("It is addressed to sheep `%s`, which is not configured here.", to.Sheep)
		e.Next = []string{"Cancel it and submit it without sheep_id, or add the sheep to the configuration."}
	case len(sheep) == 0:
		e.Summary = "No sheep is configured that could run it."
		e.Next = []string{"Configure a sheep, then run shepherdd reload."}
	case able == 0:
		e.Summary = fmt.Sprintf("No sheep here can run the model `%s`; the first that tries fails the job.", v.Model)
		e.Next = nextSteps(job.CauseNotHere, v, sheep)
	case ready == 0 && able == 1:
		e.Summary = fmt.Sprintf("Sheep `%s`, which alone could run it, cannot take it at the moment; it is tried again automatically.", only)
		e.Next = []string{cannotNow}
	case ready == 0:
		e.Summary = "The sheep that could run it cannot take it at the moment; they are tried again automatically."
		e.Next = []string{cannotNow}
	case by.limit != nil:
		e.Summary = limitReached(by.limit)
		e.Next = []string{"Wait until one of these jobs has ended."}
	case free > 0 && v.Position <= free:
		e.Summary = "A sheep is free; it starts in a moment."
	case v.Position > 1:
		e.Summary = fmt.Sprintf("It waits for a sheep: it is number %s in the queue.", position(v.Position))
		e.Next = []string{"Wait, or submit urgent jobs with a higher priority."}
	default:
		e.Summary = "It is the first in the queue, and waits for a sheep to be free."
	}
	if by.limit == nil && by.shares && ready > 0 && free == 0 {
		e.Reasons = append(e.Reasons, by.shareReason(v.Tenant))
	}
	if v.Position > 0 && ready > 0 && free < v.Position {
		e.Reasons = append(e.Reasons, "Jobs go by priority, then by the model that a sheep has loaded, then by age; a sheep stays with one model for a limited time only.")
	}
	if last, ok := lastAttempt(v); ok && last.Cause != job.CauseHandedBack && last.Cause != job.CauseTakenOver {
		e.Reasons = append(e.Reasons, attemptReasons(v)...)
	}
	return e
}

func position(n int) string {
	if n >= job.MaxPosition {
		return fmt.Sprintf("%d or later", job.MaxPosition)
	}
	return fmt.Sprint(n)
}

func explainProcessing(v job.View, now time.Time) job.Explanation {
	if v.Cancelling {
		return job.Explanation{Summary: fmt.Sprintf("Its cancellation was requested, and sheep `%s` is stopping its runner.", v.Holder)}
	}
	worked := "worked on it"
	if v.Loading {
		worked = "been getting ready for it"
	}
	e := job.Explanation{Summary: fmt.Sprintf("Sheep `%s` has %s for %s.", v.Holder, worked, now.Sub(v.StartedAt).Round(time.Second))}
	if expected := v.ExpectedEnd; expected != nil && expected.Likely.Sub(now) > time.Second {
		e.Reasons = append(e.Reasons, fmt.Sprintf("It is expected to end in about %s%s, estimated from recent jobs of its model.", job.FormatDuration(roughly(expected.Likely.Sub(now))), between(*expected, now)))
	}
	if v.Detail != "" {
		e.Reasons = append(e.Reasons, "Progress: "+sentence(v.Detail))
	}
	switch load, run := value(v.Limits.LoadTimeout), value(v.Limits.RunTimeout); {
	case v.Loading && load > 0:
		e.Reasons = append(e.Reasons, fmt.Sprintf("Loading its model may take %s (load_timeout).", job.FormatDuration(load)))
	case !v.RunningSince.IsZero() && run > 0:
		e.Reasons = append(e.Reasons, "Its runner is stopped at "+moment(v.RunningSince.Add(run))+" if it has not answered by then (run_timeout).")
	}
	e.Reasons = append(e.Reasons, attemptReasons(v)...)
	return e
}

func explainDone(v job.View) job.Explanation {
	e := job.Explanation{Summary: "It was done at " + moment(v.FinishedAt) + "."}
	for _, warning := range v.Warnings {
		e.Reasons = append(e.Reasons, sentence(warning))
	}
	if v.FilesRemoved {
		e.Reasons = append(e.Reasons, "Its files were removed at "+moment(v.KeptUntil)+".")
		return e
	}
	if !v.KeptUntil.IsZero() {
		e.Reasons = append(e.Reasons, "Its files are kept until "+moment(v.KeptUntil)+".")
	}
	e.Next = []string{"Fetch the outputs: GET /jobs/" + string(v.ID) + "/outputs."}
	return e
}

func explainFailed(v job.View, sheep []eligibility) job.Explanation {
	message := "no reason is kept"
	if v.Failure != nil {
		message = v.Failure.Message
	}
	e := job.Explanation{Summary: "It failed at " + moment(v.FinishedAt) + ": " + sentence(firstLine(message)), Reasons: attemptReasons(v)}
	var cause job.Cause
	if last, ok := lastAttempt(v); ok {
		cause = last.Cause
		if len(e.Reasons) == 1 && firstLine(last.Reason) == firstLine(message) { // the attempt's reason adds nothing
			e.Summary = fmt.Sprintf("It failed at %s on sheep `%s`: %s", moment(v.FinishedAt), last.Sheep, sentence(firstLine(message)))
			e.Reasons = nil
		}
	}
	for _, event := range v.Timeline {
		if event.Kind == job.EventEnded {
			cause = event.Cause
		}
	}
	e.Next = nextSteps(cause, v, sheep)
	if v.Run == 0 { // its record has expired
		e.Next = []string{"Submit it again; its record, with the request, is no longer kept."}
	}
	if v.FilesRemoved {
		e.Reasons = append(e.Reasons, "Its files were removed at "+moment(v.KeptUntil)+", so it cannot run again.")
	}
	return e
}

// nextSteps returns nextStep and, for a model that no sheep could load, where the sheep look
// for it.
func nextSteps(cause job.Cause, v job.View, sheep []eligibility) []string {
	steps := []string{nextStep(cause, v)}
	if cause != job.CauseModel && cause != job.CauseNotHere {
		return steps
	}
	const most = 4
	for _, st := range sheep {
		if st.advice != "" && !slices.Contains(steps, st.advice) && len(steps) <= most {
			steps = append(steps, st.advice)
		}
	}
	return steps
}

// nextStep returns what can be done about a job that ended with this cause. It has a case
// for every cause.
func nextStep(cause job.Cause, v job.View) string {
	id, model := string(v.ID), v.Model.String()
	again := "`shepherd retry " + id + "` (POST /jobs/" + id + "/retry) runs it again"
	switch cause {
	case job.CauseError:
		return "The model itself reported the failure: look at its log (`shepherd logs " + id + "`) and at the inputs. Then " + again + "."
	case job.CauseRunnerDied:
		return "The model's process ended: look at the end of its log (`shepherd logs " + id + "`). If it ran out of memory, give the sheep more memory, or the job less to do."
	case job.CauseModel:
		return "The reason says why the model could not be loaded. When that is corrected, " + again + "."
	case job.CauseNotHere:
		return "Check the model's name and version."
	case job.CauseInputs:
		return "Check that the inputs are in storage, under names that files can have, and submit it again."
	case job.CauseOutputs:
		return "The model must write its results as regular files below outputs/, under names and in sizes that storage takes; fix it, and run the job again."
	case job.CauseLoadTimeout:
		return "Fetch the model ahead (`shepherd models pull " + model + "`), or submit the job with a larger load_timeout."
	case job.CauseRunTimeout:
		return "Submit it with a larger run_timeout, or with less to do."
	case job.CauseWaitTimeout:
		return "Submit it with a higher priority or a larger wait_timeout, or let more sheep run its model."
	case job.CauseAfter:
		return "Run the job again whose outputs it needs, and then this one: " + again + "."
	case job.CauseDeadline:
		return "Submit it with a later deadline, or a higher priority."
	case job.CauseSheep:
		return "The sheep cannot prepare jobs: `shepherdd doctor` says what is wrong with the machine. Then " + again + "."
	case job.CauseUnavailable:
		return "What the model is loaded from did not answer: `shepherdd doctor` examines the registry and containerd. Then " + again + "."
	case job.CauseDevice:
		return "A GPU was lost: `shepherd gpus` shows their state. Then " + again + "."
	case job.CauseLost, job.CauseInterrupted, job.CauseDaemonKilled, job.CauseNodeLost:
		return "Nothing says that the job was to blame: " + again + ". If it ends like this again, it may be what takes its sheep or the machine down."
	case job.CauseDone, job.CauseCancelled, job.CauseHandedBack, job.CauseTakenOver:
	}
	return again + "."
}

// attemptReasons returns a sentence for each attempt of the job's run that ended without a
// result.
func attemptReasons(v job.View) []string {
	var reasons []string
	for _, a := range v.Attempts {
		if a.Run != v.Run || a.Ended.IsZero() || a.Cause == job.CauseDone || a.Cause == job.CauseHandedBack || a.Cause == job.CauseTakenOver {
			continue
		}
		said := string(a.Cause)
		if a.Reason != "" {
			said = firstLine(a.Reason)
		}
		reasons = append(reasons, fmt.Sprintf("Attempt %d, on sheep `%s`, ended after %s: %s", a.Number, a.Sheep, a.Ended.Sub(a.Began).Round(time.Millisecond), sentence(said)))
	}
	const most = 5 // the last ones
	return reasons[max(len(reasons)-most, 0):]
}

// lastAttempt returns the last attempt of the job's run that has ended.
func lastAttempt(v job.View) (job.Attempt, bool) {
	for i := len(v.Attempts) - 1; i >= 0; i-- {
		if a := v.Attempts[i]; a.Run == v.Run && !a.Ended.IsZero() {
			return a, true
		}
	}
	return job.Attempt{}, false
}

// moment formats a time for people, to the second.
func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// roughly rounds a duration to about two significant digits.
func roughly(d time.Duration) time.Duration {
	switch {
	case d < 2*time.Minute:
		return d.Round(time.Second)
	case d < time.Hour:
		return d.Round(10 * time.Second)
	case d < 10*time.Hour:
		return d.Round(time.Minute)
	}
	return d.Round(10 * time.Minute)
}

// between describes the range of an estimate; empty if the range is too small to matter.
func between(e job.Estimate, now time.Time) string {
	from, to := roughly(max(e.Earliest.Sub(now), 0)), roughly(e.Latest.Sub(now))
	if from == to {
		return ""
	}
	return fmt.Sprintf(" (between %s and %s)", job.FormatDuration(from), job.FormatDuration(to))
}

// sentence adds a full stop to a text that lacks one.
func sentence(text string) string {
	text = strings.TrimSpace(text)
	if text == "" || strings.ContainsAny(text[len(text)-1:], ".!?…") {
		return text
	}
	return text + "."
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
