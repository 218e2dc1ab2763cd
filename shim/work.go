package shim

import (
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// work is the jobs of a Handle and what is told of them. It has no lock of its own: the
// Handle's is held by the callers of its methods.
type work struct {
	job      messenger.Input // given and not answered
	features []string        // what the runner announced for it
	kept     []Answer        // not acknowledged, oldest first
	unread   int             // the last so many of kept were not handed out
	coming   int             // answers that follow a hello and have not arrived
	events   []messenger.Event
	lost     int           // events that were dropped
	wake     chan struct{} // closed and made again when something arrives
}

// maxEvents is how many events are kept for RecvEvent.
const maxEvents = 256

// add notes an answer, unless it came before.
func (w *work) add(a Answer) {
	if slices.ContainsFunc(w.kept, func(k Answer) bool { return k.Job == a.Job }) {
		return
	}
	w.kept = append(w.kept, a)
	w.unread++
	if w.job.JobID == a.Job {
		w.job, w.features = messenger.Input{}, nil
	}
	w.arrive()
}

// arrive wakes those who wait for something.
func (w *work) arrive() {
	close(w.wake)
	w.wake = make(chan struct{})
}

// event notes an event of the shim's.
func (w *work) event(e Event) {
	if e.Kind == messenger.EventAccepted && e.Job == w.job.JobID {
		w.features = e.Features
	}
	w.note(messenger.Event{Kind: e.Kind, JobID: e.Job, Time: e.Time, Progress: e.Progress, Text: e.Text, Features: e.Features, Log: e.Log, Lost: e.Lost})
}

// note keeps an event for RecvEvent.
func (w *work) note(e messenger.Event) {
	if e.Kind == messenger.EventProgress {
		w.events = slices.DeleteFunc(w.events, func(old messenger.Event) bool { return old.Kind == e.Kind && old.JobID == e.JobID })
	}
	if len(w.events) == maxEvents {
		w.events = slices.Delete(w.events, 0, 1)
		w.lost++
	}
	w.events = append(w.events, e)
	w.arrive()
}

// nextEvent takes the oldest event; ok is false where there is none.
func (w *work) nextEvent() (e messenger.Event, ok bool) {
	if len(w.events) == 0 {
		return e, false
	}
	e = w.events[0]
	w.events = slices.Delete(w.events, 0, 1)
	e.Lost += w.lost
	w.lost = 0
	return e, true
}

// nextAnswer takes the oldest answer that was not handed out; ok is false where there is
// none.
func (w *work) nextAnswer() (a Answer, ok bool) {
	if w.unread == 0 {
		return a, false
	}
	a = w.kept[len(w.kept)-w.unread]
	w.unread--
	return a, true
}

// forget drops the answer to a job: it was acknowledged.
func (w *work) forget(id job.ID) {
	w.kept = slices.DeleteFunc(w.kept, func(a Answer) bool { return a.Job == id })
	w.unread = min(w.unread, len(w.kept))
}

// unsent is the job that the shim did not get, if there is one, as its hello says. All
// answers that the shim keeps must have arrived.
func (w *work) unsent(hello Hello) []*Message {
	if id := w.job.JobID; id == "" || hello.Job == id || w.job.IODataRoot == "" {
		return nil
	}
	return []*Message{w.sending(hello)}
}

// sending is the message that gives the job to the shim that said hello.
func (w *work) sending(hello Hello) *Message {
	m := &Message{Kind: KindSend, Job: w.job.JobID, DataRoot: w.job.IODataRoot}
	if hello.Has(FeatureDeadline) {
		m.Deadline = w.job.Deadline
	}
	return m
}
