package shepherd

import (
	"errors"
	"sync"
	"time"
)

// errSheepStopped is why a job is handed back when its sheep is told to stop.
var errSheepStopped = errors.New("the sheep was told to stop")

// StopSheep stops all sheep that there are: running jobs may finish for the time
// of drain and are handed back unspent after it. No runner is left when it
// returns, none is started before StartSheep, and jobs that are submitted wait.
// The error is job.ErrDraining.
func (s *Shepherd) StopSheep(drain time.Duration) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if err := s.admitting(); err != nil {
		return err
	}
	var ending sync.WaitGroup
	for _, l := range s.env.flock.all() {
		if l.state.setStopped(true) {
			s.log.Info("Sheep stops, until it is told to start", "sheep", l.Name)
			ending.Go(func() { l.retire(drain, errSheepStopped) })
		}
	}
	ending.Wait()
	return s.admitting()
}

// StartSheep lets the sheep work again that StopSheep stopped. The error is
// job.ErrDraining.
func (s *Shepherd) StartSheep() error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if err := s.admitting(); err != nil {
		return err
	}
	for _, l := range s.env.flock.all() {
		if l.state.setStopped(false) {
			s.log.Info("Sheep starts to work again", "sheep", l.Name)
			l.worker.found = nil
			l.worker.supervisor.crashes = crashes{}
			l.rests.wake()
			l.modelRests.wake()
			l.start(nil)
		}
	}
	return nil
}
