// Package testenv provides the real services that tests run against. If one is missing, the
// test is skipped by name, except under CI=true, where it fails: a check that is silently
// skipped is worthless.
package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/iterait/shepherd/internal/port"
)

// Missing ends the test: skipped, or failed under CI=true.
func Missing(t testing.TB, what, next string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: %s", what, next)
	}
	t.Skipf("%s is missing: %s", what, next)
}

// Command returns the path of a program of Debian's package pkg.
func Command(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name, "install it with apt-get install "+pkg)
	}
	return path
}

// Python returns a Python that can import the module of Debian package pkg.
// Debian's own interpreter comes first: it is the one Debian's modules are for.
func Python(t testing.TB, module, pkg string) string {
	t.Helper()
	for _, candidate := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(candidate, "-c", "import "+module).Run() == nil {
			return candidate
		}
	}
	Missing(t, "Python module "+module, "install it with apt-get install "+pkg)
	return ""
}

// FreePort returns a TCP port that nothing listens on, and that no connection of a
// client takes. No other test gets it, in this process or another, until the test ends, so a
// server can be started on it later.
func FreePort(t testing.TB) int {
	t.Helper()
	var failed error
	for range 1000 {
		n, err := port.Free("")
		if err == nil {
			var reserved net.Listener
			if reserved, err = net.Listen("unix", fmt.Sprintf("@shepherd-test-port-%d", n)); err == nil { // "@": it has no file
				t.Cleanup(func() { reserved.Close() })
				return n
			}
		}
		failed = err
	}
	t.Fatalf("no port is free: %v", failed)
	return 0
}

// moduleRoot returns the nearest folder above the test's that has go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		t.Fatal("no go.mod above the test's folder")
	}
}
