package runtimetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// Prepare creates a job in the sheep's directory. Its input is a script for RunnerMain.
func Prepare(t testing.TB, sheepDir string, id job.ID, script string) {
	t.Helper()
	dir := filepath.Join(sheepDir, string(id))
	for _, d := range []string{job.InputDir, job.OutputDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, job.InputDir, job.DefaultInput), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Successor makes this process act as a daemon with one sheep, for example as the successor of
// a daemon that was killed.
type Successor struct {
	Sheep runtime.Sheep
	Found *runtime.Recovered // Recover's result
	Conn  messenger.Conn     // set by Run
	Stop  context.CancelFunc // ends the Run; set by Run

	t     testing.TB
	dir   string
	model job.Model
	left  func() []string
	done  chan error
}

// NewSuccessor calls the sheep's Recover. dir is the directory of its jobs. left lists what the
// sheep has left on the machine, which must be nothing after Close.
func NewSuccessor(t testing.TB, sheep runtime.Sheep, dir string, m job.Model, left func() []string) *Successor {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	found, err := sheep.(runtime.Recoverer).Recover(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &Successor{t: t, Sheep: sheep, Found: found, dir: dir, model: m, left: left}
}

// Load loads the model.
func (h *Successor) Load() {
	h.t.Helper()
	if err := h.Sheep.Load(h.t.Context(), h.model, runtime.Discard); err != nil {
		h.t.Fatal(err)
	}
}

// Run attaches to the runner or starts one, and returns its process id.
func (h *Successor) Run() int {
	h.t.Helper()
	return h.RunUntil(runtime.Starting).PID
}

// RunUntil attaches to the runner or starts one, and returns the event that reports the
// stage.
func (h *Successor) RunUntil(stage runtime.Stage) runtime.Event {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	h.Stop, h.done = cancel, make(chan error, 1)
	reached := make(chan runtime.Event, 1)
	go func() {
		h.done <- h.Sheep.Run(ctx, func(e runtime.Event) {
			if e.Stage == stage {
				reached <- e
			}
		})
		close(reached)
	}()
	select {
	case e, ok := <-reached:
		if !ok {
			h.t.Fatalf("Run: %v", <-h.done)
		}
		h.Conn = h.Sheep.Conn()
		return e
	case <-time.After(hang):
		h.t.Fatalf("Run does not get to %s", stage)
	}
	return runtime.Event{}
}

// Prepare creates a job whose input is the script.
func (h *Successor) Prepare(id job.ID, script string) {
	h.t.Helper()
	Prepare(h.t, h.dir, id, script)
}

// Send sends the runner a job with the script.
func (h *Successor) Send(id job.ID, script string) {
	h.t.Helper()
	h.Prepare(id, script)
	if err := h.Conn.Send(h.t.Context(), messenger.Input{JobID: id}); err != nil {
		h.t.Fatal(err)
	}
}

// Recv waits for the job's answer, expects that the job is done, and acknowledges it.
func (h *Successor) Recv(want job.ID) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), hang)
	defer cancel()
	a, err := h.Conn.Recv(ctx)
	if err != nil || a.JobID != want || a.Failure != nil {
		h.t.Fatalf("received %+v, %v, want that %s is done", a, err, want)
	}
	if err := h.Conn.Ack(ctx, want); err != nil {
		h.t.Fatal(err)
	}
}

// Do runs a job and expects that it is done.
func (h *Successor) Do(id job.ID, script string) {
	h.t.Helper()
	h.Send(id, script)
	h.Recv(id)
}

// Output returns the output of a job: the runner that processed it, and how many jobs that
// runner had processed.
func (h *Successor) Output(id job.ID) (who, jobs string) {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.dir, string(id), job.OutputDir, job.DefaultOutput))
	if err != nil {
		h.t.Fatal(err)
	}
	who, jobs, ok := strings.Cut(string(data), " ")
	if !ok {
		h.t.Fatalf("the output of job %s is %q", id, data)
	}
	return who, jobs
}

// Wait waits until Run has returned.
func (h *Successor) Wait() error {
	h.t.Helper()
	select {
	case err := <-h.done:
		return err
	case <-time.After(hang):
		h.t.Fatal("Run does not return")
		return nil
	}
}

// Exit waits until the runner has ended.
func (h *Successor) Exit() *runtime.Exit {
	h.t.Helper()
	err := h.Wait()
	var exit *runtime.Exit
	if !errors.As(err, &exit) {
		h.t.Fatalf("Run: %T %v, want *runtime.Exit", err, err)
	}
	return exit
}

// StopAndClose stops the runner and closes the sheep; nothing of it may be left.
func (h *Successor) StopAndClose() {
	h.t.Helper()
	h.StopRunner()
	h.Close()
}

// StopRunner stops the runner and does not close the sheep.
func (h *Successor) StopRunner() {
	h.t.Helper()
	h.Stop()
	if exit := h.Exit(); !exit.Stopped {
		h.t.Errorf("Run: %+v, want that it was stopped", exit)
	}
}

// Close closes the sheep; nothing of it may be left.
func (h *Successor) Close() {
	h.t.Helper()
	if err := h.Sheep.Close(h.t.Context()); err != nil {
		h.t.Error(err)
	}
	h.NothingLeft()
}

// NothingLeft checks that nothing of the sheep is left on the machine.
func (h *Successor) NothingLeft() {
	h.t.Helper()
	for _, left := range h.left() {
		h.t.Errorf("left behind: %s", left)
	}
}
