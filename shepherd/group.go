package shepherd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// SubmitAll submits several jobs, all of them or none. Their inputs are payloads, files of
// other jobs, or in storage already; a job may be after those before it in the list. An
// error about one of the jobs is a *job.ItemError that wraps an error of Submit.
func (s *submitter) SubmitAll(ctx context.Context, rs []job.Request) (err error) {
	traces := make([]job.Trace, len(rs))
	for i, r := range rs {
		trace, done := s.cfg.Tracer.Submit(r)
		defer func() { done(err) }()
		traces[i] = trace
	}
	for i, r := range rs {
		if slices.ContainsFunc(rs[:i], func(other job.Request) bool { return other.ID == r.ID }) {
			return &job.ItemError{Index: i, Err: &job.Invalid{Field: "job_id", Problem: fmt.Sprintf("another one of these jobs has the id `%s`, too", r.ID)}}
		}
		if err := s.admission.admissible(ctx, r, rs[:i]...); err != nil {
			return &job.ItemError{Index: i, Err: err}
		}
	}
	if len(rs) == 0 {
		return nil
	}
	if err := s.admission.roomFor(ctx, rs[0].Tenant, len(rs)); err != nil {
		return err
	}
	rs = slices.Clone(rs)
	made, err := s.placeAll(ctx, rs)
	if err != nil {
		return err
	}
	defer made.free()

	// From here on a client that disconnects must not leave half a submission.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	records := make([]job.Record, len(rs))
	for i, r := range rs {
		records[i] = s.record(r, traces[i])
		s.env.payloads.keep(r.ID, nil)
	}
	if _, err := s.cfg.Ledger.CreateAll(ctx, records); err != nil {
		made.abandon(ctx)
		return s.createAllError(rs, err)
	}
	for _, r := range rs {
		s.logQueued(r)
	}
	return nil
}

// placesMade tracks the places in storage of jobs that are being submitted together.
type placesMade struct {
	by    *submitter
	ids   []job.ID // jobs whose place was created
	frees []func()
}

func (p *placesMade) free() {
	for _, free := range p.frees {
		free()
	}
}

// abandon removes the created places, except those of jobs that the ledger knows: another
// request has submitted them.
func (p *placesMade) abandon(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, id := range p.ids {
		if _, err := p.by.cfg.Ledger.Get(ctx, id); errors.Is(err, ledger.ErrNotFound) {
			p.by.inputs.abandon(ctx, id)
		}
	}
}

// placeAll creates the jobs' places and stores their inputs. Nobody else can submit these
// jobs until free is called.
func (s *submitter) placeAll(ctx context.Context, rs []job.Request) (_ *placesMade, err error) {
	made := &placesMade{by: s}
	defer func() {
		if err != nil {
			made.abandon(ctx)
			made.free()
		}
	}()
	for i, r := range rs {
		free, err := s.remover.upload(r.ID)
		if err != nil {
			return made, &job.ItemError{Index: i, Err: err}
		}
		made.frees = append(made.frees, free)
		isNew, err := s.place(ctx, &rs[i])
		if isNew {
			made.ids = append(made.ids, r.ID)
		}
		if err != nil {
			return made, &job.ItemError{Index: i, Err: err}
		}
	}
	return made, nil
}

// place creates the job's place and stores its inputs, unless they are in storage already.
// made is set if there is something to remove should the job not be created.
func (s *submitter) place(ctx context.Context, of *job.Request) (made bool, err error) {
	if of.Payload == nil && len(of.Copies) == 0 {
		if uploaded, err := s.uploads.take(ctx, of); err != nil || uploaded {
			return false, err
		}
	}
	r := *of
	if r.Payload != nil {
		if err := s.checkNotRemoving(ctx, r.ID); err != nil {
			return false, err
		}
		err := s.cfg.Store.Init(ctx, r.ID, r.Payload)
		if errors.Is(err, storage.ErrExists) {
			return false, job.ErrSubmitted
		}
		if err != nil {
			return false, serviceError("storage", fmt.Errorf("store the payload of job %s: %w", r.ID, err))
		}
		return true, nil
	}
	if len(r.Copies) == 0 {
		there, err := s.cfg.Store.Exists(ctx, r.ID)
		switch {
		case err != nil:
			return false, serviceError("storage", fmt.Errorf("look for the inputs of job %s: %w", r.ID, err))
		case there:
			return false, s.checkPlaceOwner(ctx, r)
		case len(r.After) == 0:
			return false, &job.UnknownJob{ID: string(r.ID)}
		}
	}
	reserved, err := s.reservePlace(ctx, r)
	if err != nil {
		return false, err
	}
	return true, s.inputs.storeInputs(ctx, r, noFiles, reserved)
}

// createAllError translates the ledger's refusal of all jobs for clients.
func (s *submitter) createAllError(rs []job.Request, err error) error {
	if errdefs.IsUnavailable(err) || errdefs.IsResourceExhausted(err) {
		return serviceError("ledger", fmt.Errorf("enter %d jobs in the ledger: %w", len(rs), err))
	}
	for i, r := range rs {
		if refused := new(ledger.RecordError); len(rs) == 1 || errors.As(err, &refused) && refused.ID == r.ID {
			return &job.ItemError{Index: i, Err: s.createError(r, err)}
		}
	}
	return s.createError(rs[0], err)
}

// Group returns the jobs of a group: a tenant's, or all if tenant is empty. The error is
// job.ErrNoGroup or has the ledger's class.
func (r *reader) Group(ctx context.Context, id, tenant string) (job.Group, error) {
	g := job.Group{ID: id, Counts: make(map[job.State]int)}
	for cursor := int64(0); ; {
		views, next, err := r.Jobs(ctx, job.Query{Group: id, Tenant: tenant}, cursor, job.MaxGroup)
		if err != nil {
			return job.Group{}, err
		}
		for _, v := range views {
			g.Counts[v.State]++
		}
		if g.Jobs == nil {
			g.Jobs, g.More = views, next != 0
		}
		if next == 0 {
			break
		}
		cursor = next
	}
	if len(g.Jobs) == 0 {
		return job.Group{}, job.ErrNoGroup
	}
	return g, nil
}

// RetryGroup retries the jobs of a group that failed or were cancelled, oldest first. The
// errors are those of Group and Retry; jobs retried before an error stay queued.
func (s *submitter) RetryGroup(ctx context.Context, id, tenant string, trace job.Trace) error {
	return s.reader.eachOfGroup(ctx, job.Query{Group: id, Tenant: tenant, States: []job.State{job.Failed, job.Cancelled}}, func(v job.View) error {
		err := s.Retry(ctx, v.ID, trace)
		if errors.Is(err, job.ErrNothingToRetry) { // retried by someone else meanwhile
			return nil
		}
		return err
	})
}

// eachOfGroup calls do for every job that matches at the time of the call.
func (r *reader) eachOfGroup(ctx context.Context, q job.Query, do func(job.View) error) error {
	if some, _, err := r.Jobs(ctx, job.Query{Group: q.Group, Tenant: q.Tenant}, 0, 1); err != nil || len(some) == 0 {
		return cmp.Or(err, error(job.ErrNoGroup))
	}
	var all []job.View
	for cursor := int64(0); ; {
		views, next, err := r.Jobs(ctx, q, cursor, job.MaxGroup)
		if err != nil {
			return err
		}
		if all = append(all, views...); next == 0 {
			break
		}
		cursor = next
	}
	for _, v := range all {
		if err := do(v); err != nil {
			return fmt.Errorf("job %s: %w", v.ID, err)
		}
	}
	return nil
}
