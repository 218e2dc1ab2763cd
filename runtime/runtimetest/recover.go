package runtimetest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// leave ends a daemon and leaves its runner up.
func (l *life) leave() {
	l.t.Helper()
	l.sheep.Detach()
	if err := l.wait(); !errors.Is(err, runtime.ErrDetached) {
		l.t.Fatalf("after Detach Run returned %v, want %v", err, runtime.ErrDetached)
	}
	if _, err := l.conn.Recv(l.ctx()); !errors.Is(err, messenger.ErrClosed) {
		l.t.Errorf("Recv after Detach: %v, want %v", err, messenger.ErrClosed)
	}
	l.close()
}

// comeBack starts a new daemon, which calls Recover.
func (w *world) comeBack() (*daemon, *runtime.Recovered) {
	w.t.Helper()
	d := w.daemon()
	found := d.recover()
	if found == nil {
		w.t.Fatal("Recover found nothing")
	}
	return d, found
}

func testDetachIdle(t *testing.T, w *world) {
	l := w.up()
	pid := l.pid
	who, _ := l.do("")
	for n := 2; n < 5; n++ {
		l.leave()
		d, found := w.comeBack()
		if !found.Running || found.Model != good || found.Job != "" || len(found.Answers) > 0 || found.Exit != nil || found.Forget != nil {
			t.Fatalf("got %+v, want the running idle runner of %s", found, good)
		}
		l = d.run()
		if l.pid != pid {
			t.Errorf("attached to process %d, was %d", l.pid, pid)
		}
		l.awaitConnected()
		if got, jobs := l.do(""); got != who || jobs != n {
			t.Errorf("job %d was the %d. of runner %d, want of %d", n, jobs, got, who)
		}
	}
	l.leave()
	w.daemon().close()   // a daemon that does not call Recover
	d, _ := w.comeBack() // one that recovers and ends
	d.close()
	d, _ = w.comeBack() // one that loads the same model
	d.load(good)
	l = d.run()
	if l.pid != pid {
		t.Errorf("attached to process %d, was %d", l.pid, pid)
	}
	l.leave()
	w.h.AddModel(t, unversioned, "") // and one that loads another model
	d, _ = w.comeBack()
	defer d.close()
	d.load(unversioned)
	l = d.run()
	if got, jobs := l.do(""); got == who || jobs != 1 {
		t.Errorf("the runner of another model is runner %d with %d jobs, was %d", got, jobs, who)
	}
	l.stopRunner()
}

func testDetachWithJob(t *testing.T, w *world) {
	l := w.up()
	gate := filepath.Join(w.h.DataRoot, "go")
	id := w.prepare("await " + gate)
	l.send(id)
	pid := l.pid
	for range 2 {
		l.leave()
		d, found := w.comeBack()
		if !found.Running || found.Job != id || len(found.Answers) > 0 {
			t.Fatalf("got %+v, want the runner with job %s", found, id)
		}
		l = d.run()
		if l.pid != pid {
			t.Errorf("attached to process %d, was %d", l.pid, pid)
		}
		l.send(id) // does nothing
	}
	defer l.close()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l.recv(id)
	l.ack(id)
	if _, jobs := w.output(id); jobs != 1 {
		t.Errorf("the job was the %d. of its runner, want the first", jobs)
	}
	l.stopRunner()
}

func testDetachAnswered(t *testing.T, w *world) {
	l := w.up()
	var ids []job.ID
	for _, script := range []string{"", "error KeyError", ""} {
		id := w.prepare(script)
		l.send(id)
		l.recv(id)
		ids = append(ids, id)
	}
	l.ack(ids[0])
	for range 2 { // unacknowledged answers are received again
		l.leave()
		d, found := w.comeBack()
		got := jobsOf(found.Answers)
		if !found.Running || found.Job != "" || !slices.Equal(got, ids[1:]) {
			t.Fatalf("got %+v, want answers to %v", found, ids[1:])
		}
		l = d.run()
		if f := l.recv(ids[1]); f == nil || f.Message != "KeyError: 'key'" {
			t.Errorf("got %+v, want the KeyError", f)
		}
		if f := l.recv(ids[2]); f != nil {
			t.Errorf("got %+v, want none", f)
		}
	}
	defer l.close()
	l.ack(ids[2])
	l.ack(ids[1])
	l.do("")
	l.stopRunner()
}

func jobsOf(answers []messenger.Answer) []job.ID {
	var ids []job.ID
	for _, a := range answers {
		ids = append(ids, a.JobID)
	}
	return ids
}

func testDetachExit(t *testing.T, w *world) {
	l := w.up()
	gate := filepath.Join(w.h.DataRoot, "go")
	first := w.prepare("")
	l.send(first)
	l.recv(first)
	id := w.prepare("await " + gate + "\nprint oops\nexit 9")
	l.send(id)
	pid := l.pid
	l.leave()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.awaitGone(pid)
	for range 2 { // until it is forgotten
		d, found := w.comeBack()
		if found.Running {
			// Recover found it just before it ended; then Run reports the exit.
			if exit := d.launch().exit(); exit.Code != 9 {
				t.Errorf("got %+v, want code 9", exit)
			}
			d.close()
			continue
		}
		if found.Model != good || found.Job != id || found.Exit == nil || found.Exit.Code != 9 || found.Exit.LastLog != "oops" {
			t.Errorf("got %+v with exit %+v, want job %s and code 9", found, found.Exit, id)
		}
		if !slices.Equal(jobsOf(found.Answers), []job.ID{first}) {
			t.Errorf("got answers %+v, want that to %s", found.Answers, first)
		}
		d.close()
	}
	d, found := w.comeBack()
	if err := found.Forget(); err != nil {
		t.Error(err)
	}
	d.load(good)
	l = d.run()
	l.do("")
	l.stopRunner()
	d.close()
	if found := w.daemon().recover(); found != nil {
		t.Errorf("after Forget: got %+v, want nothing", found)
	}
}

func testRecoverNothing(t *testing.T, w *world) {
	d := w.daemon()
	if found := d.recover(); found != nil {
		t.Errorf("got %+v in a world where nothing ran", found)
	}
	d.close()
	l := w.up()
	l.do("")
	l.stopRunner()
	l.close()
	d = w.daemon()
	if found := d.recover(); found != nil {
		t.Errorf("got %+v after the runner was stopped", found)
	}
	d.close()
}
