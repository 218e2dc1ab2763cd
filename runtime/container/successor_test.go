package container_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime/container"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// hang bounds what should come at once: it makes a test that hangs fail.
const hang = 90 * time.Second

var model = job.Model{Name: "digits", Version: "v1"}

// successor is this process as a daemon with one sheep of the world.
type successor struct {
	*runtimetest.Successor
	t testing.TB
	w *world
}

func (w *world) inherit(t testing.TB) *successor {
	return w.inheritFrom(t, w.driver(t), runtimetest.Sheep)
}

func (w *world) inheritFrom(t testing.TB, d *container.Driver, name string) *successor {
	t.Helper()
	s, err := d.NewSheep(name, decode(w.config()))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(w.dataRoot(), name)
	return &successor{runtimetest.NewSuccessor(t, s, dir, model, func() []string { return w.leftovers(t) }), t, w}
}

// up is a sheep with a running runner of the model.
func (w *world) up(t testing.TB, script string) *successor {
	t.Helper()
	w.addModel(t, model, script)
	h := w.inherit(t)
	h.Load()
	h.Run()
	return h
}

// again checks that nothing is left but what tells of the job, and that the sheep
// comes back.
func (h *successor) again() {
	h.t.Helper()
	for _, left := range h.w.leftovers(h.t) {
		if !strings.Contains(left, "/lives/") {
			h.t.Errorf("left behind: %s", left)
		}
	}
	h.Load()
	h.Run()
	h.Do("again", "")
	h.StopAndClose()
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
