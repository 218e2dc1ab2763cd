package shepherd

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// sharedJob is a ledger with one job that has events.
type sharedJob struct {
	*oneJob
	events      []job.Event // the cursor of the first is "1"
	checkpoints map[string]job.Cursor
}

func (l *sharedJob) Checkpoint(_ context.Context, consumer string) (job.Cursor, error) {
	if kept, ok := l.checkpoints[consumer]; ok {
		return kept, nil
	}
	return "", ledger.ErrNotFound
}

func (l *sharedJob) Events(_ context.Context, after job.Cursor, _ ledger.EventFilter, _ int) ([]job.Event, job.Cursor, error) {
	for i, e := range l.events {
		if e.Cursor == after {
			return l.events[i+1:], l.events[len(l.events)-1].Cursor, nil
		}
	}
	return l.events, l.events[len(l.events)-1].Cursor, nil
}

// alive are the other nodes.
type alive struct{ nodes []string }

func (a *alive) Peers(context.Context, string) ([]string, error) { return a.nodes, nil }
func (*alive) Draining(string) bool                              { return false }

// TestStatusOwner has node a follow a job that b and c change, too.
func TestStatusOwner(t *testing.T) {
	queued := func(cursor job.Cursor, origin string) job.Event {
		return job.Event{Cursor: cursor, Job: "job", Kind: job.EventQueued, State: job.Queued, Origin: origin}
	}
	started := func(cursor job.Cursor, node string) job.Event {
		return job.Event{Cursor: cursor, Job: "job", Kind: job.EventStarted, State: job.Processing, Node: node, Sheep: "s"}
	}
	for _, c := range []struct {
		name string
		do   func(f *statusFiles, l *oneJob, s *states)
		want []job.State
	}{
		{"its own", func(f *statusFiles, l *oneJob, _ *states) {
			l.set(job.Queued)
			f.note(queued("1", "a"), false, func(job.Event) {})
			time.Sleep(2 * time.Second)
			l.set(job.Processing)
			f.note(started("2", "a"), false, func(job.Event) {})
		}, []job.State{job.Queued, job.Processing}},
		{"another's", func(f *statusFiles, l *oneJob, _ *states) {
			told := false
			f.note(queued("1", "b"), false, func(job.Event) { told = true })
			f.note(started("2", "c"), false, func(job.Event) {})
			f.note(job.Event{Cursor: "3", Job: "job", Kind: job.EventEnded, Node: "c", Sheep: "s", Status: l.set(job.Done)}, false, func(job.Event) {})
			if !told {
				t.Error("what another writes is not told at once")
			}
		}, nil},
		{"of an unknown node", func(f *statusFiles, l *oneJob, _ *states) {
			l.set(job.Processing)
			f.note(started("1", "d"), false, func(job.Event) {})
		}, []job.State{job.Processing}},
		{"of no node", func(f *statusFiles, l *oneJob, _ *states) {
			l.set(job.Queued)
			f.note(queued("1", ""), false, func(job.Event) {})
		}, []job.State{job.Queued}},
		{"another's that somebody waits for", func(f *statusFiles, l *oneJob, s *states) {
			told := make(chan job.State, 1)
			f.note(job.Event{Cursor: "1", Job: "job", Kind: job.EventEnded, Node: "b", Sheep: "s", Status: l.set(job.Done)}, true, func(job.Event) {
				state, _ := s.last()
				told <- state
			})
			if state := <-told; state != job.Done {
				t.Errorf("an end is told when storage has %q", state)
			}
		}, []job.State{job.Done}},
		{"taken over before it was written", func(f *statusFiles, l *oneJob, _ *states) {
			l.set(job.Processing)
			f.note(queued("1", "a"), false, func(job.Event) {})
			f.note(started("2", "b"), false, func(job.Event) {})
		}, nil},
		{"changed by another while it is written", func(f *statusFiles, l *oneJob, s *states) {
			s.mu.Lock()
			s.slow = 3 * time.Second
			s.mu.Unlock()
			l.set(job.Queued)
			f.note(queued("1", "a"), false, func(job.Event) {})
			time.Sleep(2 * time.Second)
			l.set(job.Processing)
			f.note(started("2", "b"), false, func(job.Event) {})
		}, []job.State{job.Queued, job.Processing}},
		{"changed by another before it was written, as is seen later", func(f *statusFiles, l *oneJob, _ *states) {
			l.set(job.Queued)
			f.note(queued("1", "a"), false, func(job.Event) {})
			time.Sleep(2 * time.Second)
			l.set(job.Processing)
			look := f.owners.look()
			f.note(started("2", "b"), false, func(job.Event) {})
			f.owners.looked(look)
		}, []job.State{job.Queued, job.Processing}},
		{"changed by another since", func(f *statusFiles, l *oneJob, _ *states) {
			l.set(job.Queued)
			f.note(queued("1", "a"), false, func(job.Event) {})
			time.Sleep(2 * time.Second)
			f.owners.looked(f.owners.look())
			l.set(job.Processing)
			f.note(started("2", "b"), false, func(job.Event) {})
		}, []job.State{job.Queued}},
		{"changed by another while storage is away", func(f *statusFiles, l *oneJob, s *states) {
			s.mu.Lock()
			s.fail = context.DeadlineExceeded
			s.mu.Unlock()
			l.set(job.Queued)
			f.note(queued("1", "a"), false, func(job.Event) {})
			time.Sleep(2 * time.Second)
			l.set(job.Processing)
			f.note(started("2", "b"), false, func(job.Event) {})
			s.mu.Lock()
			s.fail = nil
			s.mu.Unlock()
		}, []job.State{job.Processing}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, s := new(oneJob), new(states)
				l.set(job.Queued)
				f := newStatusFiles(l, s, "a", time.Second, slog.New(slog.DiscardHandler))
				f.owners.know([]string{"b", "c"})
				ctx, cancel := context.WithCancel(t.Context())
				stopped := make(chan struct{})
				go func() { f.run(ctx); close(stopped) }()
				c.do(f, l, s)
				time.Sleep(time.Minute)
				cancel()
				<-stopped
				if got := s.all(); !slices.Equal(got, c.want) {
					t.Errorf("a writes %v, want %v", got, c.want)
				}
				if len(f.pending) > 0 {
					t.Errorf("%d states are still to be written", len(f.pending))
				}
			})
		})
	}
}

