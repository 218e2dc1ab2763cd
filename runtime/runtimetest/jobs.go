package runtimetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

func testRoundTrip(t *testing.T, w *world) {
	w.h.AddModel(t, unversioned, "")
	d := w.daemon()
	defer d.close()
	d.load(unversioned)
	d.load(unversioned) // idempotent
	l := d.run()
	l.awaitConnected()
	for n := 1; n <= 3; n++ {
		if _, jobs := l.do(""); jobs != n {
			t.Errorf("the runner has had %d jobs, want %d", jobs, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.conn.Recv(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Recv with nothing to receive: %v, want %v", err, context.Canceled)
	}
	l.stopRunner()
}

func testKeptAnswers(t *testing.T, w *world) {
	l := w.up()
	defer l.close()
	var ids []job.ID
	for range messenger.MaxKept {
		id := w.prepare("")
		l.send(id)
		l.recv(id)
		l.send(id) // answered and kept: does nothing
		ids = append(ids, id)
	}
	if err := l.conn.Send(l.ctx(), messenger.Input{JobID: w.prepare(""), IODataRoot: w.h.DataRoot}); err == nil {
		t.Errorf("a job was taken with %d answers not acknowledged", messenger.MaxKept)
	}
	for i := len(ids) - 1; i >= 0; i-- {
		l.ack(ids[i])
	}
	gate := filepath.Join(w.h.DataRoot, "go")
	long := w.prepare("await " + gate)
	l.send(long)
	l.send(long) // under way: does nothing
	if err := l.conn.Send(l.ctx(), messenger.Input{JobID: w.prepare(""), IODataRoot: w.h.DataRoot}); err == nil {
		t.Error("a second job was taken while one is under way")
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l.recv(long)
	l.ack(long)
	if _, jobs := w.output(long); jobs != messenger.MaxKept+1 {
		t.Errorf("the runner has had %d jobs, want %d", jobs, messenger.MaxKept+1)
	}
	l.send(long) // acknowledged: may run again
	l.recv(long)
	l.ack(long)
	l.stopRunner()
}

func testErrorAnswer(t *testing.T, w *world) {
	l := w.up()
	defer l.close()
	for range 2 {
		id := w.prepare("error KeyError")
		l.send(id)
		f := l.recv(id)
		l.ack(id)
		want := job.Failure{Message: "KeyError: 'key'", Type: "<class 'KeyError'>", Traceback: "['  File \"model.py\", line 1']"}
		if f == nil || *f != want {
			t.Errorf("got %+v, want %+v", f, want)
		}
		l.do("")
	}
	l.stopRunner()
}

func testNoise(t *testing.T, w *world) {
	l := w.up()
	defer l.close()
	who, _ := l.do("")
	for _, script := range []string{
		"reply garbage",
		"reply for another-job",
		"reply for ../../etc",
		`reply as {}`,
		`reply as {"message": null}`,
		`reply as {"message": {"identity": "", "job_id": "job-1", "message_type": "InputMessage"}}`,
		`reply as [1, 2, 3]`,
		"reply\nreply",
		"error ValueError\nreply\nreply garbage",
	} {
		id := w.prepare(script)
		l.send(id)
		l.recv(id)
		l.ack(id)
		if got, _ := l.do(""); got != who {
			t.Errorf("after %q the runner is %d, was %d", script, got, who)
		}
	}
	l.stopRunner()
}

func testExits(t *testing.T, w *world) {
	for _, c := range []struct {
		script, signal string
		code           int
	}{
		{"exit 0", "", 0}, {"exit 3", "", 3}, {"print broken\nexit 137", "", 137},
		{"signal SIGKILL", "SIGKILL", -1}, {"signal SIGSEGV", "", 2},
	} {
		if w.h.Init && c.signal != "" {
			continue
		}
		l := w.up()
		id := w.prepare(c.script)
		l.send(id)
		if a, err := l.conn.Recv(l.ctx()); !errors.Is(err, messenger.ErrClosed) {
			t.Errorf("%q: received %+v, %v, want %v", c.script, a, err, messenger.ErrClosed)
		}
		exit := l.exit()
		if exit.Code != c.code || exit.Signal != c.signal || exit.Stopped || exit.Lost || exit.OutOfMemory {
			t.Errorf("%q: got %+v, want code %d, signal %q", c.script, exit, c.code, c.signal)
		}
		l.close()
	}
	l := w.up() // the output's end is told
	defer l.close()
	l.send(w.prepare("print first\nprint last\nexit 1"))
	if exit := l.exit(); exit.LastLog != "first\nlast" {
		t.Errorf("last log %q, want %q", exit.LastLog, "first\nlast")
	}
	l = l.daemon.run() // and it starts again
	l.do("")
	l.stopRunner()
}

func testCrashAtStart(t *testing.T, w *world) {
	w.h.AddModel(t, good, "print no weights\nexit 4")
	d := w.daemon()
	defer d.close()
	d.load(good)
	for range 2 {
		exit := d.launch().exit()
		if exit.Code != 4 || exit.LastLog != "no weights" {
			t.Errorf("got %+v, want code 4 with the log line", exit)
		}
	}
}

func testLateBind(t *testing.T, w *world) {
	w.h.AddModel(t, good, "sleep 300ms")
	d := w.daemon()
	defer d.close()
	d.load(good)
	l := d.run()
	l.do("") // sent before it has bound
	l.stopRunner()
}

func testNonsense(t *testing.T, w *world) {
	w.h.AddModel(t, good, "serve HTTP")
	d := w.daemon()
	defer d.close()
	d.load(good)
	if exit := d.run().exit(); exit.Detail == "" || exit.Stopped {
		t.Errorf("got %+v, want to be told what is wrong", exit)
	}
}

func testLastAnswer(t *testing.T, w *world) {
	l := w.up()
	defer l.close()
	id := w.prepare("reply\nexit 5")
	l.send(id)
	if exit := l.exit(); exit.Code != 5 {
		t.Errorf("got %+v, want code 5", exit)
	}
	l.recv(id)
	if _, err := l.conn.Recv(l.ctx()); !errors.Is(err, messenger.ErrClosed) {
		t.Errorf("after the last answer: %v, want %v", err, messenger.ErrClosed)
	}
	l.ack(id) // what came before the end can be acknowledged after it
	if err := l.conn.Ack(l.ctx(), id); !errors.Is(err, messenger.ErrClosed) {
		t.Errorf("acknowledged twice: %v, want %v", err, messenger.ErrClosed)
	}
}

func testConnectionLost(t *testing.T, w *world) {
	l := w.up()
	defer l.close()
	l.send(w.prepare("unbind"))
	if exit := l.exit(); exit.Detail == "" || exit.Stopped || exit.Lost {
		t.Errorf("got %+v, want to be told that the connection was lost", exit)
	}
}

func testIgnoresTERM(t *testing.T, w *world) {
	w.h.AddModel(t, good, "ignore TERM")
	d := w.daemon()
	defer d.close()
	d.load(good)
	l := d.run()
	l.do("")
	l.stop()
	if exit := l.exit(); !exit.Stopped || exit.Signal != "SIGKILL" || exit.OutOfMemory {
		t.Errorf("got %+v, want stopped by SIGKILL", exit)
	}
}

func testForks(t *testing.T, w *world) {
	for _, end := range []string{"", "exit 0", "signal SIGKILL"} {
		if w.h.Init && end == "signal SIGKILL" {
			continue
		}
		l := w.up()
		l.do("fork\nfork")
		if len(w.h.Leftovers(t)) == 0 {
			t.Error("the harness does not see what a living runner has started")
		}
		if end == "" {
			l.stopRunner()
		} else {
			l.send(w.prepare(end))
			l.exit()
		}
		l.close()
		for _, left := range w.h.Leftovers(t) {
			t.Errorf("%q left behind %s", end, left)
		}
	}
}

func testSwitchModel(t *testing.T, w *world) {
	l := w.up()
	defer l.close()
	first := l.pid
	old := l.conn
	l.stopRunner()
	w.h.AddModel(t, unversioned, "")
	l.load(unversioned)
	l = l.daemon.run()
	if l.pid == first {
		t.Errorf("the runner of another model is the same process, %d", first)
	}
	l.do("")
	if _, err := old.Recv(l.ctx()); !errors.Is(err, messenger.ErrClosed) {
		t.Errorf("the connection of an earlier Run: %v, want %v", err, messenger.ErrClosed)
	}
	l.stopRunner()
}

func testContexts(t *testing.T, w *world) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	w.h.AddModel(t, good, "")
	d := w.daemon()
	defer d.close()
	if err := d.sheep.Load(ended, good, runtime.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("Load: %v, want %v", err, context.Canceled)
	}
	d.load(good)
	if err := d.sheep.Run(ended, runtime.Discard); err == nil {
		t.Error("Run with an ended context returned nil")
	}
	l := d.launch() // ended at any moment of the start
	l.stop()
	l.wait()
	for wait := time.Millisecond; wait < 100*time.Millisecond; wait = wait * 3 / 2 {
		l := d.launch()
		timer := time.AfterFunc(wait, l.stop)
		if err := l.wait(); errdefs.IsUnavailable(err) {
			t.Errorf("stopped after %v: %v", wait, err)
		}
		timer.Stop()
		for _, left := range w.h.Leftovers(t) {
			t.Errorf("stopped after %v: left behind %s", wait, left)
		}
	}
	l = d.run()
	l.do("")
	if err := l.conn.Send(ended, messenger.Input{JobID: "x"}); err == nil {
		t.Error("Send with an ended context returned nil")
	}
	l.stopRunner()
}

func testTrace(t *testing.T, w *world) {
	traced := job.Model{Name: "traced", Version: "v1"}
	trace := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", State: "a=1,b=2"}
	w.h.AddModel(t, traced, "expect TRACEPARENT="+trace.Parent+"\nexpect TRACESTATE="+trace.State)
	t.Setenv("TRACEPARENT", "00-11111111111111111111111111111111-2222222222222222-01") // the daemon's own
	d := w.daemon()
	defer d.close()
	d.trace = trace
	d.load(traced)
	l := d.run()
	l.awaitConnected()
	l.do("")
	l.stopRunner()
}
