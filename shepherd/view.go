package shepherd

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// View is a job in detail. Where only storage knows it, that is its status. The
// error is as Job's.
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
			if err != nil && !errors.Is(err, ledger.ErrNotFound) { // it expired since
				return job.View{}, fmt.Errorf("look up the position of job %s: %w", id, err)
			}
		}
		r.foresee(ctx, &view)
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

// waitsFor are the jobs that a blocked one is after and that are not done.
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

// Jobs is up to limit jobs that match, by when they were submitted, from the
// cursor on (0 for the first), and the cursor to go on with, 0 at the end. It
// knows the jobs that the ledger has.
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

// sheepOf is the sheep of a record's last attempt, where that ended the record's run.
func sheepOf(rec job.Record, last job.Attempt) string {
	if !rec.State.Final() || last.Run != rec.Run {
		return ""
	}
	return last.Sheep
}

// Watch returns a channel that receives after the job has changed, what its runner
// tells included, until stop is called.
func (r *reader) Watch(id job.ID) (changed <-chan struct{}, stop func()) {
	bell := make(chan struct{}, 1)
	stop = r.env.hub.watch(id, func(job.Event) {
		select {
		case bell <- struct{}{}:
		default:
		}
	})
	return bell, stop
}

// timeline is the events of the record's run that are kept, the last ones.
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

// view is a record with the limits that apply and what is being done for it.
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
			view.Detail, view.Progress = shown.Detail, shown.Progress
		}
	}
	view.Limits = r.cfg.Limits.apply(rec.Limits, rec.Model, sheep)
	return view
}

// live completes a view of a job that another node has with what that node's sheep
// tell, or with why they tell nothing.
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
		r.log.Warn("Another node does not tell of a job", "job", view.ID, "node", view.Node, "error", err)
		return
	}
	for _, one := range sheep {
		if one.Name == view.Holder && one.Job == view.ID {
			view.Detail, view.Progress = one.Detail, one.Progress
		}
	}
}