func (s *states) all() []job.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written
}

// TestSuccession has node b be lost, which had not written that its job is done. What c
// had not written of its own it writes itself.
func TestSuccession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, peers := &sharedJob{oneJob: new(oneJob)}, new(states), &alive{[]string{"b", "c"}}
		status := l.set(job.Done)
		l.checkpoints = map[string]job.Cursor{statusConsumer("b"): "1"}
		l.events = []job.Event{
			{Cursor: "1", Job: "job", Kind: job.EventStarted, State: job.Processing, Node: "b", Sheep: "s"},
			{Cursor: "2", Job: "other", Kind: job.EventStarted, State: job.Processing, Node: "c", Sheep: "s"},
			{Cursor: "3", Job: "job", Kind: job.EventClaimed, State: job.Queued, Node: "b", Sheep: "s"},
			{Cursor: "4", Job: "job", Kind: job.EventEnded, State: job.Done, Node: "b", Sheep: "s", Status: status},
		}
		f := newStatusFiles(l, s, "a", time.Second, slog.New(slog.DiscardHandler))
		after := &successor{ledger: l, peers: peers, status: f, log: slog.New(slog.DiscardHandler)}
		after.look(t.Context())
		for _, e := range l.events {
			f.note(e, false, func(job.Event) {})
		}
		if len(f.pending) > 0 || f.position() != "4" {
			t.Fatalf("while b is alive, a has %d states to write and is at %s", len(f.pending), f.position())
		}
		peers.nodes = []string{"c", "never-began"}
		after.look(t.Context())
		if len(f.pending) != 1 || f.position() != "1" {
			t.Fatalf("when b was lost, a has %d states to write and is at %s", len(f.pending), f.position())
		}
		peers.nodes = []string{"c"}
		after.look(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() { f.run(ctx); close(stopped) }()
		time.Sleep(time.Minute)
		if state, n := s.last(); state != job.Done || n != 1 {
			t.Errorf("a writes %d states, the last one %s", n, state)
		}
		if f.position() != "4" || l.checkpoint() != "4" {
			t.Errorf("a is at %s, as is kept at %s", f.position(), l.checkpoint())
		}
		cancel()
		<-stopped
	})
}
