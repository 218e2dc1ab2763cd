package container_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// who is an image as to its users, and who its runner is to be.
type who struct {
	name    string
	entries []testenv.TarEntry
	user    string // of the image
	own     string // of the sheep
	uid     int
	gid     int
}

const passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1001::/home/ada:/bin/sh\n"
const group = "root:x:0:\nada:x:1001:\nvideo:x:44:ada\n"

func plainAccounts() []testenv.TarEntry {
	return []testenv.TarEntry{
		{Name: "etc/", Type: tar.TypeDir},
		{Name: "etc/passwd", Data: []byte(passwd)},
		{Name: "etc/group", Data: []byte(group)},
	}
}

// linkedAccounts are as Nix and similar builders make them.
func linkedAccounts() []testenv.TarEntry {
	return []testenv.TarEntry{
		{Name: "nix/", Type: tar.TypeDir}, {Name: "nix/store/", Type: tar.TypeDir}, {Name: "nix/store/h-base/", Type: tar.TypeDir},
		{Name: "nix/store/h-base/etc/", Type: tar.TypeDir},
		{Name: "nix/store/h-passwd", Data: []byte(passwd)},
		{Name: "nix/store/h-base/etc/passwd", Type: tar.TypeSymlink, Link: "/nix/store/h-passwd"},
		{Name: "nix/store/h-base/etc/group", Data: []byte(group)},
		{Name: "etc", Type: tar.TypeSymlink, Link: "/nix/store/h-base/etc"},
	}
}

func whos() []who {
	outward := []testenv.TarEntry{{Name: "etc/", Type: tar.TypeDir}, {Name: "etc/passwd", Type: tar.TypeSymlink, Link: "../../../../../../etc/passwd"}}
	return []who{
		{"nobody", nil, "", "", 0, 0},
		{"a number", nil, "1000", "", 1000, 0},
		{"a number from the sheep", nil, "", "1000", 1000, 0},
		{"both numbers", nil, "1000:50", "", 1000, 50},
		{"a number and a colon", nil, "1000:", "", 1000, 0},
		{"a group alone", nil, ":50", "", 0, 50},
		{"a name", plainAccounts(), "ada", "", 1000, 1001},
		{"a known number", plainAccounts(), "1000", "", 1000, 1001},
		{"a name and a group", plainAccounts(), "ada:video", "", 1000, 44},
		{"the sheep's instead of the image's", plainAccounts(), "ada", "7:8", 7, 8},
		{"a name behind links", linkedAccounts(), "ada", "", 1000, 1001},
		{"a number behind links", linkedAccounts(), "1000", "", 1000, 1001},
		{"a number and a link out", outward, "12345", "", 12345, 0},
	}
}

// The runner runs as whom Owner names, and its process belongs to them.
func TestOwner(t *testing.T)            { owner(t, testenv.StartContainerd(t)) }
func TestOwnerContainerd2(t *testing.T) { owner(t, testenv.StartContainerd2(t)) }

func owner(t *testing.T, daemon *testenv.Containerd) {
	for i, c := range whos() {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, daemon)
			if c.own != "" {
				w.more = fmt.Sprintf("user: %q\n", c.own)
			}
			config := w.runner()
			config.User = c.user
			m := job.Model{Name: "who", Version: fmt.Sprint("v", i)}
			w.registry.Push(t, m.String(), testenv.Image(t, config, w.base,
				testenv.TarLayer(t, append(c.entries, testenv.TarEntry{Name: "config.yaml", Mode: 0o644})...)))
			h := w.inheritFrom(t, w.driver(t), "dolly")
			o := h.Sheep.(runtime.Owner)
			if uid, gid, err := o.Owner(t.Context(), m); !errdefs.IsNotFound(err) {
				t.Errorf("before it is here: %d:%d, %v; want ErrNotFound", uid, gid, err)
			}
			if err := h.Sheep.Load(t.Context(), m, runtime.Discard); err != nil {
				t.Fatal(err)
			}
			if uid, gid, err := o.Owner(t.Context(), m); err != nil || uid != c.uid || gid != c.gid {
				t.Errorf("the owner is %d:%d, %v; want %d:%d", uid, gid, err, c.uid, c.gid)
			}
			pid := h.Run()
			if uid, gid := idsOf(t, pid); uid != c.uid || gid != c.gid {
				t.Errorf("the runner is %d:%d, want %d:%d", uid, gid, c.uid, c.gid)
			}
			h.StopAndClose()
		})
	}
}

// Runtimes open the files as well, and a FIFO would block them: the start fails at
// once and says so.
func TestOwnerOfFIFOs(t *testing.T)            { ownerOfFIFOs(t, testenv.StartContainerd(t)) }
func TestOwnerOfFIFOsContainerd2(t *testing.T) { ownerOfFIFOs(t, testenv.StartContainerd2(t)) }

func ownerOfFIFOs(t *testing.T, daemon *testenv.Containerd) {
	for _, file := range []string{"etc/passwd", "etc/group"} {
		w := newWorld(t, daemon)
		config := w.runner()
		config.User = "1000:50"
		w.registry.Push(t, model.String(), testenv.Image(t, config, w.base,
			testenv.TarLayer(t, testenv.TarEntry{Name: "etc/", Type: tar.TypeDir}, testenv.TarEntry{Name: file, Type: tar.TypeFifo})))
		h := w.inherit(t)
		h.Load()
		err := h.Sheep.Run(t.Context(), runtime.Discard)
		var load *runtime.LoadError
		if !errors.As(err, &load) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/"+file) || !strings.Contains(err.Error(), "a FIFO: not a regular file") {
			t.Errorf("%s: %v", file, err)
		}
		if _, _, err := h.Sheep.(runtime.Owner).Owner(t.Context(), model); err == nil || !strings.Contains(err.Error(), "a FIFO") {
			t.Errorf("%s: the owner: %v", file, err)
		}
		h.NothingLeft()
	}
}

// idsOf are the user and group that a process runs as.
func idsOf(t *testing.T, pid int) (uid, gid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		switch fields[0] {
		case "Uid:":
			uid, _ = strconv.Atoi(fields[2])
		case "Gid:":
			gid, _ = strconv.Atoi(fields[2])
		}
	}
	return uid, gid
}

// The user is found whatever the snapshotter's mounts are: native's bind mounts,
// and those of erofs, which containerd's mount manager makes.
func TestOwnerBySnapshotter(t *testing.T) {
	for snapshotter, daemon := range map[string]*testenv.Containerd{
		"native": testenv.StartContainerd(t),
		"erofs":  testenv.StartContainerd2(t),
	} {
		t.Run(snapshotter, func(t *testing.T) {
			if snapshotter == "erofs" {
				testenv.Command(t, "mkfs.erofs", "erofs-utils")
			}
			w := newWorld(t, daemon)
			w.more = "snapshotter: " + snapshotter + "\n"
			config := w.runner()
			config.User = "ada"
			w.registry.Push(t, model.String(), testenv.Image(t, config, w.base,
				testenv.TarLayer(t, append(linkedAccounts(), testenv.TarEntry{Name: "config.yaml", Mode: 0o644})...)))
			h := w.inherit(t)
			h.Load()
			if uid, gid, err := h.Sheep.(runtime.Owner).Owner(t.Context(), model); err != nil || uid != 1000 || gid != 1001 {
				t.Errorf("the owner is %d:%d, %v", uid, gid, err)
			}
			if uid, gid := idsOf(t, h.Run()); uid != 1000 || gid != 1001 {
				t.Errorf("the runner is %d:%d", uid, gid)
			}
			h.StopAndClose()
		})
	}
}
