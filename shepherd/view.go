package shepherd

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// View returns a job in detail; for a job that only storage knows, its status. The errors
// are those of Job.
func (r *reader) View(ctx context.Context, id job.ID) (job.View, error) {
	rec, err := r.cfg.Ledger.Get(ctx, id)
	if err == nil {
		attempts, err := r.cfg.Ledger.Attempts(ctx, id)
		if err != nil {
			return job.View{}, fmt.Errorf("read the attempts of job %s: %w", id, err)
		}
		view := r.view(rec)
		r.live(ctx, &view)
		view.Attempts = attempts
		if len(attempts) > 0 {
			view.LastSheep = sheepOf(rec, attempts[len(attempts)-1])
		}
		if view.Timeline, err = r.timeline(ctx, rec); err != nil {
			return job.View{}, fmt.Errorf("read the events of job %s: %w", id, err)
		}
		if view.WaitsFor, err = r.waitsFor(ctx, rec); err != nil {
			return job.View{}, err
		}
		if rec.State == job.Queued && rec.Holder == "" {
			view.Position, err = r.cfg.Ledger.Position(ctx, id, job.MaxPosition)
			if err != nil && !errors.Is(err, ledger.ErrNotFound) { // the record expired meanwhile
				return job.View{}, fmt.Errorf("look up the position of job %s: %w", id, err)
			}
		}
		r.addForecast(ctx, &view)
		return view, nil
	}
	if !errors.Is(err, ledger.ErrNotFound) {
		return job.View{}, fmt.Errorf("read job %s: %w", id, err)
	}
	status, err := r.Job(ctx, id)
	if err != nil {
		return job.View{}, err
	}
	return job.View{Record: job.Record{
		ID: id, Model: status.Model, State: status.State, Failure: status.Failure,
		EnqueuedAt: status.EnqueuedAt, StartedAt: status.StartedAt, FinishedAt: status.FinishedAt,
	}}, nil
}

// waitsFor returns the jobs that a blocked job is after and that are not done.
func (r *reader) waitsFor(ctx context.Context, rec job.Record) (outstanding []job.ID, err error) {
	if !rec.Blocked {
		return nil, nil
	}
	for _, id := range rec.After {
		other, err := r.cfg.Ledger.Get(ctx, id)
		switch {
		case err == nil && other.State != job.Done:
			outstanding = append(outstanding, id)
		case err != nil && !errors.Is(err, ledger.ErrNotFound):
			return nil, fmt.Errorf("read job %s: %w", id, err)
		}
	}
	return outstanding, nil
}

// Jobs returns up to limit jobs of the ledger that match, by time of submission, and the
// cursor to continue from. It starts at cursor, 0 for the first job; a returned cursor of 0
// is the end.
func (r *reader) Jobs(ctx context.Context, q job.Query, cursor int64, limit int) ([]job.View, int64, error) {
	filter := ledger.Filter{
		States: q.States, Sheep: q.Sheep, Model: q.Model, Tenant: q.Tenant, Newest: q.Newest,
		Labels: q.Labels, Group: q.Group, Prefix: q.Prefix, Since: q.Since, Before: q.Before,
	}
	records, next, err := r.cfg.Ledger.List(ctx, filter, cursor, limit)
	if err != nil {
		return nil, 0, fmt.Errorf("list jobs: %w", err)
	}
	var tried []job.ID
	for _, rec := range records {
		if rec.State.Final() && rec.Attempt > 0 {
			tried = append(tried, rec.ID)
		}
	}
	last := map[job.ID]job.Attempt{}
	if len(tried) > 0 {
		if last, err = r.cfg.Ledger.LastAttempts(ctx, tried); err != nil {
			return nil, 0, fmt.Errorf("list jobs: %w", err)
		}
	}
	views := make([]job.View, len(records))
	for i, rec := range records {
		views[i] = r.view(rec)
		views[i].LastSheep = sheepOf(rec, last[rec.ID])
	}
	return views, next, nil
}

// sheepOf returns the sheep of the last attempt of a record, if that attempt ended the
// record's run.
func sheepOf(rec job.Record, last job.Attempt) string {
	if !rec.State.Final() || last.Run != rec.Run {
		return ""
	}
	return last.Sheep
}

// Watch returns a channel that receives after the job, or what its runner reports, has
// changed, until stop is called.
func (r *reader) Watch(id job.ID) (changed <-chan struct{}, stop func()) {
	events := make(chan struct{}, 1)
	stop = r.env.hub.watch(id, func(job.Event) {
		select {
		case events <- struct{}{}:
		default:
		}
	})
	return events, stop
}

// timeline returns the last job.MaxTimeline events of the record's run.
func (r *reader) timeline(ctx context.Context, rec job.Record) ([]job.Event, error) {
	var timeline []job.Event
	filter := ledger.EventFilter{Job: rec.ID}
	for cursor := job.Cursor(""); ; {
		events, next, err := r.cfg.Ledger.Events(ctx, cursor, filter, eventBatch)
		if errors.Is(err, ledger.ErrEventsGone) { // pruned between two pages
			cursor, timeline = "", nil
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if e.Run == rec.Run {
				timeline = append(timeline, e)
			}
		}
		if excess := len(timeline) - job.MaxTimeline; excess > 0 {
			timeline = slices.Delete(timeline, 0, excess)
		}
		if len(events) < eventBatch {
			return timeline, nil
		}
		cursor = next
	}
}

// view returns a record with the limits that apply to it and the runner's progress.
func (r *reader) view(rec job.Record) job.View {
	view := job.View{Record: rec}
	var sheep job.Limits
	name := rec.Holder
	if name == "" {
		name = job.ParseAddress(rec.Sheep).Sheep
	}
	if l := r.env.flock.named(name); l != nil {
		sheep = l.Limits
		if shown := l.view(); rec.Holder != "" && rec.Node == r.cfg.Node && shown.Job == rec.ID {
			showSheep(&view, shown)
		}
	}
	view.Limits = r.cfg.Limits.apply(rec.Limits, rec.Model, sheep)
	return view
}

// showSheep adds what the job's sheep is doing for it.
func showSheep(view *job.View, sheep job.Sheep) {
	view.Detail, view.Progress = sheep.Detail, sheep.Progress
	view.RunningSince = sheep.RunningSince
	view.Loading = view.State == job.Processing && sheep.RunningSince.IsZero()
}

// live adds the runner's progress of a job on another node to the view, or why it is
// unknown.
func (r *reader) live(ctx context.Context, view *job.View) {
	if r.cfg.Fleet == nil || view.Holder == "" || view.Node == r.cfg.Node {
		return
	}
	sheep, err := r.cfg.Fleet.Sheep(ctx, view.Node)
	var unreachable *job.Unavailable
	switch {
	case errors.As(err, &unreachable):
		view.Detail = unreachable.Service + " " + unreachable.Problem
		return
	case err != nil:
		r.log.Warn("Cannot read a job's progress from another node", "job", view.ID, "node", view.Node, "error", err)
		return
	}
	for _, one := range sheep {
		if one.Name == view.Holder && one.Job == view.ID {
			showSheep(view, one)
		}
	}
}
