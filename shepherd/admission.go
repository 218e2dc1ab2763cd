package shepherd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
)

// phase is the stage of the daemon's lifetime.
type phase struct {
	mu       sync.Mutex
	started  bool
	draining bool // no new jobs are accepted
}

// admission decides whether a job may be submitted now, before anything is stored for it.
type admission struct {
	cfg   *Config
	env   *services
	phase *phase
}

// admissible checks everything that can be checked before anything is stored. with holds the
// jobs of the same submission that precede r.
func (ad *admission) admissible(ctx context.Context, r job.Request, with ...job.Request) error {
	if err := ad.admitting(); err != nil && !ad.admitsForOthers(ctx) {
		return err
	}
	if err := ad.cfg.Store.CheckID(r.ID); err != nil {
		return &job.Invalid{Field: "job_id", Problem: err.Error()}
	}
	if err := r.Model.Validate(); err != nil {
		return &job.Invalid{Field: "model", Problem: err.Error()}
	}
	if err := r.NodeLabels.Validate(); err != nil {
		return &job.Invalid{Field: "node_labels", Problem: reasonOf(err)}
	}
	if err := job.CheckGroup(r.Group); err != nil {
		return &job.Invalid{Field: "group", Problem: err.Error()}
	}
	if err := ad.checkAfter(ctx, r, with...); err != nil {
		return err
	}
	if err := ad.checkAddress(ctx, r); err != nil {
		return err
	}
	if objection := ad.checkModel(r); objection != nil && !ad.leftToOthers(ctx, r, objection) {
		return objection
	}
	return nil
}

// admitting returns job.ErrDraining if the Shepherd is not running or is shutting down.
func (ad *admission) admitting() error {
	ad.phase.mu.Lock()
	defer ad.phase.mu.Unlock()
	if !ad.phase.started || ad.phase.draining {
		return job.ErrDraining
	}
	return nil
}

// admitsForOthers reports whether a Shepherd that is shutting down still accepts jobs
// because other live nodes serve the same queue. A load balancer that has not noticed the
// shutdown yet gets no errors then.
func (ad *admission) admitsForOthers(ctx context.Context) bool {
	ad.phase.mu.Lock()
	started := ad.phase.started
	ad.phase.mu.Unlock()
	if !started || ad.cfg.Peers == nil {
		return false
	}
	peers, err := ad.cfg.Peers.Peers(ctx, ad.cfg.Node)
	return err == nil && len(peers) > 0
}

// roomFor refuses a tenant's jobs when a limit or the ledger's disk is full: with
// *job.QueueFull, or *job.Unavailable for the disk. Concurrent submissions may exceed a
// limit together.
func (ad *admission) roomFor(ctx context.Context, tenant string, jobs int) error {
	if most := ad.cfg.Policy.Tenant(tenant).MaxQueued; most > 0 {
		queued, err := ad.cfg.Ledger.Queued(ctx, tenant, most)
		if err != nil {
			return serviceError("ledger", fmt.Errorf("count the jobs of tenant %s that wait: %w", tenant, err))
		}
		if queued > most-jobs {
			return &job.QueueFull{Limit: most, Tenant: tenant}
		}
	}
	if most := ad.cfg.MaxQueued; most > 0 {
		counts, err := ad.cfg.Ledger.Count(ctx)
		if err != nil {
			return serviceError("ledger", fmt.Errorf("count the jobs that wait: %w", err))
		}
		if counts[job.Queued] > most-jobs {
			return &job.QueueFull{Limit: most}
		}
	}
	if ad.cfg.StateRoom != nil {
		if err := ad.cfg.StateRoom(); err != nil {
			return &job.Unavailable{Service: "disk of the ledger", Problem: "is nearly full", Cause: err}
		}
	}
	return nil
}

// checkAfter checks whether the ledger will accept r.After, before anything is stored for
// the job. with holds the jobs of the same submission.
func (ad *admission) checkAfter(ctx context.Context, r job.Request, with ...job.Request) error {
	if len(r.After) == 0 {
		return nil
	}
	if err := job.CheckAfter(r.After); err != nil {
		return &job.Invalid{Field: "after", Problem: err.Error()}
	}
	var unread error
	_, err := ledger.CheckAfter(job.Record{ID: r.ID, Tenant: r.Tenant, After: r.After}, func(id job.ID) *job.Record {
		for _, other := range with {
			if other.ID == id {
				return &job.Record{ID: id, Tenant: other.Tenant, State: job.Queued}
			}
		}
		rec, err := ad.cfg.Ledger.Get(ctx, id)
		if errors.Is(err, ledger.ErrNotFound) {
			return nil
		}
		if err != nil {
			unread = serviceError("ledger", fmt.Errorf("look for job %s: %w", id, err))
		}
		return &rec
	})
	var after *ledger.AfterError
	if errors.As(err, &after) && unread == nil {
		return afterProblem(after)
	}
	return unread
}

