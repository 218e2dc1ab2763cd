package shepherd

import (
	"context"
	"log/slog"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// A state whose turn has come, but that no writer has taken yet, must not follow
// the final one, even while the ledger does not know of the end.
func TestMirrorNeverFollowsTheFinalState(t *testing.T) {
	s := &states{}
	m := newMirror(processing{}, s, 0, slog.New(slog.DiscardHandler))
	m.note("job")
	id, _, due := m.next()
	if !due || id != "job" {
		t.Fatalf("next is %q, %v", id, due)
	}
	release := m.exclusive("job")
	_ = s.SetStatus(t.Context(), "job", job.Status{State: job.Done})
	release()
	m.write(t.Context(), id)
	if len(s.written) != 1 || s.written[0] != job.Done {
		t.Errorf("written: %v", s.written)
	}

	m.note("job")
	id, _, _ = m.next()
	m.write(t.Context(), id)
	if len(s.written) != 2 || s.written[1] != job.Processing {
		t.Errorf("written: %v, want the new run's state last", s.written)
	}
}

// processing is a ledger whose jobs are all being processed.
type processing struct{ ledger.Ledger }

func (processing) Get(_ context.Context, id job.ID) (job.Record, error) {
	return job.Record{ID: id, State: job.Processing}, nil
}

// states is a store that remembers which states were written.
type states struct {
	storage.Store
	written []job.State
}

func (s *states) SetStatus(_ context.Context, _ job.ID, status job.Status) error {
	s.written = append(s.written, status.State)
	return nil
}
