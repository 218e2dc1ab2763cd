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

// Recover adopts the runner that an earlier daemon has left of this sheep. Until Forget,
// Ack or Close nothing is removed that a later call would need, so it can be interrupted
// at any point and repeated. See runtime.Recoverer.
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

// recoverLife recovers one life: it adopts a runner that is up, and settles one that has
// ended.
func (s *Sheep) recoverLife(ctx context.Context, folder string) error {
	attaching, cancel := context.WithTimeout(ctx, shimTimeout)
	defer cancel()
	h, err := shim.Attach(attaching, folder, s.log)
	var version *shim.VersionError
	switch {
	case ctx.Err() != nil:
		if h != nil {
			h.Detach()
		}
		return ctx.Err()
	case err == nil && h.Hello().Exited:
		<-h.Ended()
		_, _, err := s.lives.finish(h, folder)
		return err
	case err == nil && h.Hello().RunnerPID == 0 && isContainer(folder):
		s.log.Info("A container was being started when the daemon ended; removing it")
		_, _, err := s.lives.stop(h, folder)
		return err
	case err == nil:
		return s.adopt(h, folder)
	case errors.As(err, &version):
		s.log.Warn("The shim of a runner has another protocol version; stopping the runner", "error", err)
		lost := shim.Outcome{Job: h.Hello().Job, Exit: &shim.Exit{Code: -1, Lost: true, Detail: version.Error()}}
		if _, _, err := s.lives.stop(h, folder); err != nil {
			return err
		}
		if lost.Job != "" {
			s.lives.keep(folder, lost)
		}
		return nil
	case !errdefs.IsNotFound(err):
		// The shim is frozen, or the machine is overloaded. Its runner may have worked
		// on its job for hours, so it is not killed.
		h, resumeErr := shim.Resume(folder, s.log)
		if resumeErr == nil {
			s.log.Warn("A shim does not answer; its runner is adopted in the state that the shim's files describe", "error", err)
			return s.adopt(h, folder)
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
		s.log.Warn("Cleaning up after a runner that ended failed; it is tried again with the next runner", "error", err)
	}
	s.log.Info("A runner ended while no daemon was connected", "error", exitOf(*outcome.Exit), "job", outcome.Job, "answers", len(outcome.Answers))
	s.lives.keep(folder, outcome)
	return nil
}

// isContainer reports whether a life's runner is a container, which the daemon starts and
// not the shim.
func isContainer(folder string) bool {
	spec, err := shim.ReadSpec(folder)
	return err == nil && spec.Container != nil
}

// adopt makes a runner that is up the sheep's runner. It stops the runner if there is
// another one already, which happens only if directories were copied, or if its spec
// cannot be read.
func (s *Sheep) adopt(h *shim.Handle, folder string) error {
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
	s.log.Warn("Stopping a second runner of the sheep, or one without a readable spec", "pid", h.PID(), "error", err)
	_, _, err = s.lives.stop(h, folder)
	return err
}

// recovered composes Recover's result.
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

// Remove stops the runner that an earlier daemon has left of this sheep, if any, and
// removes the state of its lives. It is for a sheep that is not configured any more.
func (s *Sheep) Remove(ctx context.Context) error {
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
