// Package messengertest is the conformance suite of messenger.Conn, with well-behaved and
// misbehaving runners.
//
// An implementation's test starts a runner that uses an Actor, and connects the Conn under
// test to it:
//
//	func TestConn(t *testing.T) {
//		messengertest.Run(t, func(t *testing.T, bind <-chan struct{}) messengertest.Bench {
//			// start a runner that waits for bind, then binds and lets an Actor act
//			return messengertest.Bench{Conn: conn, Reconnect: func(t *testing.T) messenger.Conn { … }}
//		})
//	}
package messengertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// Bench is one runner and a connection to it. The start function registers its cleanup
// with t.Cleanup.
type Bench struct {
	Conn messenger.Conn
	// Reconnect drops the present connection, as the end of its process would, and
	// returns a new one to the same runner. It is nil for an implementation whose runners
	// do not outlive the process; tests that need it are then skipped.
	Reconnect func(t *testing.T) messenger.Conn
}

// hang is the time limit of each test.
const hang = 2 * time.Minute

// Run runs the suite. It calls start once for each test. The runner must not bind its
// socket before bind is closed.
func Run(t *testing.T, start func(t *testing.T, bind <-chan struct{}) Bench) {
	bound := make(chan struct{})
	close(bound)
	for _, c := range []struct {
		name      string
		reconnect bool
		test      func(*talk)
	}{
		{"answers", false, testAnswers},
		{"noise", false, testNoise},
		{"duplicate answers", false, testDuplicateAnswers},
		{"the same job again", false, testSameJobAgain},
		{"next before ack", false, testNextBeforeAck},
		{"answers kept", false, testKept},
		{"impatient receiver", false, testImpatience},
		{"answer before the end", false, testAnswerBeforeEnd},
		{"end without an answer", false, testEnd},
		{"unacknowledged answers are repeated", true, testAgain},
		{"job continues without a connection", true, testGoesOn},
	} {
		t.Run(c.name, func(t *testing.T) {
			bench := start(t, bound)
			if c.reconnect && bench.Reconnect == nil {
				t.Skip("runners of this implementation do not outlive the process")
			}
			c.test(newTalk(t, bench))
		})
	}
	t.Run("send before bind", func(t *testing.T) {
		bind := make(chan struct{})
		x := newTalk(t, start(t, bind))
		x.send("done-1")
		close(bind)
		x.recv("done-1")
	})
}

func testAnswers(x *talk) {
	x.send("done-1")
	x.recv("done-1")
	x.ack("done-1")
	x.send("fail-1")
	if a := x.recvAny(); a.JobID != "fail-1" || a.Failure == nil || *a.Failure != Failed {
		x.t.Fatalf("got %+v with %+v; expected fail-1 with %+v", a, a.Failure, Failed)
	}
	x.ack("fail-1")
	x.send("done-1") // an acknowledged job may be run again
	x.recv("done-1")
}

func testNoise(x *talk) {
	for _, id := range []job.ID{"noise-1", "done-2", "noise-3"} {
		x.send(id)
		x.recv(id)
		x.ack(id)
	}
}

func testDuplicateAnswers(x *talk) {
	for _, id := range []job.ID{"twice-1", "done-2", "again-3", "done-4", "twice-5", "again-6"} {
		x.send(id)
		x.recv(id)
		x.ack(id)
	}
}

func testSameJobAgain(x *talk) {
	x.send("wait-1")
	x.send("wait-1")
	x.release("wait-1")
	x.recv("wait-1")
	x.send("wait-1") // its answer is kept
	x.given("wait-1", 1)
	x.ack("wait-1")
}

func testNextBeforeAck(x *talk) {
	for _, id := range []job.ID{"done-1", "done-2", "done-3"} {
		x.send(id)
		x.recv(id)
	}
	for _, id := range []job.ID{"done-2", "done-3", "done-1"} {
		x.ack(id)
	}
	x.send("done-4")
	x.recv("done-4")
}

func testKept(x *talk) {
	for i := range messenger.MaxKept {
		id := job.ID(fmt.Sprintf("done-%d", i))
		x.send(id)
		x.recv(id)
	}
	if err := x.conn.Send(x.ctx, x.input("done-more")); err == nil {
		x.t.Fatalf("sent a job while %d answers are kept", messenger.MaxKept)
	}
	x.ack("done-3")
	x.send("done-more")
	x.recv("done-more")
}

