package doctor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

func TestPrograms(t *testing.T) {
	bin := t.TempDir()
	write(t, filepath.Join(bin, "runc"), "#!/bin/sh\necho runc version 9.9\necho more\n", 0o755)
	write(t, filepath.Join(bin, "crun"), "", 0o644)
	t.Setenv("PATH", bin)
	check := Programs{Title: "programs", Needed: map[string]string{"runc": "install runc"}}
	findings := check.Examine(t.Context())
	healthy(t, findings)
	expect(t, findings, OK, bin+"/runc, runc version 9.9", "")

	check.Needed[filepath.Join(bin, "crun")] = "install crun"
	expect(t, check.Examine(t.Context()), Failure, "crun", "make it executable")

	t.Setenv("PATH", t.TempDir())
	expect(t, check.Examine(t.Context()), Failure, "runc is not on PATH", "install runc")
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestCgroups(t *testing.T) {
	for _, f := range (Cgroups{Root: "/sys/fs/cgroup"}).Examine(t.Context()) {
		if f.Level == Failure {
			t.Errorf("this machine, which runs containers: %+v", f)
		}
	}

	v2 := t.TempDir()
	write(t, filepath.Join(v2, "cgroup.controllers"), "cpuset cpu io memory pids\n", 0o644)
	healthy(t, Cgroups{Root: v2}.Examine(t.Context()))
	write(t, filepath.Join(v2, "cgroup.controllers"), "cpuset cpu\n", 0o644)
	expect(t, Cgroups{Root: v2}.Examine(t.Context()), Failure, "lacks the controllers memory, pids", "enable them")

	v1 := t.TempDir()
	for _, name := range []string{"cpu", "memory", "devices"} {
		write(t, filepath.Join(v1, name, "cgroup.procs"), "", 0o644)
	}
	expect(t, Cgroups{Root: v1}.Examine(t.Context()), Failure, "lacks the hierarchies pids", "mount them")
	write(t, filepath.Join(v1, "pids", "cgroup.procs"), "", 0o644)
	expect(t, Cgroups{Root: v1}.Examine(t.Context()), Warning, "swap is not accounted", "swapaccount=1")
	write(t, filepath.Join(v1, "memory", "memory.memsw.limit_in_bytes"), "", 0o644)
	healthy(t, Cgroups{Root: v1}.Examine(t.Context()))

	expect(t, Cgroups{Root: filepath.Join(v1, "none")}.Examine(t.Context()), Failure, "no control groups", "mount")
}

// TestUnmounted examines a directory on a file system that is not mounted yet.
func TestUnmounted(t *testing.T) {
	check := Disks{Paths: map[string]string{"data_root": "/scratch/data"}, Unmounted: func(string) (string, error) { return "/scratch", nil }}
	expect(t, check.Examine(t.Context()), Failure, "data_root (/scratch/data) lies on /scratch", "mount /scratch")
}

// TestDisks fills a real file system.
func TestDisks(t *testing.T) {
	disk := t.TempDir()
	mount := func(data string, flags uintptr) {
		t.Helper()
		err := unix.Mount("tmpfs", disk, "tmpfs", flags, data)
		if errors.Is(err, unix.EPERM) {
			testenv.Missing(t, "the right to mount", "run the tests as root")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mount("size=8m,nr_inodes=64", 0)
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	check := Disks{Paths: map[string]string{"data_root": filepath.Join(disk, "not", "yet"), "state_dir": disk}}
	findings := check.Examine(t.Context())
	healthy(t, findings)
	expect(t, findings, OK, "data_root, state_dir (", "")

	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(disk, fmt.Sprint(i)))
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	expect(t, check.Examine(t.Context()), Failure, "no inode left", "remove small files")
	if err := os.Remove(filepath.Join(disk, "0")); err != nil {
		t.Fatal(err)
	}
	big, err := os.Create(filepath.Join(disk, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	if _, err := big.Write([]byte(strings.Repeat("x", 9<<20))); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk was not filled: %v", err)
	}
	big.Close()
	expect(t, check.Examine(t.Context()), Failure, "the disk is full", "free some space")

	mount("size=8m", unix.MS_REMOUNT|unix.MS_RDONLY)
	expect(t, check.Examine(t.Context()), Failure, "read-only file system", "mount it writable")
}

func TestSpace(t *testing.T) {
	const block = 4096
	for _, c := range []struct {
		free, total int64
		want        Level
	}{
		{500 << 30, 1 << 40, OK}, {50 << 30, 1 << 40, Warning}, {120 << 30, 4 << 40, OK}, {4 << 30, 20 << 30, Warning},
		{100 << 20, 1 << 40, Failure}, {100 << 20, 200 << 20, OK}, {1 << 20, 200 << 20, Failure},
	} {
		f := judgeSpace("x", unix.Statfs_t{Bsize: block, Bavail: uint64(c.free / block), Blocks: uint64(c.total / block), Files: 10, Ffree: 5})
		if f.Level != c.want {
			t.Errorf("%d of %d: %+v", c.free, c.total, f)
		}
	}
}

func TestLimits(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	healthy(t, Limits{Sheep: 1}.Examine(t.Context()))
	expect(t, Limits{Sheep: int(limit.Max/64) + 1}.Examine(t.Context()), Warning, fmt.Sprint(limit.Max), "LimitNOFILE=")
}

// TestKernel examines this kernel, and the answers of older ones and of filters.
func TestKernel(t *testing.T) {
	const role = "SHEPHERD_TEST_KERNEL"
	if kernel := os.Getenv(role); kernel != "" {
		refuse, call := testenv.Kernel53, "openat2"
		if kernel == "5.2" {
			refuse, call = testenv.KernelBefore53, "pidfd_open"
		}
		if err := testenv.Refuse(refuse); err != nil {
			t.Fatal(err)
		}
		expect(t, Kernel{}.Examine(t.Context()), Failure, "refuses "+call+": function not implemented", "Linux 5.6")
		return
	}
	healthy(t, Kernel{}.Examine(t.Context()))
	for _, kernel := range []string{"5.3", "5.2"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKernel$")
		cmd.Env = append(os.Environ(), role+"="+kernel)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("Linux %s: %v\n%s", kernel, err, out)
		}
	}
}

func TestStateOwner(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "it changes a directory's owner: run the tests as root")
	}
	healthy(t, StateOwner{Path: dir}.Examine(t.Context()))
	if err := os.Chown(dir, 0, 77); err != nil {
		t.Fatal(err)
	}
	expect(t, StateOwner{Path: dir}.Examine(t.Context()), Warning, "belongs to the user 0 and the group 77", "chown 0:0 "+dir)
	if got := (StateOwner{Path: filepath.Join(dir, "none")}).Examine(t.Context()); len(got) > 0 {
		t.Errorf("of none: %+v", got)
	}
}