// afterProblem translates the ledger's refusal of Record.After for clients.
func afterProblem(e *ledger.AfterError) error {
	switch e.State {
	case "":
		return &job.Invalid{Field: "after", Problem: fmt.Sprintf("there is no job `%s` to wait for", e.Job)}
	case job.Done:
		return &job.AfterError{ID: e.Job, Problem: fmt.Sprintf("The outputs of job `%s`, which this one needs, have been removed; submit that one again, and then this one", e.Job)}
	}
	how := "has failed"
	if e.State == job.Cancelled {
		how = "was cancelled"
	}
	return &job.AfterError{ID: e.Job, Problem: fmt.Sprintf("Job `%s`, whose outputs this one needs, %s; run that again first (POST /jobs/%s/retry)", e.Job, how, e.Job)}
}

// addressOf returns the address that a request asks for. On a single node the parts that
// name this node are left out.
func (ad *admission) addressOf(r job.Request) job.Address {
	a := job.ParseAddress(r.Sheep)
	if strings.HasPrefix(r.Sheep, "/") || strings.HasSuffix(r.Sheep, "/") || len(a.Labels) > 0 { // no sheep is called so
		a = job.Address{Sheep: r.Sheep}
	}
	a.Labels = r.NodeLabels.Clone()
	if ad.cfg.Peers == nil && a.Fits(ad.cfg.Node, a.Sheep, ad.cfg.Placement.Labels) {
		a.Node, a.Labels = "", nil
	}
	return a
}

// checkAddress returns *job.UnknownSheep if no node has the sheep, and *job.Invalid if no
// node has the labels.
func (ad *admission) checkAddress(ctx context.Context, r job.Request) error {
	a := ad.addressOf(r)
	if a.Fits(ad.cfg.Node, a.Sheep, ad.cfg.Placement.Labels) && (a.Sheep == "" || ad.env.flock.takes(a.Sheep)) {
		return nil
	}
	if ad.cfg.Fleet != nil {
		nodes, err := ad.cfg.Fleet.Answering(ctx, a)
		if err != nil {
			return serviceError("ledger", fmt.Errorf("look for a node for %s: %w", a, err))
		}
		if len(nodes) > 0 {
			return nil
		}
	}
	if len(a.Labels) == 0 {
		return &job.UnknownSheep{Name: r.Sheep}
	}
	who := "no node that is up"
	if a.Sheep != "" {
		who = fmt.Sprintf("no node that is up and has a sheep `%s`", a.Sheep)
	}
	return &job.Invalid{Field: "node_labels", Problem: who + " has " + labelText(a.Labels)}
}

// labelText formats labels for messages.
func labelText(labels job.Labels) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return strings.Join(list, ", ")
}

// checkModel returns *job.Untrusted for a model that is not trusted. If every sheep that the
// request may run on refuses the model, it returns the first refusal.
func (ad *admission) checkModel(r job.Request) error {
	to := ad.addressOf(r)
	pin, err := ad.cfg.Trust.Check(r.Model)
	if err != nil {
		return err
	}
	var objection error
	for _, l := range ad.env.flock.all() {
		if !to.Fits(ad.cfg.Node, l.Name, ad.cfg.Placement.Labels) || l.state.isRemoved() {
			continue
		}
		if pin != "" && !checksDigests(l.Sheep) {
			objection = cmp.Or(objection, undigested(r.Model))
			continue
		}
		checker, ok := l.Sheep.(runtime.ModelChecker)
		if !ok {
			return nil
		}
		err := checker.CheckModel(r.Model)
		if err == nil {
			return nil
		}
		if objection == nil {
			objection = err
		}
	}
	return objection
}

// leftToOthers reports whether a job is accepted although every sheep of this node refuses
// its model: another live node may run it, and decides that when it claims the job. A model
// that this node does not trust is refused regardless.
func (ad *admission) leftToOthers(ctx context.Context, r job.Request, objection error) bool {
	if ad.cfg.Peers == nil || r.Sheep != "" || errors.As(objection, new(*job.Untrusted)) {
		return false
	}
	peers, err := ad.cfg.Peers.Peers(ctx, ad.cfg.Node)
	return err == nil && len(peers) > 0
}
