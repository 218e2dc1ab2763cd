package archive

import (
	"errors"
	"fmt"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// savedJSON is a line of an archive.
type savedJSON struct {
	ID           job.ID        `json:"id"`
	Model        modelJSON     `json:"model"`
	Sheep        string        `json:"sheep,omitempty"`
	Priority     int           `json:"priority,omitempty"`
	TraceParent  string        `json:"trace_parent,omitempty"`
	TraceState   string        `json:"trace_state,omitempty"`
	Tenant       string        `json:"tenant,omitempty"`
	Limits       limitsJSON    `json:"limits,omitzero"`
	NotBefore    instant       `json:"not_before,omitzero"`
	WaitUntil    instant       `json:"wait_until,omitzero"`
	Deadline     instant       `json:"deadline,omitzero"`
	Labels       job.Labels    `json:"labels,omitempty"`
	Idempotency  string        `json:"idempotency,omitempty"`
	After        []job.ID      `json:"after,omitempty"`
	Blocked      bool          `json:"blocked,omitempty"`
	Group        string        `json:"group,omitempty"`
	Webhook      *webhookJSON  `json:"webhook,omitempty"`
	State        job.State     `json:"state"`
	Failure      *job.Failure  `json:"failure,omitempty"`
	EnqueuedAt   instant       `json:"enqueued_at"`
	StartedAt    instant       `json:"started_at,omitzero"`
	FinishedAt   instant       `json:"finished_at,omitzero"`
	Run          int           `json:"run"`
	Attempt      int           `json:"attempt,omitempty"`
	Spent        int           `json:"spent,omitempty"`
	Cancelling   bool          `json:"cancelling,omitempty"`
	Usage        usageJSON     `json:"usage,omitzero"`
	Warnings     []string      `json:"warnings,omitempty"`
	Keep         *seconds      `json:"keep,omitempty"`
	KeptUntil    instant       `json:"kept_until,omitzero"`
	Removing     bool          `json:"removing,omitempty"`
	FilesRemoved bool          `json:"files_removed,omitempty"`
	Attempts     []attemptJSON `json:"attempts,omitempty"`
}

type webhookJSON struct {
	URL    string `json:"url"`
	Events string `json:"events,omitempty"`
	Group  string `json:"group,omitempty"`
}

type modelJSON struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

type limitsJSON struct {
	Retries     *int     `json:"retries,omitempty"`
	RetryPause  *seconds `json:"retry_pause,omitempty"`
	WaitTimeout *seconds `json:"wait_timeout,omitempty"`
	LoadTimeout *seconds `json:"load_timeout,omitempty"`
	RunTimeout  *seconds `json:"run_timeout,omitempty"`
}

type usageJSON struct {
	GPUMemory int64   `json:"gpu_memory,omitempty"` // bytes
	GPUTime   seconds `json:"gpu_time,omitempty"`
}

type attemptJSON struct {
	Run     int       `json:"run"`
	Number  int       `json:"number"`
	Node    string    `json:"node"`
	Sheep   string    `json:"sheep"`
	Began   instant   `json:"began"`
	Started instant   `json:"started,omitzero"`
	Ended   instant   `json:"ended,omitzero"`
	Cause   job.Cause `json:"cause,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Spent   bool      `json:"spent,omitempty"`
	Usage   usageJSON `json:"usage,omitzero"`
	Stage   seconds   `json:"stage,omitempty"`
	Load    seconds   `json:"load,omitempty"`
	Execute seconds   `json:"run_time,omitempty"`
	Collect seconds   `json:"collect,omitempty"`
	Log     string    `json:"log,omitempty"`
}

func encode(s ledger.Saved) savedJSON {
	r := s.Record
	line := savedJSON{
		ID: r.ID, Model: modelJSON{r.Model.Name, r.Model.Version}, Sheep: r.Sheep, Priority: r.Priority,
		TraceParent: r.Trace.Parent, TraceState: r.Trace.State, Tenant: r.Tenant,
		Limits: limitsJSON{
			Retries: r.Limits.Retries, RetryPause: optionalSeconds(r.Limits.RetryPause), WaitTimeout: optionalSeconds(r.Limits.WaitTimeout),
			LoadTimeout: optionalSeconds(r.Limits.LoadTimeout), RunTimeout: optionalSeconds(r.Limits.RunTimeout),
		},
		NotBefore: instant{r.NotBefore}, WaitUntil: instant{r.WaitUntil}, Deadline: instant{r.Deadline}, Labels: r.Labels, Idempotency: r.Idempotency,
		After: r.After, Blocked: r.Blocked, Group: r.Group, State: r.State, Failure: r.Failure, EnqueuedAt: instant{r.EnqueuedAt}, StartedAt: instant{r.StartedAt}, FinishedAt: instant{r.FinishedAt},
		Run: r.Run, Attempt: r.Attempt, Spent: r.Spent, Cancelling: r.Cancelling, Usage: encodeUsage(r.Usage), Warnings: r.Warnings,
		Keep: optionalSeconds(r.Keep), KeptUntil: instant{r.KeptUntil}, Removing: r.Removing, FilesRemoved: r.FilesRemoved,
	}
	if !r.Webhook.IsZero() {
		line.Webhook = &webhookJSON{r.Webhook.URL, r.Webhook.Events, r.Webhook.Group}
	}
	for _, a := range s.Attempts {
		line.Attempts = append(line.Attempts, attemptJSON{
			Run: a.Run, Number: a.Number, Node: a.Node, Sheep: a.Sheep, Began: instant{a.Began}, Started: instant{a.Started}, Ended: instant{a.Ended},
			Cause: a.Cause, Reason: a.Reason, Spent: a.Spent, Usage: encodeUsage(a.Usage),
			Stage: inSeconds(a.Phases.Stage), Load: inSeconds(a.Phases.Load), Execute: inSeconds(a.Phases.Run), Collect: inSeconds(a.Phases.Collect), Log: a.Log,
		})
	}
	return line
}

// decode returns the record, or an error for one that no ledger can have.
func (line savedJSON) decode() (ledger.Saved, error) {
	if _, err := job.ParseID(string(line.ID)); err != nil {
		return ledger.Saved{}, err
	}
	wrong := func(what string) (ledger.Saved, error) { return ledger.Saved{}, fmt.Errorf("job %s %s", line.ID, what) }
	final := line.State.Final()
	switch {
	case !final && line.State != job.Queued && line.State != job.Processing:
		return wrong(fmt.Sprintf("has the unknown state %q", line.State))
	case line.Model.Name == "":
		return wrong("has no model")
	case line.EnqueuedAt.IsZero():
		return wrong("has no enqueued_at")
	case final == line.FinishedAt.IsZero():
		return wrong(fmt.Sprintf("is %s, which does not fit its finished_at", line.State))
	case (line.State == job.Failed) != (line.Failure != nil):
		return wrong(fmt.Sprintf("is %s, which does not fit its failure", line.State))
	case line.Run < 1 || line.Attempt < 0 || line.Spent < 0 || line.Spent > line.Attempt:
		return wrong("has a run, attempt or spent that cannot be")
	case line.Labels.Validate() != nil:
		return wrong("has labels that cannot be: " + line.Labels.Validate().Error())
	case len(line.Idempotency) > job.MaxIdempotency:
		return wrong("has an idempotency that is too long")
	case job.CheckAfter(line.After) != nil:
		return wrong("is after jobs that cannot be: " + job.CheckAfter(line.After).Error())
	case line.Blocked && (line.State != job.Queued || len(line.After) == 0):
		return wrong("is blocked, which does not fit its state, or the jobs that it is after")
	case job.CheckGroup(line.Group) != nil:
		return wrong("has a group that cannot be: " + job.CheckGroup(line.Group).Error())
	case final && line.Cancelling:
		return wrong("has ended and is being cancelled")
	case (line.Removing || line.FilesRemoved || !line.KeptUntil.IsZero()) && !final, line.FilesRemoved && line.KeptUntil.IsZero():
		return wrong("has files whose removal does not fit its state")
	}
	r := job.Record{
		ID: line.ID, Model: job.Model{Name: line.Model.Name, Version: line.Model.Version}, Sheep: line.Sheep, Priority: line.Priority,
		Trace: job.Trace{Parent: line.TraceParent, State: line.TraceState}, Tenant: line.Tenant,
		NotBefore: line.NotBefore.Time, WaitUntil: line.WaitUntil.Time, Deadline: line.Deadline.Time, Labels: line.Labels, Idempotency: line.Idempotency,
		After: line.After, Blocked: line.Blocked, Group: line.Group, State: line.State, Failure: line.Failure.Clip(), EnqueuedAt: line.EnqueuedAt.Time, StartedAt: line.StartedAt.Time, FinishedAt: line.FinishedAt.Time,
		Run: line.Run, Attempt: line.Attempt, Spent: line.Spent, Cancelling: line.Cancelling, Warnings: line.Warnings,
		KeptUntil: line.KeptUntil.Time, Removing: line.Removing, FilesRemoved: line.FilesRemoved,
	}
	var err error
	duration := func(s seconds) time.Duration {
		if s < 0 || s > seconds(100*365*24*time.Hour/time.Second) {
			err = errors.Join(err, fmt.Errorf("job %s has a time of %g seconds", line.ID, s))
			return 0
		}
		return s.duration()
	}
	optional := func(s *seconds) *time.Duration {
		if s == nil {
			return nil
		}
		return new(duration(*s))
	}
	usage := func(u usageJSON) job.Usage { return job.Usage{GPUMemory: u.GPUMemory, GPUTime: duration(u.GPUTime)} }
	if n := line.Limits.Retries; n != nil && (*n < 0 || *n > job.MaxRetries) {
		return wrong("has a number of retries that cannot be")
	}
	r.Limits = job.Limits{
		Retries: line.Limits.Retries, RetryPause: optional(line.Limits.RetryPause), WaitTimeout: optional(line.Limits.WaitTimeout),
		LoadTimeout: optional(line.Limits.LoadTimeout), RunTimeout: optional(line.Limits.RunTimeout),
	}
	r.Usage, r.Keep = usage(line.Usage), optional(line.Keep)
	if w := line.Webhook; w != nil {
		if job.CheckWebhookURL(w.URL) != nil {
			return wrong("has a webhook that cannot be")
		}
		r.Webhook = job.Webhook{URL: w.URL, Events: w.Events, Group: w.Group}
	}
	saved := ledger.Saved{Record: r}
	for i, a := range line.Attempts {
		last := i == len(line.Attempts)-1
		switch {
		case a.Run < 1 || a.Number < 1 || a.Run > line.Run || a.Began.IsZero():
			return wrong("has an attempt that cannot be")
		case i > 0 && (a.Run < line.Attempts[i-1].Run || a.Run == line.Attempts[i-1].Run && a.Number <= line.Attempts[i-1].Number):
			return wrong("has attempts that are not in order")
		case a.Ended.IsZero() && (!last || final || a.Run != line.Run || a.Number != line.Attempt):
			return wrong("has an attempt without an end that is not the last")
		case a.Ended.IsZero() != (a.Cause == ""):
			return wrong("has an attempt whose cause does not fit its end")
		}
		saved.Attempts = append(saved.Attempts, job.Attempt{
			Run: a.Run, Number: a.Number, Node: a.Node, Sheep: a.Sheep, Began: a.Began.Time, Started: a.Started.Time, Ended: a.Ended.Time,
			Cause: a.Cause, Reason: job.ClipReason(a.Reason), Spent: a.Spent, Usage: usage(a.Usage),
			Phases: job.Phases{Stage: duration(a.Stage), Load: duration(a.Load), Run: duration(a.Execute), Collect: duration(a.Collect)}, Log: a.Log,
		})
	}
	held := len(saved.Attempts) > 0 && saved.Attempts[len(saved.Attempts)-1].Ended.IsZero()
	if (line.State == job.Processing || line.Cancelling) && !held {
		return wrong("is under way and has no attempt without an end")
	}
	return saved, err
}

func encodeUsage(u job.Usage) usageJSON { return usageJSON{u.GPUMemory, inSeconds(u.GPUTime)} }

func optionalSeconds(d *time.Duration) *seconds {
	if d == nil {
		return nil
	}
	return new(inSeconds(*d))
}
