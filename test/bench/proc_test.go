package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cpuTime returns the CPU time of a process, in user and kernel mode. The kernel shows it in
// ticks of 10 ms, so it must be measured over seconds.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	// proc(5): fields 14 and 15; the second may hold spaces and ends with ")".
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		must(b, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

// resident returns the resident memory of a process in MiB.
func resident(b *testing.B, pid int) float64 {
	b.Helper()
	mib, err := readResident(pid)
	must(b, err)
	return mib
}

func readResident(pid int) (float64, error) { return readMemory(pid, "VmRSS:") }

// readMemory returns one of the sizes in /proc/PID/status in MiB.
func readMemory(pid int, name string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == name {
			kib, err := strconv.Atoi(fields[1])
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, name)
}

// shim returns the process id of the world's shim.
func (w *world) shim() int {
	w.b.Helper()
	entries, err := os.ReadDir("/proc")
	must(w.b, err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, _ := os.Readlink("/proc/" + e.Name() + "/exe")
		command, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.HasSuffix(exe, "/shepherd-shim") && bytes.Contains(command, []byte(w.dir)) {
			return pid
		}
	}
	w.b.Fatal("there is no shim")
	return 0
}
