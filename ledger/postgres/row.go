package postgres

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// row is a row of the table jobs. The keys say which requests created its run and
// changed it last.
type row struct {
	lifecycle.Row
	version              int64
	createdBy, changedBy string
	remover              string // the node that began the removal
}

// scanRow reads a row, behind the columns read into before; whole says that it has
// its traceback. It is nil where the row is NULL.
func scanRow(rows pgx.Rows, whole bool, before ...any) (*row, error) {
	n := columnCount
	if !whole {
		n--
	}
	if rows.RawValues()[len(before)] == nil {
		return nil, rows.Scan(append(before, make([]any, n)...)...)
	}
	r := new(row)
	var failure job.Failure
	var limits, labels, warnings, after string
	var keep *int64
	var keptFor, gpuTime int64
	times := []*time.Time{&r.NotBefore, &r.WaitUntil, &r.Deadline, &r.ClaimedAt, &r.StartedAt, &r.FinishedAt, &r.RemovedAt}
	null := make([]*time.Time, len(times))
	into := append(before, &r.Seq, &r.version, &r.createdBy, &r.changedBy, &r.ID, &r.Model.Name, &r.Model.Version, &r.Sheep, &r.Priority, &r.Tenant,
		&r.Trace.Parent, &r.Trace.State, &limits, &labels, &r.Idempotency, &keep, &r.State, &r.Run, &r.Attempt, &r.Spent, &r.EnqueuedAt, &null[0], &null[1], &null[2],
		&null[3], &null[4], &null[5], &r.ChangedAt, &r.Holder, &r.Node, &r.Token, &r.Cancelling, &r.Delayed, &r.EndedAge, &keptFor,
		&r.RemoveAge, &r.Removal, &r.remover, &null[6], &r.Usage.GPUMemory, &gpuTime, &warnings,
		&after, &r.Blocked, &r.Group, &failure.Type, &failure.Message)
	if whole {
		into = append(into, &failure.Traceback)
	}
	if err := rows.Scan(into...); err != nil {
		return nil, err
	}
	for i, at := range times {
		*at = toTime(null[i])
	}
	r.EnqueuedAt, r.ChangedAt = r.EnqueuedAt.UTC(), r.ChangedAt.UTC()
	if r.State == job.Failed {
		r.Failure = &failure
	}
	if keep != nil {
		r.Keep = new(time.Duration(*keep) * time.Microsecond)
	}
	r.KeptFor, r.Usage.GPUTime = time.Duration(keptFor)*time.Microsecond, time.Duration(gpuTime)*time.Microsecond
	r.ShowRetention()
	if err := decode(limits, &r.Limits); err != nil {
		return nil, fmt.Errorf("limits of job %s: %w", r.ID, err)
	}
	if err := decode(labels, &r.Labels); err != nil {
		return nil, fmt.Errorf("labels of job %s: %w", r.ID, err)
	}
	if err := decode(after, &r.After); err != nil {
		return nil, fmt.Errorf("jobs that job %s is after: %w", r.ID, err)
	}
	if err := decode(warnings, &r.Warnings); err != nil {
		return nil, fmt.Errorf("warnings of job %s: %w", r.ID, err)
	}
	return r, nil
}

func decode(text string, into any) error {
	if text == "" {
		return nil
	}
	return json.Unmarshal([]byte(text), into)
}

// identity are the arguments for what a row has from its creation on, beside those
// of state.
func identity(r *lifecycle.Row, into pgx.NamedArgs) error {
	limits := ""
	if r.Limits != (job.Limits{}) {
		text, err := json.Marshal(r.Limits)
		if err != nil {
			return err
		}
		limits = string(text)
	}
	labels := ""
	if len(r.Labels) > 0 {
		encoded, err := json.Marshal(r.Labels)
		if err != nil {
			return err
		}
		labels = string(encoded)
	}
	after := ""
	if len(r.After) > 0 {
		encoded, err := json.Marshal(r.After)
		if err != nil {
			return err
		}
		after = string(encoded)
	}
	var keep any
	if r.Keep != nil {
		keep = r.Keep.Microseconds()
	}
	add(into, pgx.NamedArgs{
		"id": text(r.ID), "model_name": text(r.Model.Name), "model_version": text(r.Model.Version), "sheep": text(r.Sheep), "priority": r.Priority,
		"tenant": text(r.Tenant), "trace_parent": text(r.Trace.Parent), "trace_state": text(r.Trace.State), "limits": limits, "labels": labels, "idempotency": text(r.Idempotency), "keep": keep,
		"run": r.Run, "enqueued_at": r.EnqueuedAt, "deadline": fromTime(r.Deadline),
		"after_jobs": after, "job_group": text(r.Group),
	})
	return nil
}

