package shim

import (
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// work holds a Handle's job, answers and events. Callers of its methods hold Handle.mu.
type work struct {
	job      messenger.Input // under way: sent and not answered
	features []string        // announced by the runner for the job
	kept     []Answer        // not acknowledged, oldest first
	unread   int             // how many answers at the end of kept Recv has not returned
	coming   int             // answers announced by a hello that have not arrived
	events   []messenger.Event
	lost     int           // events that were dropped
	wake     chan struct{} // closed and replaced when an answer or event arrives
}

// maxEvents is how many events are queued for RecvEvent.
const maxEvents = 256

// add adds an answer, unless the job's answer is there already.
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

// arrive wakes the goroutines that wait for an answer or event.
func (w *work) arrive() {
	close(w.wake)
	w.wake = make(chan struct{})
}

// event queues an event of the shim.
func (w *work) event(e Event) {
	if e.Kind == messenger.EventAccepted && e.Job == w.job.JobID {
		w.features = e.Features
	}
	w.note(messenger.Event{Kind: e.Kind, JobID: e.Job, Time: e.Time, Progress: e.Progress, Text: e.Text, Features: e.Features, Log: e.Log, Lost: e.Lost})
}

// note queues an event for RecvEvent.
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

// nextEvent removes and returns the oldest event; ok is false if there is none.
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

// nextAnswer returns the oldest answer that it has not returned yet; ok is false if
// there is none.
func (w *work) nextAnswer() (a Answer, ok bool) {
	if w.unread == 0 {
		return a, false
	}
	a = w.kept[len(w.kept)-w.unread]
	w.unread--
	return a, true
}

// forget removes the answer to a job, which was acknowledged.
func (w *work) forget(id job.ID) {
	i := slices.IndexFunc(w.kept, func(a Answer) bool { return a.Job == id })
	if i < 0 {
		return
	}
	if i >= len(w.kept)-w.unread {
		w.unread--
	}
	w.kept = slices.Delete(w.kept, i, i+1)
}

// unsent returns the message with the job under way if the shim, by its hello, has not
// received it. All answers that the shim keeps must have arrived before.
func (w *work) unsent(hello Hello) []*Message {
	if id := w.job.JobID; id == "" || hello.Job == id || w.job.IODataRoot == "" {
		return nil
	}
	return []*Message{w.sending(hello)}
}

// sending returns the message that sends the job under way to the shim of hello.
func (w *work) sending(hello Hello) *Message {
	m := &Message{Kind: KindSend, Job: w.job.JobID, DataRoot: w.job.IODataRoot}
	if hello.Has(FeatureDeadline) {
		m.Deadline = w.job.Deadline
	}
	return m
}
