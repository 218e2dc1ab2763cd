package container_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
)

// What is mounted below a read-only mount is read-only, too.
func TestReadOnlyMounts(t *testing.T) {
	claims.Hold(t, "M1")
	readOnlyMounts(t, testenv.StartContainerd(t))
}

func TestReadOnlyMountsContainerd2(t *testing.T) { readOnlyMounts(t, testenv.StartContainerd2(t)) }

func readOnlyMounts(t *testing.T, daemon *testenv.Containerd) {
	source := t.TempDir()
	below := filepath.Join(source, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(below, unix.MNT_DETACH) })
	w := newWorld(t, daemon)
	w.mounts = []string{source}
	w.more = "mounts: [\"" + source + ":/weights:ro\", \"" + source + ":/scratch\"]\n"
	h := w.up(t, "")
	h.Do("a", "readonly /weights/x\nreadonly /weights/below/x\nwrite /scratch/x\nwrite /scratch/below/x")
	h.StopAndClose()
}

// A runner that ends of a limit of its container says which key sets it.
func TestEndsNameTheLimit(t *testing.T)            { endsNameTheLimit(t, testenv.StartContainerd(t)) }
func TestEndsNameTheLimitContainerd2(t *testing.T) { endsNameTheLimit(t, testenv.StartContainerd2(t)) }

func endsNameTheLimit(t *testing.T, daemon *testenv.Containerd) {
	for _, c := range []struct{ script, want string }{
		{"print OSError: [Errno -3] Temporary failure in name resolution\nexit 1", "exit code 1; it has no network (`network: none`)"},
		{"print ERROR: insufficient shared memory (shm)\nexit 1", "`shm_size`"},
		{"print RuntimeError: can't start new thread\nexit 1", "`pids`"},
	} {
		w := newWorld(t, daemon)
		h := w.up(t, "")
		h.Send("a", c.script)
		if exit := h.Exit(); exit.Code != 1 || !strings.Contains(exit.Error(), c.want) {
			t.Errorf("got %v, want %q", exit, c.want)
		}
		h.again()
	}
}