// state are the arguments for what of a row changes.
func state(r *lifecycle.Row, into pgx.NamedArgs) error {
	var failure job.Failure
	if r.Failure != nil {
		failure = *r.Failure
	}
	warnings := ""
	if len(r.Warnings) > 0 {
		text, err := json.Marshal(r.Warnings)
		if err != nil {
			return err
		}
		warnings = string(text)
	}
	add(into, pgx.NamedArgs{
		"state": string(r.State), "attempt": r.Attempt, "spent": r.Spent, "not_before": fromTime(r.NotBefore), "wait_until": fromTime(r.WaitUntil),
		"claimed_at": fromTime(r.ClaimedAt), "started_at": fromTime(r.StartedAt), "finished_at": fromTime(r.FinishedAt), "changed_at": r.ChangedAt,
		"holder": text(r.Holder), "node": text(r.Node), "token": int64(r.Token), "cancelling": r.Cancelling, "delayed": r.Delayed, "blocked": r.Blocked,
		"ended_age": r.EndedAge, "kept_for": r.KeptFor.Microseconds(), "remove_age": r.RemoveAge, "removal": int(r.Removal), "removed_at": fromTime(r.RemovedAt),
		"gpu_memory": r.Usage.GPUMemory, "gpu_time": r.Usage.GPUTime.Microseconds(), "warnings": warnings,
		"failure_type": text(failure.Type), "failure_message": text(failure.Message), "failure_traceback": text(failure.Traceback),
	})
	return nil
}

// attemptArgs are the arguments of insertAttempt.
func attemptArgs(id job.ID, a job.Attempt, into pgx.NamedArgs) {
	add(into, pgx.NamedArgs{
		"a_job": text(id), "a_run": a.Run, "a_number": a.Number, "a_node": text(a.Node), "a_sheep": text(a.Sheep),
		"a_began": fromTime(a.Began), "a_started": fromTime(a.Started), "a_ended": fromTime(a.Ended),
		"a_cause": string(a.Cause), "a_reason": text(a.Reason), "a_spent": a.Spent, "a_gpu_memory": a.Usage.GPUMemory, "a_gpu_time": a.Usage.GPUTime.Microseconds(),
		"a_stage": a.Phases.Stage.Microseconds(), "a_load": a.Phases.Load.Microseconds(), "a_execute": a.Phases.Run.Microseconds(),
		"a_collect": a.Phases.Collect.Microseconds(), "a_log": text(a.Log), "keep_attempts": lifecycle.KeepAttempts,
	})
}

// eventArgs are the arguments of insertEvent. An event without a holder has its origin in
// the place of the holder's node.
func eventArgs(e *job.Event, age int64, origin string, into pgx.NamedArgs) {
	node := e.Node
	if e.Sheep == "" {
		node = cmp.Or(e.Node, origin)
	}
	add(into, pgx.NamedArgs{
		"e_age": age, "e_kind": string(e.Kind), "e_attempt": e.Attempt, "e_sheep": text(e.Sheep), "e_node": text(node),
		"e_cause": string(e.Cause), "e_reason": text(e.Reason),
	})
}

func add(into, more pgx.NamedArgs) {
	for name, value := range more {
		into[name] = value
	}
}

// text is a string as PostgreSQL keeps it: bytes that are no UTF-8 and the character
// of number zero, which it cannot keep, become U+FFFD.
func text[T ~string](s T) string {
	return strings.ReplaceAll(strings.ToValidUTF8(string(s), "\uFFFD"), "\x00", "\uFFFD")
}

func texts(list []string) []string {
	kept := make([]string, len(list))
	for i, s := range list {
		kept[i] = text(s)
	}
	return kept
}

// toTime and fromTime keep a zero time as NULL.
func toTime(at *time.Time) time.Time {
	if at == nil {
		return time.Time{}
	}
	return at.UTC()
}

func fromTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}
