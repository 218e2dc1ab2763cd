package sqlite

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// columns are those of a row, in the order in which (*row).scan reads them. listColumns,
// for lists of records, leaves the traceback out.
const (
	listColumns = `seq, id, model_name, model_version, sheep, priority, tenant, trace_parent, trace_state, limits, state,
	run, attempt, spent, enqueued_at, not_before, wait_until, deadline, claimed_at, started_at, finished_at, changed_at,
	holder, node, token, cancelling, delayed, gpu_memory, gpu_time, warnings, ended_age, keep, kept_for, remove_age, removal, removed_at,
	labels, idempotency, after_jobs, blocked, job_group, failure_type, failure_message`
	columns = listColumns + `, failure_traceback`
)

// row is a record as the file keeps it.
type row struct {
	lifecycle.Row

	// stored are the values in the file by which the row is counted.
	stored struct {
		state     job.State
		claimable bool
		retained  bool
		held      bool
		blocked   bool
	}
}

// retained reports whether the record stays until its files are removed.
func (r *row) retained() bool { return r.RemoveAge > 0 }

func (r *row) group() group { return group{r.Model, r.Sheep, r.Tenant} }

// scanRecord reads the listColumns, and the traceback if whole is set.
func (r *row) scanRecord(scan func(...any) error, whole bool) error {
	var failure job.Failure
	var limits, warnings, labels, after string
	var enqueued, notBefore, waitUntil, deadline, claimed, started, finished, changed, gpuTime, keep, keptFor, removed int64
	into := []any{&r.Seq, &r.ID, &r.Model.Name, &r.Model.Version, &r.Sheep, &r.Priority, &r.Tenant, &r.Trace.Parent, &r.Trace.State, &limits, &r.State,
		&r.Run, &r.Attempt, &r.Spent, &enqueued, &notBefore, &waitUntil, &deadline, &claimed, &started, &finished, &changed,
		&r.Holder, &r.Node, &r.Token, &r.Cancelling, &r.Delayed, &r.Usage.GPUMemory, &gpuTime, &warnings,
		&r.EndedAge, &keep, &keptFor, &r.RemoveAge, &r.Removal, &removed, &labels, &r.Idempotency,
		&after, &r.Blocked, &r.Group, &failure.Type, &failure.Message, &failure.Traceback}
	if !whole {
		into = into[:len(into)-1]
	}
	if err := scan(into...); err != nil {
		return err
	}
	if r.State == job.Failed {
		r.Failure = &failure
	}
	r.Usage.GPUTime = time.Duration(gpuTime) * time.Microsecond
	r.EnqueuedAt, r.NotBefore, r.WaitUntil, r.Deadline = toTime(enqueued), toTime(notBefore), toTime(waitUntil), toTime(deadline)
	r.ClaimedAt, r.StartedAt, r.FinishedAt, r.ChangedAt = toTime(claimed), toTime(started), toTime(finished), toTime(changed)
	if keep >= 0 {
		r.Keep = new(time.Duration(keep) * time.Microsecond)
	}
	r.KeptFor, r.RemovedAt = time.Duration(keptFor)*time.Microsecond, toTime(removed)
	r.ShowRetention()
	r.stored.state, r.stored.claimable, r.stored.retained, r.stored.held, r.stored.blocked = r.State, r.Claimable(), r.retained(), r.Token != 0, r.Blocked
	if err := decode(limits, &r.Limits); err != nil {
		return fmt.Errorf("limits of job %s: %w", r.ID, err)
	}
	if err := decode(warnings, &r.Warnings); err != nil {
		return fmt.Errorf("warnings of job %s: %w", r.ID, err)
	}
	if err := decode(labels, &r.Labels); err != nil {
		return fmt.Errorf("labels of job %s: %w", r.ID, err)
	}
	if err := decode(after, &r.After); err != nil {
		return fmt.Errorf("jobs that job %s is after: %w", r.ID, err)
	}
	return nil
}

func (r *row) scan(scan func(...any) error) error { return r.scanRecord(scan, true) }

// encodeLimits, encodeLabels, encodeAfter and encodeWarnings return "" for none.
func encodeLimits(limits job.Limits) (string, error) {
	if limits == (job.Limits{}) {
		return "", nil
	}
	text, err := json.Marshal(limits)
	return string(text), err
}

func encodeLabels(labels job.Labels) (string, error) {
	if len(labels) == 0 {
		return "", nil
	}
	text, err := json.Marshal(labels)
	return string(text), err
}

func encodeAfter(after []job.ID) (string, error) {
	if len(after) == 0 {
		return "", nil
	}
	text, err := json.Marshal(after)
	return string(text), err
}

func encodeWarnings(warnings []string) (string, error) {
	if len(warnings) == 0 {
		return "", nil
	}
	text, err := json.Marshal(warnings)
	return string(text), err
}

// encodeKeep returns -1 for nil.
func encodeKeep(keep *time.Duration) int64 {
	if keep == nil {
		return -1
	}
	return max(keep.Microseconds(), 0)
}

func decode(text string, into any) error {
	if text == "" {
		return nil
	}
	return json.Unmarshal([]byte(text), into)
}

// toTime and fromTime convert a zero time to 0 and back.
func toTime(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

func fromTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}
