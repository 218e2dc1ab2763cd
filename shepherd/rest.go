package shepherd

import (
	"errors"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// errResting is why a job is handed back when its sheep is told to stop.
var errResting = errors.New("the sheep was told to stop")

// Rest stops all sheep that there are: running jobs may finish for the time of
// drain and are handed back unspent after it. No runner is left when it returns,
// none is started before Wake, and jobs that are submitted wait. The error is
// job.ErrDraining.
func (s *Shepherd) Rest(drain time.Duration) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if err := s.admitting(); err != nil {
		return err
	}
	var ending sync.WaitGroup
	for _, l := range s.flock.all() {
		if l.setResting(true) {
			s.log.Info("Sheep stops, until it is told to start", "sheep", l.name)
			ending.Go(func() { l.retire(drain, errResting) })
		}
	}
	ending.Wait()
	return s.admitting()
}

// Wake has the sheep work again that Rest stopped. The error is job.ErrDraining.
func (s *Shepherd) Wake() error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if err := s.admitting(); err != nil {
		return err
	}
	for _, l := range s.flock.all() {
		if l.setResting(false) {
			s.log.Info("Sheep starts to work again", "sheep", l.name)
			l.enter(s.feed, s.work)
			l.adopted = &adoption{jobs: make(map[job.ID]*assignment)}
			l.crashes = crashes{}
			l.begins()
		}
	}
	return nil
}

// setResting says whether that is a change.
func (l *lane) setResting(resting bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := l.resting != resting
	l.resting = resting
	if !resting {
		l.planned = job.Model{}
	}
	return changed
}
