package shepherd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// Causes for handing back a job when an operator gives its sheep an order.
var (
	errSheepDrained   = errors.New("the sheep was told to take no more jobs")
	errSheepRestarted = errors.New("the sheep was told to restart")
)

// drains are the sheep that were told to claim no more jobs. They are identified by name, so
// a sheep that is reconfigured stays drained.
type drains struct {
	keep func([]string) error // persists the names; nil for no persistence

	mu    sync.Mutex
	names map[string]bool
}

func newDrains(names []string, keep func([]string) error) *drains {
	d := &drains{keep: keep, names: make(map[string]bool)}
	for _, name := range names {
		d.names[name] = true
	}
	return d
}

func (d *drains) has(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.names[name]
}

// set drains the lane, or ends its drain, after persisting that. It reports whether that is
// a change.
func (d *drains) set(l *lane, drained bool) (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[l.Name] == drained {
		return false, nil
	}
	names := maps.Clone(d.names)
	if names[l.Name] = true; !drained {
		delete(names, l.Name)
	}
	if d.keep != nil {
		if err := d.keep(slices.Sorted(maps.Keys(names))); err != nil {
			return false, fmt.Errorf("record which sheep are drained: %w", err)
		}
	}
	d.names = names
	l.state.setDrained(drained)
	return true, nil
}

// newLane creates a lane, drained if the sheep of that name is.
func (s *Shepherd) newLane(m Member) *lane {
	l := newLane(m, s.env)
	l.state.setDrained(s.drains.has(m.Name))
	return l
}

// OrderSheep executes an operator's order with DrainSheep, ResumeSheep, RestartSheep or
// LoadSheep.
func (s *Shepherd) OrderSheep(ctx context.Context, name string, o job.Order) error {
	switch o.Do {
	case job.Drain:
		return s.DrainSheep(name)
	case job.Resume:
		return s.ResumeSheep(name)
	case job.Restart:
		return s.RestartSheep(name, o.Drain)
	case job.Load:
		return s.LoadSheep(ctx, name, o.Model)
	}
	return &job.Invalid{Field: "do", Problem: fmt.Sprintf("no sheep knows how to %q", o.Do)}
}

// DrainSheep makes a sheep claim no more jobs until ResumeSheep, even across restarts. The
// sheep finishes its running job, hands back a job that is only prepared, and keeps its
// runner up. The error is *job.UnknownSheep, *job.SheepState if it is drained already, or
// job.ErrDraining.
func (s *Shepherd) DrainSheep(name string) error {
	lanes, err := s.selected([]string{name})
	if err != nil {
		return err
	}
	l := lanes[0]
	switch changed, err := s.drains.set(l, true); {
	case err != nil:
		return err
	case !changed:
		return &job.SheepState{Sheep: name, Is: job.SheepDrained}
	}
	s.log.Info("Sheep is drained: it takes no more jobs", "sheep", name)
	if a := l.feeder.holds(); a != nil {
		a.giveUp(errSheepDrained)
	}
	return nil
}

// ResumeSheep lets a sheep claim jobs again after DrainSheep or StopSheep. The error is
// *job.UnknownSheep, *job.SheepState if it was neither drained nor stopped, or
// job.ErrDraining.
func (s *Shepherd) ResumeSheep(name string) error {
	lanes, err := s.selected([]string{name})
	if err != nil {
		return err
	}
	l := lanes[0]
	drained, err := s.drains.set(l, false)
	if err != nil {
		return err
	}
	if drained {
		s.log.Info("Sheep takes jobs again", "sheep", name)
		s.env.flock.wakeFirst(l)
	}
	switch stopped := s.startAgain(l); {
	case s.admission.admitting() != nil:
		return job.ErrDraining
	case !stopped && !drained:
		return &job.SheepState{Sheep: name, Is: job.SheepNotDrained}
	}
	return nil
}