func testImpatience(x *talk) {
	x.send("wait-1")
	ctx, cancel := context.WithCancel(x.ctx)
	cancel()
	if a, err := x.conn.Recv(ctx); !errors.Is(err, context.Canceled) {
		x.t.Fatalf("Recv with an ended context: %+v, %v", a, err)
	}
	x.release("wait-1")
	x.recv("wait-1")
}

func testAnswerBeforeEnd(x *talk) {
	x.send("done-1")
	x.recv("done-1")
	x.send("exit-2")
	x.recv("exit-2")
	x.closed()
}

func testEnd(x *talk) {
	x.send("die-1")
	x.closed()
}

func testAgain(x *talk) {
	for _, id := range []job.ID{"done-1", "fail-2", "done-3"} {
		x.send(id)
		if a := x.recvAny(); a.JobID != id {
			x.t.Fatalf("got %+v, expected the answer to %s", a, id)
		}
	}
	x.ack("done-1")
	for range 2 {
		x.reconnect()
		if a := x.recvAny(); a.JobID != "fail-2" || a.Failure == nil || *a.Failure != Failed {
			x.t.Fatalf("got %+v; expected fail-2 again, whole", a)
		}
		x.recv("done-3")
	}
	x.ack("fail-2")
	x.ack("done-3")
	x.reconnect()
	x.send("done-4")
	x.recv("done-4")
	x.ack("done-4")
	x.given("fail-2", 1)
}

func testGoesOn(x *talk) {
	x.send("wait-1")
	x.reconnect()
	x.send("wait-1") // it is under way still
	x.release("wait-1")
	x.recv("wait-1")
	x.reconnect()
	x.recv("wait-1")
	x.ack("wait-1")
	x.given("wait-1", 1)
}

// talk is one test's conversation.
type talk struct {
	t     *testing.T
	ctx   context.Context
	bench Bench
	conn  messenger.Conn
	root  string
}

func newTalk(t *testing.T, bench Bench) *talk {
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	return &talk{t: t, ctx: ctx, bench: bench, conn: bench.Conn, root: t.TempDir()}
}

func (x *talk) input(id job.ID) messenger.Input {
	return messenger.Input{JobID: id, IODataRoot: x.root}
}

func (x *talk) send(id job.ID) {
	x.t.Helper()
	if err := x.conn.Send(x.ctx, x.input(id)); err != nil {
		x.t.Fatalf("send %s: %v", id, err)
	}
}

func (x *talk) recvAny() messenger.Answer {
	x.t.Helper()
	a, err := x.conn.Recv(x.ctx)
	if err != nil {
		x.t.Fatalf("receive: %v", err)
	}
	return a
}

// recv receives an answer and expects that the job is done.
func (x *talk) recv(id job.ID) {
	x.t.Helper()
	if a := x.recvAny(); a.JobID != id || a.Failure != nil {
		x.t.Fatalf("got the answer %+v with failure %+v; expected that %s is done", a, a.Failure, id)
	}
}

func (x *talk) ack(id job.ID) {
	x.t.Helper()
	if err := x.conn.Ack(x.ctx, id); err != nil {
		x.t.Fatalf("acknowledge %s: %v", id, err)
	}
}

func (x *talk) release(id job.ID) {
	x.t.Helper()
	if err := os.WriteFile(Release(x.input(id)), nil, 0o644); err != nil {
		x.t.Fatal(err)
	}
}

func (x *talk) reconnect() {
	x.t.Helper()
	x.conn = x.bench.Reconnect(x.t)
}

// given expects that the runner has received the job that many times.
func (x *talk) given(id job.ID, times int) {
	x.t.Helper()
	x.send("count-" + id)
	a := x.recvAny()
	if a.JobID != "count-"+id || a.Failure == nil {
		x.t.Fatalf("got %+v, expected the answer to count-%s", a, id)
	}
	if want := fmt.Sprint(times); a.Failure.Message != want {
		x.t.Fatalf("the runner was given %s %s times, expected %s", id, a.Failure.Message, want)
	}
	x.ack("count-" + id)
}

// closed expects that Recv and Send return ErrClosed.
func (x *talk) closed() {
	x.t.Helper()
	if a, err := x.conn.Recv(x.ctx); !errors.Is(err, messenger.ErrClosed) {
		x.t.Fatalf("Recv after the runner's end: %+v, %v", a, err)
	}
	if err := x.conn.Send(x.ctx, x.input("done-late")); !errors.Is(err, messenger.ErrClosed) {
		x.t.Fatalf("Send after the runner's end: %v", err)
	}
}
