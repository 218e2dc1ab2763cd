package shimmed

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// lives ends the lives of a sheep's runners, and keeps those that have ended until their
// jobs are settled.
type lives struct {
	dir   string // has the directory of each life
	typ   Type
	grace time.Duration
	log   *slog.Logger

	mu   sync.Mutex   // not held together with Sheep.mu
	past []*endedLife // not settled
}

// all returns the lives that have ended and are not settled.
func (s *lives) all() []*endedLife {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.past)
}

// finish waits for the exit of a life, ends its shim, cleans up, and keeps the life until
// it is settled.
func (s *lives) finish(h *shim.Handle, folder string) (shim.Exit, *endedLife, error) {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	exit, err := h.Wait(ctx)
	if err != nil {
		return shim.Exit{}, nil, err
	}
	if err := h.Release(ctx); err != nil {
		s.log.Warn("The shim of a runner that ended does not end; killing it", "error", err)
		if err := shim.Kill(folder); err != nil {
			s.log.Error("Cannot kill the shim", "error", err)
		}
		h.Detach()
	}
	outcome, err := shim.ReadOutcome(folder)
	if err != nil {
		s.log.Warn("The outcome that the shim kept cannot be read; a job it had counts as lost", "error", err)
	}
	outcome.Exit = &exit
	if err := s.clean(ctx, folder, &outcome); err != nil {
		s.log.Warn("Cleaning up after a runner that ended failed; it is tried again with the next runner", "error", err)
	}
	return *outcome.Exit, s.keep(folder, outcome), nil
}

// clean removes what a life has left, except its directory, and adds what is known of its
// exit to the outcome, also to the file.
func (s *lives) clean(ctx context.Context, folder string, o *shim.Outcome) error {
	spec, err := shim.ReadSpec(folder)
	if errors.Is(err, fs.ErrNotExist) { // the life has not begun
		spec = shim.Spec{Life: filepath.Base(folder)}
	} else if err != nil {
		return err
	}
	before := *o.Exit
	if err := s.typ.Clean(ctx, spec, o.Exit); err != nil {
		return err
	}
	if *o.Exit == before || o.Job == "" && len(o.Answers) == 0 {
		return nil
	}
	return shim.WriteOutcome(folder, *o)
}

// keep records a life that has ended, and removes its directory if it has neither a job
// nor answers to settle.
func (s *lives) keep(folder string, o shim.Outcome) *endedLife {
	r := &endedLife{folder: folder, outcome: o}
	s.mu.Lock()
	s.past = append(s.past, r)
	s.mu.Unlock()
	if r.empty() {
		s.forget(r)
	}
	return r
}

// removeSettled removes the lives without unacknowledged answers. The core has ended the
// attempts of their jobs by the time this is called.
func (s *lives) removeSettled() {
	for _, r := range s.all() {
		if len(r.answers()) == 0 {
			s.forget(r)
		}
	}
}

// forget removes a life's directory.
func (s *lives) forget(r *endedLife) {
	if err := s.remove(r); err != nil {
		s.log.Warn("Cannot remove the state of a runner that ended", "error", err)
	}
}

func (s *lives) remove(r *endedLife) error {
	if err := shim.Remove(r.folder); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past = slices.DeleteFunc(s.past, func(p *endedLife) bool { return p == r })
	return nil
}

// stop stops a runner outside of Run, and waits for its end.
func (s *lives) stop(h *shim.Handle, folder string) (shim.Exit, *endedLife, error) {
	if err := s.askToStop(h); err != nil {
		s.log.Warn("A shim does not answer; killing it", "error", err)
		if err := shim.Kill(folder); err != nil {
			return shim.Exit{}, nil, err
		}
	}
	timer := time.AfterFunc(s.grace+killTimeout, func() { _ = shim.Kill(folder) })
	defer timer.Stop()
	<-h.Ended()
	return s.finish(h, folder)
}

// askToStop tells the shim to stop its runner. It returns an error if the shim does not
// answer.
func (s *lives) askToStop(h *shim.Handle) error {
	ctx, cancel := context.WithTimeout(context.Background(), shimTimeout)
	defer cancel()
	if err := h.Stop(ctx, s.grace); err != nil && !errors.Is(err, messenger.ErrClosed) {
		return err
	}
	return nil
}

// endedLife is a life whose runner and shim have ended. Its directory is kept until the
// answers in it are acknowledged.
type endedLife struct {
	folder string

	mu      sync.Mutex
	outcome shim.Outcome
}

func (r *endedLife) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outcome.Job == "" && len(r.outcome.Answers) == 0
}

func (r *endedLife) job() job.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outcome.Job
}

func (r *endedLife) answers() []messenger.Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return answersOf(r.outcome.Answers)
}

func answersOf(kept []shim.Answer) []messenger.Answer {
	var list []messenger.Answer
	for _, a := range kept {
		list = append(list, a.Message())
	}
	return list
}

// ack removes an answer, and reports whether there was one.
func (r *endedLife) ack(id job.ID) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(r.outcome.Answers), func(a shim.Answer) bool { return a.Job == id })
	if len(left) == len(r.outcome.Answers) {
		return false, nil
	}
	r.outcome.Answers = left
	if len(left) == 0 && r.outcome.Job == "" {
		return true, shim.Remove(r.folder)
	}
	return true, shim.WriteOutcome(r.folder, r.outcome)
}
