package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

// profileEnv is the variable with the directory to which BenchmarkProfile writes.
const profileEnv = "SHEPHERD_BENCH_PROFILE"

// profileStorageEnv is the variable with which BenchmarkProfile uses a storage server instead
// of the embedded storage: "server".
const profileStorageEnv = "SHEPHERD_BENCH_STORAGE"

// BenchmarkProfile shows what a no-op job costs with 16 clients. It writes cpu.pprof and
// allocs.pprof of the daemon and, where strace is installed, syscalls.txt and the number of
// the most frequent system calls per job. againstEnv may name a revision whose daemon is
// profiled instead.
func BenchmarkProfile(b *testing.B) {
	dir := os.Getenv(profileEnv)
	if dir == "" {
		b.Skip("no directory is named: make profile")
	}
	must(b, os.MkdirAll(dir, 0o755))
	daemon := programs
	if revision := os.Getenv(againstEnv); revision != "" {
		daemon = buildRevision(b, revision)
	}
	var w *world
	switch storage := os.Getenv(profileStorageEnv); storage {
	case "", "embedded":
		w = newEmbeddedWorld(b, daemon)
	case "server":
		w = newServerWorld(b, daemon, testenv.StartMinIO(b))
	default:
		b.Fatalf("%s=%s: neither embedded nor server", profileStorageEnv, storage)
	}
	w.start()
	n := 0
	run := func(jobs int) {
		first := n
		n += jobs
		together(b, 16, jobs, func(i int) error { return w.do(fmt.Sprintf("job-%d", first+i), "noop:v1") })
	}
	run(200) // warms up

	const seconds, batch = 10, 200
	profiled := make(chan error, 1)
	go func() {
		profiled <- w.profile(fmt.Sprintf("profile?seconds=%d", seconds), filepath.Join(dir, "cpu.pprof"))
	}()
	for began := time.Now(); time.Since(began) < seconds*time.Second; {
		run(batch)
	}
	must(b, <-profiled)
	must(b, w.profile("allocs", filepath.Join(dir, "allocs.pprof")))

	const jobs = 1000
	allocated, collections := w.memory()
	used := cpuTime(b, w.daemon.Process.Pid)
	run(jobs)
	after, collectionsAfter := w.memory()
	note(b, "CPU time of the daemon", ms(cpuTime(b, w.daemon.Process.Pid)-used)/jobs, "ms/job")
	note(b, "allocations", float64(after-allocated)/jobs, "per job")
	note(b, "garbage collections", float64(collectionsAfter-collections)/jobs, "per job")
	w.countSyscalls(filepath.Join(dir, "syscalls.txt"), jobs, func() { run(jobs) })
}

// profile writes the daemon's response to a path below /debug/pprof/.
func (w *world) profile(path, file string) error {
	text, err := w.debug(path)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

func (w *world) debug(path string) ([]byte, error) {
	client := &http.Client{Timeout: hang, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(w.dir, "state", "api.sock"))
	}}}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://localhost/debug/pprof/" + path)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", path, answer.Status, text)
	}
	return text, err
}

// memory returns how many objects the daemon has allocated, and the number of its garbage
// collections.
func (w *world) memory() (mallocs, collections int) {
	w.b.Helper()
	text, err := w.debug("allocs?debug=1")
	must(w.b, err)
	for line := range strings.Lines(string(text)) {
		for name, value := range map[string]*int{"# Mallocs = ": &mallocs, "# NumGC = ": &collections} {
			if number, ok := strings.CutPrefix(line, name); ok {
				*value, err = strconv.Atoi(strings.TrimSpace(number))
				must(w.b, err)
			}
		}
	}
	return mallocs, collections
}

// countSyscalls counts the daemon's system calls with strace while run runs.
func (w *world) countSyscalls(file string, jobs int, run func()) {
	w.b.Helper()
	if _, err := exec.LookPath("strace"); errors.Is(err, exec.ErrNotFound) {
		w.b.Log("strace is not installed: system calls are not counted")
		return
	}
	trace := exec.Command("strace", "-f", "-c", "-S", "calls", "-U", "calls,errors,name", "-o", file, "-p", strconv.Itoa(w.daemon.Process.Pid))
	must(w.b, trace.Start())
	attached := false
	for range 1000 {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.daemon.Process.Pid))
		must(w.b, err)
		if attached = !strings.Contains(string(status), "TracerPid:\t0\n"); attached {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !attached {
		_ = trace.Process.Kill()
		_ = trace.Wait()
		w.b.Fatal("strace does not attach to the daemon")
	}
	run()
	must(w.b, trace.Process.Signal(syscall.SIGINT))
	_ = trace.Wait() // it exits by the signal
	text, err := os.ReadFile(file)
	must(w.b, err)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		calls, err := strconv.Atoi(fields[0])
		if err != nil || calls < jobs/10 {
			continue
		}
		name := fields[len(fields)-1]
		if name == "total" {
			name = "all"
		}
		note(w.b, "system calls, "+name, float64(calls)/float64(jobs), "per job")
	}
}
