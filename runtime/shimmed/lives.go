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

// lives ends the lives of a sheep's runners, and keeps what is not settled of those
// that have ended.
type lives struct {
	dir   string // of their folders
	typ   Type
	grace time.Duration
	log   *slog.Logger

	mu   sync.Mutex // taken without the Sheep's
	past []*remains // lives that have ended and are not settled
}

// all are the lives that have ended and are not settled.
func (s *lives) all() []*remains {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.past)
}

// bury waits for the exit of a life, ends its shim, and keeps what is not
// settled of it.
func (s *lives) bury(h *shim.Handle, folder string) (shim.Exit, *remains, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lastResort)
	defer cancel()
	exit, err := h.Wait(ctx)
	if err != nil {
		return shim.Exit{}, nil, err
	}
	if err := h.Release(ctx); err != nil {
		s.log.Warn("The shim of an ended runner does not end; killing it", "error", err)
		if err := shim.Kill(folder); err != nil {
			s.log.Error("Cannot kill the shim", "error", err)
		}
		h.Detach()
	}
	outcome, err := shim.ReadOutcome(folder)
	if err != nil {
		s.log.Warn("What the shim kept cannot be read; it counts as lost", "error", err)
	}
	outcome.Exit = &exit
	if err := s.clean(ctx, folder, &outcome); err != nil {
		s.log.Warn("Not all that is left of an ended runner could be removed; it is tried again with the next", "error", err)
	}
	return *outcome.Exit, s.keep(folder, outcome), nil
}

// clean removes what is left of a life, but for its folder, and notes what is
// known of its end in the outcome, in the folder, too.
func (s *lives) clean(ctx context.Context, folder string, o *shim.Outcome) error {
	spec, err := shim.ReadSpec(folder)
	if errors.Is(err, fs.ErrNotExist) { // never begun
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

// keep remembers a life that has ended; one with nothing to settle is removed.
func (s *lives) keep(folder string, o shim.Outcome) *remains {
	r := &remains{folder: folder, outcome: o}
	s.mu.Lock()
	s.past = append(s.past, r)
	s.mu.Unlock()
	if r.empty() {
		s.forget(r)
	}
	return r
}

// tidy removes the lives that have no answers left to acknowledge: what became
// of their jobs is known by now.
func (s *lives) tidy() {
	for _, r := range s.all() {
		if len(r.answers()) == 0 {
			s.forget(r)
		}
	}
}

// forget removes a life's folder.
func (s *lives) forget(r *remains) {
	if err := s.remove(r); err != nil {
		s.log.Warn("Cannot remove the traces of an ended runner", "error", err)
	}
}

func (s *lives) remove(r *remains) error {
	if err := shim.Remove(r.folder); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past = slices.DeleteFunc(s.past, func(p *remains) bool { return p == r })
	return nil
}

// stop stops a runner that nobody watches.
func (s *lives) stop(h *shim.Handle, folder string) (shim.Exit, *remains, error) {
	if err := s.askToStop(h); err != nil {
		s.log.Warn("A shim does not answer; killing it", "error", err)
		if err := shim.Kill(folder); err != nil {
			return shim.Exit{}, nil, err
		}
	}
	timer := time.AfterFunc(s.grace+lastResort, func() { _ = shim.Kill(folder) })
	defer timer.Stop()
	<-h.Ended()
	return s.bury(h, folder)
}

// askToStop tells the shim to stop its runner; an error says that it does not
// listen.
func (s *lives) askToStop(h *shim.Handle) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.Stop(ctx, s.grace); err != nil && !errors.Is(err, messenger.ErrClosed) {
		return err
	}
	return nil
}

// remains are what a life leaves whose runner and shim have ended: its folder,
// until the answers in it are acknowledged.
type remains struct {
	folder string

	mu      sync.Mutex
	outcome shim.Outcome
}

func (r *remains) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outcome.Job == "" && len(r.outcome.Answers) == 0
}

func (r *remains) job() job.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outcome.Job
}

func (r *remains) answers() []messenger.Answer {
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

// ack forgets an answer; false when there is no such one.
func (r *remains) ack(id job.ID) (bool, error) {
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
