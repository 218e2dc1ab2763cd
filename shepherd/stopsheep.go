package shepherd

import (
	"errors"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// errSheepStopped is why a job is handed back when its sheep is told to stop.
var errSheepStopped = errors.New("the sheep was told to stop")

// StopSheep stops the sheep with these names, or all sheep that there are where none is
// named: running jobs may finish for the time of drain and are handed back unspent after
// it. None of their runners is left when it returns, none is started before StartSheep
// or ResumeSheep, and jobs that only they could run wait. The error is
// *job.UnknownSheep, with nothing changed, or job.ErrDraining.
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
				s.log.Info("Sheep stops, until it is told to start", "sheep", l.Name)
				l.retire(drain, errSheepStopped)
			}
		})
	}
	ending.Wait()
	return s.admission.admitting()
}

// StartSheep lets sheep work again that StopSheep stopped: those with these names, or all
// where none is named. The error is that of StopSheep.
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

// startAgain lets a lane work that was stopped; it reports whether it was.
func (s *Shepherd) startAgain(l *lane) bool {
	l.life.transition.Lock()
	defer l.life.transition.Unlock()
	if l.life.over || s.admission.admitting() != nil || !l.state.setStopped(false) {
		return false
	}
	s.log.Info("Sheep starts to work again", "sheep", l.Name)
	l.startAgain()
	return true
}

// startAgain starts a lane that was retired, as new. The caller tends it.
func (l *lane) startAgain() {
	l.worker.found = nil
	l.worker.supervisor.crashes = crashes{}
	l.rests.wake()
	l.modelRests.wake()
	l.start(nil)
}

// selected are the lanes with these names, or all where none is named.
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
