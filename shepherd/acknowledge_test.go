package shepherd

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
)

// deafConn is a connection whose runner does not take acknowledgements until it hears.
type deafConn struct {
	hears bool
	calls []string
}

func (c *deafConn) Send(_ context.Context, in messenger.Input) error {
	c.calls = append(c.calls, "send "+string(in.JobID))
	return nil
}

func (c *deafConn) Recv(ctx context.Context) (messenger.Answer, error) {
	<-ctx.Done()
	return messenger.Answer{}, ctx.Err()
}

func (c *deafConn) Ack(_ context.Context, id job.ID) error {
	if !c.hears {
		return errors.New("the shim does not answer")
	}
	c.calls = append(c.calls, "ack "+string(id))
	return nil
}

// A job whose id was used before, and removed, is not taken for the earlier one by a runner
// that still keeps that one's answer: it would never be run.
func TestAnswerOfARemovedJobIsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := new(deafConn)
		l := &lane{services: &services{}, log: slog.New(slog.DiscardHandler)}
		l.concluder = newConcluder(l)
		w := &worker{lane: l, supervisor: &supervisor{lane: l, runner: &runner{conn: conn}}}
		give := func(id job.ID) {
			t.Helper()
			a := newAttempt(ledger.Claim{Record: job.Record{ID: id, Run: 1, Attempt: 1}}, limits{})
			a.dir = new(workdir)
			if err := w.send(t.Context(), a); err != nil {
				t.Error(err)
			}
		}
		acknowledge(l, conn, "a")
		conn.hears = true
		give("a")
		give("a")
		acknowledge(l, conn, "b")
		give("b")
		if want := []string{"ack a", "send a", "send a", "ack b", "send b"}; !slices.Equal(conn.calls, want) {
			t.Errorf("got %q, want %q", conn.calls, want)
		}
	})
}
