package runtimetest

import (
	"os"
	"strconv"
	"time"
)

// awaitGone waits until no process has the id.
func (w *world) awaitGone(pid int) {
	w.t.Helper()
	gone := w.h.Gone
	if gone == nil {
		gone = func(pid int) bool {
			_, err := os.Stat("/proc/" + strconv.Itoa(pid))
			return err != nil
		}
	}
	for deadline := time.Now().Add(hang); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if gone(pid) {
			return
		}
	}
	w.t.Fatalf("process %d does not end", pid)
}
