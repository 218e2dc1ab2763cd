package shimmed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shim"
)

// Recover adopts what an earlier daemon left of this sheep. Until Forget, Ack
// or Close nothing that a later call would need is removed, so it can be
// interrupted at any point and done again. See runtime.Recoverer.
func (s *Sheep) Recover(ctx context.Context) (*runtime.Recovered, error) {
	entries, err := os.ReadDir(s.lives.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for runners of sheep %s: %w", s.cfg.Name, err)
	}
	var errs []error
	for _, e := range entries {
		if err := s.recoverLife(ctx, filepath.Join(s.lives.dir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("adopt a runner of sheep %s: %w", s.cfg.Name, err))
		}
	}
	recovered, err := s.recovered(ctx)
	return recovered, errors.Join(append(errs, err)...)
}

// recoverLife finds out about one life: it is the sheep's runner, or remains.
func (s *Sheep) recoverLife(ctx context.Context, folder string) error {
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	h, err := shim.Attach(asking, folder, s.log)
	var version *shim.VersionError
	switch {
	case ctx.Err() != nil:
		if h != nil {
			h.Detach()
		}
		return ctx.Err()
	case err == nil && h.Hello().Exited:
		<-h.Ended()
		_, _, err := s.lives.bury(h, folder)
		return err
	case err == nil && h.Hello().RunnerPID == 0 && isContainer(folder):
		s.log.Info("A container was being started when the daemon ended; removing it")
		_, _, err := s.lives.stop(h, folder)
		return err
	case err == nil:
		return s.takeUp(h, folder)
	case errors.As(err, &version):
		s.log.Warn("A runner of another version of shepherd cannot be adopted; stopping it", "error", err)
		lost := shim.Outcome{Job: h.Hello().Job, Exit: &shim.Exit{Code: -1, Lost: true, Detail: version.Error()}}
		if _, _, err := s.lives.stop(h, folder); err != nil {
			return err
		}
		if lost.Job != "" {
			s.lives.keep(folder, lost)
		}
		return nil
	case !errdefs.IsNotFound(err):
		// It is frozen, or the machine is busy; its runner may have worked for
		// hours.
		h, resumeErr := shim.Resume(folder, s.log)
		if resumeErr == nil {
			s.log.Warn("A shim does not answer; its runner is adopted as its files describe it", "error", err)
			return s.takeUp(h, folder)
		}
		s.log.Warn("A shim that has started no runner does not answer; killing it", "error", err)
		if err := shim.Kill(folder); err != nil {
			return err
		}
		if err := shim.AwaitEnd(ctx, folder); err != nil {
			return err
		}
	}
	outcome, err := shim.Settle(ctx, folder, s.log)
	if err != nil {
		return err
	}
	if err := s.lives.clean(ctx, folder, &outcome); err != nil {
		s.log.Warn("Not all that is left of an ended runner could be removed; it is tried again with the next", "error", err)
	}
	s.log.Info("A runner ended while no daemon was there", "error", exitOf(*outcome.Exit), "job", outcome.Job, "answers", len(outcome.Answers))
	s.lives.keep(folder, outcome)
	return nil
}

// isContainer reports whether the runner of a life is, or was to be, started by
// the daemon and not by the shim.
func isContainer(folder string) bool {
	spec, err := shim.ReadSpec(folder)
	return err == nil && spec.Container != nil
}

// takeUp makes a living runner the sheep's. There is one at most, unless the
// folders were meddled with.
func (s *Sheep) takeUp(h *shim.Handle, folder string) error {
	spec, err := shim.ReadSpec(folder)
	s.mu.Lock()
	another := s.found != nil
	if err == nil && !another {
		s.found = &found{handle: h, folder: folder, model: spec.Model}
	}
	s.mu.Unlock()
	if err == nil && !another {
		return nil
	}
	s.log.Warn("Stopping a runner that is one too many or not known", "pid", h.PID(), "error", err)
	_, _, err = s.lives.stop(h, folder)
	return err
}

// recovered puts together what there is.
func (s *Sheep) recovered(ctx context.Context) (*runtime.Recovered, error) {
	s.mu.Lock()
	life := s.found
	s.mu.Unlock()
	past := s.lives.all()
	r := new(runtime.Recovered)
	for _, p := range past {
		r.Answers = append(r.Answers, p.answers()...)
		if id := p.job(); id != "" {
			r.Job = id
		}
		if spec, err := shim.ReadSpec(p.folder); err == nil {
			r.Model = spec.Model
		}
		if p.outcome.Exit != nil {
			r.Exit = exitOf(*p.outcome.Exit)
		}
	}
	if life == nil {
		if len(past) == 0 {
			return nil, nil
		}
		r.Forget = func() error {
			var errs []error
			for _, p := range past {
				errs = append(errs, s.lives.remove(p))
			}
			return errors.Join(errs...)
		}
		return r, nil
	}
	kept, err := life.handle.Kept(ctx)
	if err != nil {
		return nil, err
	}
	r.Model, r.Running, r.Exit = life.model, true, nil
	r.Job = life.handle.Hello().Job
	r.Answers = append(r.Answers, answersOf(kept)...)
	return r, nil
}

// Dismiss stops the runner that an earlier daemon left of this sheep, if any, and
// removes what there is of it, as for a sheep that is not configured any more.
func (s *Sheep) Dismiss(ctx context.Context) error {
	found, err := s.Recover(ctx)
	if err != nil {
		return err
	}
	switch {
	case found == nil:
	case found.Running:
		s.log.Info("Stopping the runner of a sheep that is not configured any more", "model", found.Model.String())
		ended, cancel := context.WithCancel(ctx)
		cancel()
		_ = s.Run(ended, runtime.Discard) // it never returns nil
	default:
		if err := found.Forget(); err != nil {
			return err
		}
	}
	return s.Close(ctx)
}
