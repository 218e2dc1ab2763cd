package container_test

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
	"github.com/iterait/shepherd/runtime/container"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// hang bounds what should come at once: it makes a test that hangs fail.
const hang = 90 * time.Second

var model = job.Model{Name: "digits", Version: "v1"}

// heir is this process as a daemon with one sheep, perhaps after another.
type heir struct {
	t     testing.TB
	w     *world
	name  string
	sheep runtime.Sheep
	found *runtime.Recovered
	conn  messenger.Conn
	done  chan error
	stop  context.CancelFunc
}

func (w *world) inherit(t testing.TB) *heir { return w.inheritFrom(t, w.driver(t), runtimetest.Sheep) }

func (w *world) inheritFrom(t testing.TB, d *container.Driver, name string) *heir {
	t.Helper()
	s, err := d.NewSheep(name, decode(w.config()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	found, err := s.(runtime.Recoverer).Recover(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &heir{t: t, w: w, name: name, sheep: s, found: found}
}

// up is a sheep with a running runner of the model.
func (w *world) up(t testing.TB, script string) *heir {
	t.Helper()
	w.addModel(t, model, script)
	h := w.inherit(t)
	h.load()
	h.run()
	return h
}

func (h *heir) load() {
	h.t.Helper()
	if err := h.sheep.Load(h.t.Context(), model, runtime.Discard); err != nil {
		h.t.Fatal(err)
	}
}

// run attaches to the runner or starts one, and returns its process id.
func (h *heir) run() int {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	h.stop, h.done = cancel, make(chan error, 1)
	started := make(chan int, 1)
	go func() {
		h.done <- h.sheep.Run(ctx, func(e runtime.Event) {
			if e.Stage == runtime.Starting {
				started <- e.PID
			}
		})
	}()
	select {
	case pid := <-started:
		h.conn = h.sheep.Conn()
		return pid
	case err := <-h.done:
		h.t.Fatalf("Run: %v", err)
	case <-time.After(hang):
		h.t.Fatal("Run does not start")
	}
	return 0
}

// prepare makes a job whose input is the script.
func (h *heir) prepare(id job.ID, script string) {
	h.t.Helper()
	dir := filepath.Join(h.w.dataRoot(), h.name, string(id))
	for _, d := range []string{job.InputDir, job.OutputDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, job.InputDir, job.DefaultInput), []byte(script), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *heir) send(id job.ID, script string) {
	h.t.Helper()
	h.prepare(id, script)
	if err := h.conn.Send(h.t.Context(), messenger.Input{JobID: id}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *heir) recv(want job.ID) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), hang)
	defer cancel()
	a, err := h.conn.Recv(ctx)
	if err != nil || a.JobID != want || a.Failure != nil {
		h.t.Fatalf("received %+v, %v, want that %s is done", a, err, want)
	}
	if err := h.conn.Ack(ctx, want); err != nil {
		h.t.Fatal(err)
	}
}

func (h *heir) do(id job.ID, script string) {
	h.t.Helper()
	h.send(id, script)
	h.recv(id)
}

// output is who did the job, and how many it had had.
func (h *heir) output(id job.ID) (who, jobs string) {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.w.dataRoot(), h.name, string(id), job.OutputDir, job.DefaultOutput))
	if err != nil {
		h.t.Fatal(err)
	}
	who, jobs, _ = strings.Cut(string(data), " ")
	return who, jobs
}

func (h *heir) wait() error {
	h.t.Helper()
	select {
	case err := <-h.done:
		return err
	case <-time.After(hang):
		h.t.Fatal("Run does not return")
		return nil
	}
}

func (h *heir) exit() *runtime.Exit {
	h.t.Helper()
	err := h.wait()
	var exit *runtime.Exit
	if !errors.As(err, &exit) {
		h.t.Fatalf("Run: %T %v, want *runtime.Exit", err, err)
	}
	return exit
}

// again checks that nothing is left but what tells of the job, and that the sheep
// comes back.
func (h *heir) again() {
	h.t.Helper()
	for _, left := range h.w.leftovers(h.t) {
		if !strings.Contains(left, "/lives/") {
			h.t.Errorf("left behind: %s", left)
		}
	}
	h.load()
	h.run()
	h.do("again", "")
	h.slaughter()
}

// slaughter stops the runner; nothing may be left.
func (h *heir) slaughter() {
	h.t.Helper()
	h.stop()
	if exit := h.exit(); !exit.Stopped {
		h.t.Errorf("Run: %+v, want that it was stopped", exit)
	}
	h.close()
}

func (h *heir) close() {
	h.t.Helper()
	if err := h.sheep.Close(h.t.Context()); err != nil {
		h.t.Error(err)
	}
	h.nothingLeft()
}

func (h *heir) nothingLeft() {
	h.t.Helper()
	for _, left := range h.w.leftovers(h.t) {
		h.t.Errorf("left behind: %s", left)
	}
}

// task is the id of the world's one task.
func (w *world) task(t testing.TB) string {
	t.Helper()
	tasks := strings.Fields(w.daemon.Ctr(t, namespace, "tasks", "ls", "-q"))
	if len(tasks) != 1 {
		t.Fatalf("the tasks are %q, want one", tasks)
	}
	return tasks[0]
}

func contextWithHang(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), hang)
}
