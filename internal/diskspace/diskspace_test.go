package diskspace

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

func TestFloor(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("shepherd-test", dir, "tmpfs", 0, "size=16m"); err != nil {
		testenv.Missing(t, "mounting a tmpfs", "run the tests as root: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	if err := os.WriteFile(filepath.Join(dir, "4MiB"), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		free, more int64
		low        bool
	}{
		{0, 1 << 40, false},
		{1 << 20, 0, false},
		{1 << 20, 10 << 20, false},
		{1 << 20, 12 << 20, true},
		{1 << 20, -1, false},
		{1 << 40, 0, false}, // half of the disk: 8 MiB of the 12
		{1 << 40, 5 << 20, true},
	} {
		err := Floor{Path: dir, Free: c.free}.Check(c.more)
		var low *LowError
		if errors.As(err, &low) != c.low || c.low != errdefs.IsResourceExhausted(err) {
			t.Errorf("%d bytes more with %d to stay free: %v", c.more, c.free, err)
		}
		if c.low && !strings.Contains(err.Error(), dir) {
			t.Errorf("does not name the disk: %v", err)
		}
	}
	if got := (Floor{Path: dir}).Capacity(); got != 16<<20 {
		t.Errorf("a disk of 16 MiB has %d bytes", got)
	}
	if got := (Floor{Path: dir + "/gone"}).Capacity(); got != 0 {
		t.Errorf("a disk that cannot be asked has %d bytes", got)
	}
	if err := (Floor{Path: dir + "/gone", Free: 1}).Check(1); err != nil {
		t.Errorf("a disk that cannot be asked: %v", err)
	}
}
