package shepherd

import (
	"errors"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// errSheepStopped is why a job is handed back when an operator stops its sheep.
var errSheepStopped = errors.New("the sheep was told to stop")

// StopSheep stops the named sheep, or all if none is named. Running jobs may finish within
// drain and are handed back unspent after that. It returns when nothing is left of the
// sheep's runners; none is started until StartSheep or ResumeSheep, and jobs that only these
// sheep could run wait. The error is *job.UnknownSheep, before anything is changed, or
// job.ErrDraining.
func (s *Shepherd) StopSheep(drain time.Duration, names ...string) error {
	lanes, err := s.selected(names)
	if err != nil {
		return err
	}
	var ending sync.WaitGroup
	for _, l := range lanes {
		ending.Go(func() {
			defer l.life.beginTransition(drain, errSheepStopped)()
			if !l.life.over && l.state.setStopped(true) {
				s.log.Info("Sheep stops until it is started again", "sheep", l.Name)
				l.retire(drain, errSheepStopped)
			}
		})
	}
	ending.Wait()
	return s.admission.admitting()
}

// StartSheep starts the named sheep, or all if none is named, after StopSheep. The errors
// are those of StopSheep.
func (s *Shepherd) StartSheep(names ...string) error {
	lanes, err := s.selected(names)
	if err != nil {
		return err
	}
	for _, l := range lanes {
		s.startAgain(l)
	}
	return s.admission.admitting()
}

// startAgain starts a lane that was stopped. It returns false if it was not.
func (s *Shepherd) startAgain(l *lane) bool {
	l.life.transition.Lock()
	defer l.life.transition.Unlock()
	if l.life.over || s.admission.admitting() != nil || !l.state.setStopped(false) {
		return false
	}
	s.log.Info("Sheep starts again", "sheep", l.Name)
	l.startAgain()
	return true
}

// startAgain starts a retired lane with its fault counters reset. The caller holds
// life.transition.
func (l *lane) startAgain() {
	l.worker.found = nil
	l.worker.supervisor.crashes = crashes{}
	l.rests.wake()
	l.modelRests.wake()
	l.start(nil)
}

// selected returns the named lanes, or all if none is named.
func (s *Shepherd) selected(names []string) ([]*lane, error) {
	if err := s.admission.admitting(); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return s.env.flock.all(), nil
	}
	lanes := make([]*lane, len(names))
	for i, name := range names {
		if lanes[i] = s.env.flock.named(name); lanes[i] == nil {
			return nil, &job.UnknownSheep{Name: name}
		}
	}
	return lanes, nil
}
