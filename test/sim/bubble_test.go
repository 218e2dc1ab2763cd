package sim

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs f on virtual time. It returns when every goroutine that f started has ended, and
// fails the test if one never does.
func bubble(t testing.TB, f func()) {
	t.Helper()
	switch t := t.(type) {
	case *testing.T:
		synctest.Test(t, func(*testing.T) { f() })
	case *testing.B: // which synctest does not support
		inBubble(t, f)
	}
}

// inBubble is bubble for a benchmark: a test of its own runs f.
func inBubble(b *testing.B, f func()) {
	b.Helper()
	ok := testing.RunTests(func(_, _ string) (bool, error) { return true, nil }, []testing.InternalTest{{
		Name: b.Name(), F: func(t *testing.T) { synctest.Test(t, func(*testing.T) { f() }) },
	}})
	if !ok {
		b.Fatal("the bubble failed")
	}
}

// tempDir returns a directory in memory if the machine has one, because every commit syncs.
func tempDir(t testing.TB) string {
	t.Helper()
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "sim-")
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// rest waits, or returns the error of ctx.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
