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
		forget := func(id job.ID, run, attempt int) error {
			return w.forgetEarlier(t.Context(), newAttempt(ledger.Claim{Record: job.Record{ID: id, Run: run, Attempt: attempt}}, limits{}))
		}
		acknowledge(l, conn, "a")
		if forget("a", 1, 1) == nil || forget("c", 1, 2) == nil {
			t.Error("a runner that does not take acknowledgements is given a job whose answer it may keep")
		}
		conn.hears = true
		for _, err := range []error{forget("a", 1, 1), forget("a", 1, 1), forget("b", 1, 1), forget("c", 1, 2), forget("d", 2, 1)} {
			if err != nil {
				t.Error(err)
			}
		}
		if want := []string{"ack a", "ack c", "ack d"}; !slices.Equal(conn.calls, want) {
			t.Errorf("got %q, want %q", conn.calls, want)
		}
	})
}
