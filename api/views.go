package api

import (
	"encoding/json"
	"time"

	"github.com/iterait/shepherd/job"
)

// views makes of jobs, groups and events what clients see of them.
type views struct {
	debug bool // failures are shown with runners' tracebacks
}

// visible is status with the failure's texts cut to the lengths that are kept, and
// without what clients see in debug mode only.
func (s views) visible(status job.Status) job.Status {
	status.Failure = status.Failure.Clip()
	if status.Failure != nil && !s.debug {
		status.Failure.Traceback = ""
	}
	return status
}

// detailed is a job as clients see it, with what is told of one job alone.
func (s views) detailed(v job.View) Job {
	out := s.shown(v)
	out.Attempts = shownAttempts(v.Attempts)
	out.Timeline = shownTimeline(v.Timeline)
	if len(v.WaitsFor) > 0 {
		out.WaitsFor = new(idsOf(v.WaitsFor))
	}
	if v.Position > 0 {
		out.Position = &v.Position
	}
	out.ExpectedStart, out.ExpectedEnd = shownEstimate(v.ExpectedStart), shownEstimate(v.ExpectedEnd)
	return out
}

// shown is a job as clients see it in a list.
func (s views) shown(v job.View) Job {
	status := s.visible(v.Status())
	to := job.ParseAddress(v.Record.Sheep)
	out := Job{
		JobId: string(v.ID), Status: v.State, Model: Model{Name: &v.Model.Name, Version: &v.Model.Version},
		EnqueuedAt: job.FormatTime(v.EnqueuedAt), ProcessingStartedAt: job.FormatTime(v.StartedAt), FinishedAt: job.FormatTime(v.FinishedAt),
		SheepId: orNull(to.Who()), NodeLabels: to.Labels, Priority: v.Priority, Sheep: orNull(v.Holder), LastSheep: orNull(v.LastSheep), Attempt: v.Attempt, Run: v.Run,
		Detail: orNull(v.Detail), Progress: shownProgress(v.Progress), Gpu: shownUsage(v.Usage),
		Cancelling: v.Cancelling, NotBefore: job.FormatTime(v.NotBefore), Deadline: job.FormatTime(v.Deadline), Warnings: v.Warnings,
		KeptUntil: job.FormatTime(v.KeptUntil), FilesRemoved: v.FilesRemoved,
		Limits: shownLimits(v.Limits), Labels: v.Labels, After: idsOf(v.After), Group: orNull(v.Group),
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if out.NodeLabels == nil {
		out.NodeLabels = map[string]string{}
	}
	if out.Warnings == nil {
		out.Warnings = []string{} // a list, not null
	}
	if f := status.Failure; f != nil {
		out.ErrorDetails = &Failure{Message: f.Message, ExceptionType: orNull(f.Type), ExceptionTraceback: orNull(f.Traceback)}
	}
	return out
}

func shownEstimate(e *job.Estimate) *Estimate {
	if e == nil {
		return nil
	}
	return &Estimate{Earliest: job.FormatTime(e.Earliest), Likely: job.FormatTime(e.Likely), Latest: job.FormatTime(e.Latest)}
}

func shownTimeline(events []job.Event) *[]TimelineEntry {
	out := make([]TimelineEntry, len(events))
	for i, e := range events {
		out[i] = TimelineEntry{
			At: job.FormatTime(e.At), Event: TimelineEntryEvent(e.Kind), Sheep: orNull(e.Sheep),
			Cause: orNull(string(e.Cause)), Reason: orNull(bounded(e.Reason)),
		}
		if e.Attempt > 0 {
			out[i].Attempt = &e.Attempt
		}
	}
	return &out
}

// idsOf is a list of ids, empty for none.
func idsOf(ids []job.ID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return out
}

func shownProgress(p *job.Progress) *Progress {
	if p == nil {
		return nil
	}
	return &Progress{Done: p.Done, Text: orNull(p.Text), At: job.FormatTime(p.At)}
}

func shownUsage(u job.Usage) *GPUUsage {
	if u == (job.Usage{}) {
		return nil
	}
	out := &GPUUsage{Seconds: u.GPUTime.Seconds()}
	if u.GPUMemory > 0 {
		out.PeakMemory = &u.GPUMemory
	}
	return out
}

// shownLimits has 0 for what is not limited.
func shownLimits(l job.Limits) Limits {
	var out Limits
	if l.Retries != nil {
		out.Retries = *l.Retries
	}
	for _, t := range []struct {
		into *float64
		from *time.Duration
	}{
		{&out.RetryPause, l.RetryPause}, {&out.WaitTimeout, l.WaitTimeout}, {&out.LoadTimeout, l.LoadTimeout}, {&out.RunTimeout, l.RunTimeout},
	} {
		if t.from != nil {
			*t.into = t.from.Seconds()
		}
	}
	return out
}

func shownAttempts(attempts []job.Attempt) *[]Attempt {
	out := make([]Attempt, len(attempts))
	for i, a := range attempts {
		out[i] = Attempt{
			Run: a.Run, Number: a.Number, Node: a.Node, Sheep: a.Sheep,
			BeganAt: job.FormatTime(a.Began), StartedAt: job.FormatTime(a.Started), EndedAt: job.FormatTime(a.Ended),
			Cause: orNull(string(a.Cause)), Reason: orNull(bounded(a.Reason)), Spent: a.Spent, Gpu: shownUsage(a.Usage),
			Phases: Phases{Stage: secondsOrNull(a.Phases.Stage), Load: secondsOrNull(a.Phases.Load), Run: secondsOrNull(a.Phases.Run), Collect: secondsOrNull(a.Phases.Collect)},
		}
	}
	return &out
}

func secondsOrNull(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	seconds := d.Seconds()
	return &seconds
}

// shownGroup is a group as clients see it.
func (s views) shownGroup(g job.Group) Group {
	out := Group{Group: g.ID, Ended: g.Ended(), Jobs: make([]Job, len(g.Jobs)), More: g.More}
	out.Counts.Queued, out.Counts.Processing = g.Counts[job.Queued], g.Counts[job.Processing]
	out.Counts.Done, out.Counts.Failed, out.Counts.Cancelled = g.Counts[job.Done], g.Counts[job.Failed], g.Counts[job.Cancelled]
	for i, view := range g.Jobs {
		out.Jobs[i] = s.shown(view)
	}
	return out
}

// EventJSON is an event as the API shows it; with debug, tracebacks, too.
func EventJSON(event job.Event, debug bool) (json.RawMessage, error) {
	shown := views{debug}.shownEvent(event)
	shown.Id = new(string(event.Cursor))
	return job.JSON(shown)
}

func (s views) shownEvent(event job.Event) Event {
	out := Event{
		Event: EventEvent(event.Kind), At: job.FormatTime(event.At), JobId: string(event.Job), Run: event.Run,
		Model: Model{Name: &event.Model.Name, Version: &event.Model.Version}, SheepId: orNull(job.ParseAddress(event.Address).Who()), Status: event.State,
		Node: orNull(event.Node), Sheep: orNull(event.Sheep), Cause: orNull(string(event.Cause)), Reason: orNull(bounded(event.Reason)),
	}
	if event.Attempt > 0 {
		out.Attempt = &event.Attempt
	}
	if event.Status != nil {
		if f := s.visible(*event.Status).Failure; f != nil {
			out.ErrorDetails = &Failure{Message: f.Message, ExceptionType: orNull(f.Type), ExceptionTraceback: orNull(f.Traceback)}
		}
	}
	return out
}
