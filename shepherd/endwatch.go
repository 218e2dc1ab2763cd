package shepherd

import (
	"sync"

	"github.com/iterait/shepherd/job"
)

// endWatch waits for the end of a job's run, or of a later one if that end was missed.
type endWatch struct {
	notify func(job.Status)

	mu        sync.Mutex
	following bool
	run       int
	last      *job.Event // the end that came before it was known which run is followed
}

// follow starts the notification of the end of run.
func (w *endWatch) follow(run int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.following, w.run = true, run
	if w.last != nil {
		w.end(*w.last)
	}
}

func (w *endWatch) observe(e job.Event) {
	if e.Kind != job.EventEnded || e.Status == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.following {
		w.end(e)
	} else if w.notify != nil {
		w.last = &e
	}
}

// end notifies of the end of a run that is followed, once.
func (w *endWatch) end(e job.Event) {
	if e.Run >= w.run && w.notify != nil {
		w.notify(*e.Status)
		w.notify = nil
	}
}
