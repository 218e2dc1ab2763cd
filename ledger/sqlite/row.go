package sqlite

import (
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// columns are those of a row, in the order of (*row).fields.
const columns = `seq, id, model_name, model_version, sheep, priority, trace_parent, trace_state, tenant, state,
	failure_message, failure_type, failure_traceback,
	enqueued_at, started_at, finished_at, run, attempt, holder, node, token, put_back, overtaken,
	gpu_memory, gpu_time`

// row is a record as the file keeps it.
type row struct {
	job.Record
	token     ledger.Token
	putBack   bool
	overtaken int
	waited    bool // waits, as the file has it
}

// kind is what waiting jobs are counted by.
type kind struct {
	sheep    string
	priority int
}

func (r *row) kind() kind { return kind{r.Sheep, r.Priority} }

// waits reports whether the job can be claimed.
func (r *row) waits() bool { return r.State == job.Queued && r.token == 0 }

// scan reads the columns by the given Scan method.
func (r *row) scan(scan func(...any) error) error {
	var failure job.Failure
	var enqueued, started, finished, gpuTime int64
	err := scan(&r.Seq, &r.ID, &r.Model.Name, &r.Model.Version, &r.Sheep, &r.Priority, &r.Trace.Parent, &r.Trace.State, &r.Tenant, &r.State,
		&failure.Message, &failure.Type, &failure.Traceback,
		&enqueued, &started, &finished, &r.Run, &r.Attempt, &r.Holder, &r.Node, &r.token, &r.putBack, &r.overtaken,
		&r.Usage.GPUMemory, &gpuTime)
	if err != nil {
		return err
	}
	r.waited = r.waits()
	r.Failure = nil
	if r.State == job.Failed {
		r.Failure = &failure
	}
	r.Usage.GPUTime = time.Duration(gpuTime) * time.Microsecond
	r.EnqueuedAt, r.StartedAt, r.FinishedAt = toTime(enqueued), toTime(started), toTime(finished)
	return nil
}

// toTime and fromTime keep a zero time as 0.
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
