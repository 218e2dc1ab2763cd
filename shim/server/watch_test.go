package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// kept is a runner's process that is somebody else's child, as a container's is:
// the test's. Its output goes where containerd's shim would write it.
type kept struct {
	*exec.Cmd
	h    *shim.Handle
	logs string
}

// serveWatched runs a server for a container and starts its process; binds says
// that it takes jobs.
func serveWatched(t *testing.T, script string, binds bool) *kept {
	t.Helper()
	dir := t.TempDir()
	folder, err := shim.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.Lock(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{shim.Stdout, shim.Stderr} {
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	done, ready := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	logs := t.TempDir()
	go func() {
		defer close(done)
		defer folder.Close()
		err := Run(ctx, Config{
			Folder: folder,
			Spec: shim.Spec{
				Life: "x", Port: 1, Container: &shim.Container{ID: "dolly-x"},
				LogDir: logs, LogSize: 1 << 20, LogKeep: 1,
			},
			Dial: func(ctx context.Context, _ string, _ DialFunc) (Conn, error) {
				if binds {
					return newEcho(), nil
				}
				<-ctx.Done()
				return nil, ctx.Err()
			},
			Log: slog.New(slog.DiscardHandler),
		}, func() { close(ready) })
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	<-ready
	k := &kept{h: attach(t, dir), logs: logs}
	t.Cleanup(func() {
		cancel()
		if k.Cmd != nil {
			_ = k.Process.Kill()
			_ = k.Wait()
		}
		if _, err := k.h.Wait(context.Background()); err == nil {
			_ = k.h.Release(context.Background())
		}
		<-done
	})
	if script == "" {
		return k
	}
	out, err := os.OpenFile(filepath.Join(dir, shim.Stdout), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	k.Cmd = exec.Command("/bin/sh", "-c", script)
	k.Stdout, k.Stderr = out, out
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	return k
}

// begin has the process watched.
func (k *kept) begin(t *testing.T) {
	t.Helper()
	if err := k.h.Watch(t.Context(), k.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if k.h.PID() != 0 {
		t.Error("it is there before it has begun")
	}
	if err := k.h.Begun(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-k.h.Started()
	if got := k.h.PID(); got != k.Process.Pid {
		t.Errorf("it is process %d, want %d", got, k.Process.Pid)
	}
}

// end reaps the process and returns what the server knows of its end.
func (k *kept) end(t *testing.T) shim.Exit {
	t.Helper()
	_ = k.Wait()
	exit, err := k.h.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

func TestWatchedProcessEnds(t *testing.T) {
	for _, c := range []struct {
		script string
		stop   bool
		signal string
		code   int
	}{
		{"echo first; echo last; exit 7", false, "", 7},
		{"echo first; echo last; kill -KILL $$", false, "SIGKILL", -1},
		{"trap 'echo last; exit 5' TERM; echo first; while :; do sleep 0.01; done", true, "", 5},
		{"trap '' TERM; printf 'first\\nlast\\n'; while :; do sleep 0.01; done", true, "SIGKILL", -1}, // at once, whatever the grace
	} {
		k := serveWatched(t, c.script, false)
		k.begin(t)
		if c.stop {
			awaitText(t, filepath.Join(k.logs, shim.RunnerLog), "first")
			if err := k.h.Stop(t.Context(), time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		exit := k.end(t)
		unknown := exit.Code == -1 && exit.Signal == "" // Linux before 6.15
		if exit.Stopped != c.stop || exit.Lost || !unknown && (exit.Code != c.code || exit.Signal != c.signal) {
			t.Errorf("%q: got %+v, want code %d, signal %q", c.script, exit, c.code, c.signal)
		}
		if exit.LastLog != "first\nlast" {
			t.Errorf("%q: last log %q", c.script, exit.LastLog)
		}
	}
}

func awaitText(t *testing.T, path, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		data, _ := os.ReadFile(path)
		if strings.Contains(string(data), text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not say %q", path, text)
		}
	}
}

// A process that has ended before it was to begin is known to have.
func TestWatchedProcessThatIsGone(t *testing.T) {
	k := serveWatched(t, "exit 3", false)
	if err := k.h.Watch(t.Context(), k.Process.Pid); err != nil {
		t.Fatal(err)
	}
	_ = k.Wait()
	if err := k.h.Begun(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := k.end(t); exit.Stopped || exit.Lost || exit.Code != 3 && exit.Code != -1 {
		t.Errorf("got %+v, want code 3", exit)
	}
}

func TestWatchWhatIsNotThere(t *testing.T) {
	k := serveWatched(t, "", false)
	if err := k.h.Begun(t.Context()); err == nil {
		t.Error("what is not known has begun")
	}
	if err := k.h.Watch(t.Context(), 1<<22+1); err == nil || !strings.Contains(err.Error(), "no such process") {
		t.Errorf("a process that is not there: %v", err)
	}
	if err := k.h.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	exit, err := k.h.Wait(t.Context())
	if err != nil || !exit.Stopped {
		t.Errorf("got %+v, %v, want stopped", exit, err)
	}
	if err := k.h.Watch(t.Context(), os.Getpid()); err == nil {
		t.Error("watched after the end")
	}
	if err := k.h.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// A container that was made and never began is ended with its shim.
func TestWatchedThatNeverBegins(t *testing.T) {
	k := serveWatched(t, "sleep 1000", false)
	if err := k.h.Watch(t.Context(), k.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := k.h.Watch(t.Context(), k.Process.Pid); err == nil {
		t.Error("watched twice")
	}
	if err := k.h.Stop(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if exit := k.end(t); !exit.Stopped {
		t.Errorf("got %+v, want stopped", exit)
	}
	if status := k.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != unix.SIGKILL {
		t.Errorf("it ended with %v", k.ProcessState)
	}
}

func TestWatchedJob(t *testing.T) {
	k := serveWatched(t, "sleep 1000", true)
	k.begin(t)
	for n := range 3 {
		id := messenger.Input{JobID: job.ID(fmt.Sprint("job-", n)), IODataRoot: "/x"}
		if err := k.h.Send(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if a, err := k.h.Recv(t.Context()); err != nil || a.JobID != id.JobID {
			t.Fatalf("got %+v, %v", a, err)
		}
		if err := k.h.Ack(t.Context(), id.JobID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReceives(t *testing.T) {
	const status = "Name:\tx\nSigPnd:\t0000000000000000\nSigBlk:\t%s\nSigIgn:\t%s\nSigCgt:\t%s\nCapInh:\t0000000000000000\n"
	const none, term, int2, rt34 = "0000000000000000", "0000000000004000", "0000000000000002", "0000000200000000"
	for _, c := range []struct {
		name                     string
		blocked, ignored, caught string
		sig                      unix.Signal
		want                     bool
	}{
		{"nothing", none, none, none, unix.SIGTERM, false},
		{"a handler", none, none, term, unix.SIGTERM, true},
		{"blocked and waited for, as tini does", term, none, none, unix.SIGTERM, true},
		{"ignored", none, term, none, unix.SIGTERM, false},
		{"ignored, and blocked while a shell forks", term, term, none, unix.SIGTERM, false},
		{"another's handler", none, none, int2, unix.SIGTERM, false},
		{"a handler for the image's signal", none, none, int2, unix.SIGINT, true},
		{"a real-time signal", rt34, none, none, 34, true},
		{"the highest signal", none, none, "8000000000000000", 64, true},
		{"nonsense", "x", none, none, unix.SIGTERM, true},
	} {
		if got := receives(fmt.Sprintf(status, c.blocked, c.ignored, c.caught), c.sig); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
	if !receives("", unix.SIGTERM) {
		t.Error("where the status does not tell, the signal is sent")
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil || !receives(string(own), unix.SIGSEGV) || receives(string(own), unix.SIGKILL) {
		t.Errorf("a Go program handles SIGSEGV and not SIGKILL: %v", err)
	}
}

// On kernels before 5.10, which know no PIDFD_NONBLOCK, containers' processes are
// watched as on others; before 5.3, which has pidfds, the error says so.
func TestWatchOnOldKernels(t *testing.T) {
	const role = "SHEPHERD_TEST_KERNEL"
	refuse := func(list []testenv.Refusal) {
		if err := testenv.Refuse(list); err != nil {
			t.Fatal(err)
		}
	}
	switch os.Getenv(role) {
	case "5.3":
		refuse(testenv.Kernel53)
		if _, err := unix.PidfdOpen(os.Getpid(), unix.PIDFD_NONBLOCK); err == nil {
			t.Fatal("PIDFD_NONBLOCK is known")
		}
		TestWatchedProcessEnds(t)
		TestWatchedProcessThatIsGone(t)
		TestWatchWhatIsNotThere(t)
		return
	case "5.2":
		refuse(testenv.KernelBefore53)
		_, err := openWatched(os.Getpid(), "", &shim.Container{})
		if err == nil || !strings.Contains(err.Error(), "container sheep need Linux 5.3") {
			t.Errorf("got %v", err)
		}
		return
	}
	for _, kernel := range []string{"5.3", "5.2"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWatchOnOldKernels$")
		cmd.Env = append(os.Environ(), role+"="+kernel)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("Linux %s: %v\n%s", kernel, err, out)
		}
	}
}