// RestartSheep stops a sheep's runner and resets the sheep's fault counters. A running job
// may finish within drain and is handed back unspent after that. A drained sheep stays
// drained. RestartSheep returns when nothing is left of the runner; the next job, or the
// sheep's preloaded model, starts a new one. The error is *job.UnknownSheep, *job.SheepState
// if the sheep is stopped, or job.ErrDraining.
func (s *Shepherd) RestartSheep(name string, drain time.Duration) error {
	lanes, err := s.selected([]string{name})
	if err != nil {
		return err
	}
	l := lanes[0]
	defer l.life.beginTransition(drain, errSheepRestarted)()
	switch {
	case l.life.over: // a change of its configuration has ended it meanwhile
		return nil
	case l.state.isStopped():
		return &job.SheepState{Sheep: name, Is: job.SheepStopped}
	}
	s.log.Info("Sheep restarts its runner", "sheep", name, "drain", drain)
	l.state.restarts(true)
	defer l.state.restarts(false)
	l.retire(drain, errSheepRestarted)
	if err := s.admission.admitting(); err != nil {
		return err
	}
	l.startAgain()
	return nil
}

// LoadSheep makes an idle sheep load a model in place of the one that it has loaded. It
// returns when the model is loaded or cannot be, or when ctx ends, which cancels the load. A
// job of another model that arrives meanwhile cancels it too, unless the sheep is drained.
// The error is *job.Invalid, *job.UnknownSheep, *job.SheepState, *job.Untrusted,
// *job.ModelError, job.ErrDraining, or ctx's.
func (s *Shepherd) LoadSheep(ctx context.Context, name string, m job.Model) error {
	if err := m.Validate(); err != nil {
		return &job.Invalid{Field: "model", Problem: err.Error()}
	}
	lanes, err := s.selected([]string{name})
	if err != nil {
		return err
	}
	l := lanes[0]
	if l.state.isStopped() {
		return &job.SheepState{Sheep: name, Is: job.SheepStopped}
	}
	if err := l.objection(m); err != nil {
		return modelError(err)
	}
	s.log.Info("Sheep loads a model on request", "sheep", name, "model", m.String())
	return l.load(ctx, m)
}

// load makes the worker load a model, unless it is busy.
func (l *lane) load(ctx context.Context, m job.Model) error {
	busy := &job.SheepState{Sheep: l.Name, Is: job.SheepBusy}
	taken := l.state.untilBusy()
	if taken == nil || !l.worker.loading.TryLock() {
		return busy
	}
	defer l.worker.loading.Unlock()
	l.worker.preloader.wanted(m) // cancels a preload of another model
	done := make(chan error, 1)
	select {
	case l.worker.loads <- func(feed context.Context) { done <- l.worker.loadOnRequest(ctx, feed, m) }:
	case <-taken:
		return busy
	case <-l.life.present().ended:
		return &job.SheepState{Sheep: l.Name, Is: job.SheepStopped}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := <-done
	switch {
	case errors.Is(err, errOtherJob):
		return &job.SheepState{Sheep: l.Name, Is: job.SheepDisturbed}
	case errors.Is(err, errStopping), errors.Is(err, errDrainTimeout), errors.Is(err, errLeaseLost):
		return job.ErrDraining
	case errors.Is(err, errSheepStopped), errors.Is(err, errSheepRestarted), errors.Is(err, errSheepChanged):
		return &job.SheepState{Sheep: l.Name, Is: job.SheepStopped}
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return modelError(err)
}

// loadOnRequest loads a model until ctx or feed ends.
func (w *worker) loadOnRequest(ctx, feed context.Context, m job.Model) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errOver)
	defer context.AfterFunc(feed, func() { cancel(context.Cause(feed)) })()
	err := w.loadAhead(ctx, m)
	if err != nil {
		w.lane.log.Warn("Cannot load the model that an operator requested", "model", m.String(), "error", err)
	}
	return err
}

// modelError translates the error of a load for the client that requested it.
func modelError(err error) error {
	var load *runtime.LoadError
	var exit *runtime.Exit
	var untrusted *job.Untrusted
	switch {
	case err == nil, errors.As(err, &untrusted):
		return err
	case errors.As(err, &load):
		return &job.ModelError{Problem: load.Message, Class: load.Class}
	case errors.As(err, &exit):
		return &job.ModelError{Problem: fmt.Sprintf("The runner ended while the model was loaded (%s)", exit), Class: errdefs.ErrFailedPrecondition}
	case errdefs.IsNotFound(err):
		return &job.ModelError{Problem: reasonOf(err), Class: errdefs.ErrNotFound}
	case errdefs.IsFailedPrecondition(err), errdefs.IsInvalidArgument(err):
		return &job.ModelError{Problem: reasonOf(err), Class: errdefs.ErrFailedPrecondition}
	}
	return &job.ModelError{Problem: fmt.Sprintf("The model cannot be loaded: %v", err), Class: errdefs.ErrInternal}
}
