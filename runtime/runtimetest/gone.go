package runtimetest

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// awaitGone waits until there is no process with the id.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(hang); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
			return
		}
	}
	t.Fatalf("process %d does not end", pid)
}
