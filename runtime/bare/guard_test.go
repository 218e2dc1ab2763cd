package bare_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", testenv.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := newWorld(t)
	w.port = fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	err = h.Sheep.Run(t.Context(), runtime.Discard)
	var load *runtime.LoadError
	if !errors.As(err, &load) || !errdefs.IsUnavailable(err) {
		t.Fatalf("got %T %v, want *runtime.LoadError of class unavailable", err, err)
	}
	for _, want := range []string{"port " + w.port, fmt.Sprintf("process %d", os.Getpid())} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %q", err, want)
		}
	}
	l.Close()
	h.Run() // the port is free again
	h.Do("a", "")
	h.StopAndClose()
}

func TestListenerThatIsNotTheRunners(t *testing.T) {
	w := newWorld(t)
	w.port = fmt.Sprint(testenv.FreePort(t))
	gate := filepath.Join(t.TempDir(), "go")
	w.addModel(t, model, "await "+gate)
	h := w.inherit(t)
	h.Load()
	h.Run()
	l, err := net.Listen("tcp", "127.0.0.1:"+w.port) // before the runner does
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var exit *runtime.Exit
	if err := h.Wait(); !errors.As(err, &exit) || !strings.Contains(exit.Detail, fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("Run: %v, want that another process has the port", err)
	}
	h.Close()
}

func TestOutputFiles(t *testing.T) {
	w := newWorld(t)
	out := filepath.Join(w.dir, "a/b/out.log")
	w.more = "stdout_file: " + out + "\n"
	w.addModel(t, model, "print up")
	for range 2 {
		h := w.inherit(t)
		h.Load()
		h.Run()
		h.Do("a", "")
		h.StopAndClose()
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != "up\nup\n" {
		t.Errorf("stdout_file holds %q, %v, want two lines", got, err)
	}
	if _, err := os.Stat(filepath.Join(w.stateDir(), runtimetest.Sheep, "log", "runner.log")); err != nil {
		t.Errorf("standard error goes nowhere: %v", err)
	}
}

func TestOutOfMemory(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	runtimetest.Prepare(t, w.sheepDir(), "a", "allocate 400")
	h := w.inherit(t)
	h.Load()
	h.Run()
	id := filepath.Base(w.lives()[0])
	limits, _ := filepath.Glob("/sys/fs/cgroup/*/*/*/shepherd-" + id + "/memory.limit_in_bytes")
	for _, pattern := range []string{"/sys/fs/cgroup/*/shepherd-%s/memory.limit_in_bytes", "/sys/fs/cgroup/*/*/shepherd-%s/memory.limit_in_bytes", "/sys/fs/cgroup/shepherd-%s/memory.max", "/sys/fs/cgroup/*/shepherd-%s/memory.max", "/sys/fs/cgroup/*/*/shepherd-%s/memory.max"} {
		more, _ := filepath.Glob(fmt.Sprintf(pattern, id))
		limits = append(limits, more...)
	}
	if len(limits) == 0 {
		h.StopAndClose()
		testenv.Missing(t, "a control group with memory accounting", "run the tests as root or in a delegated cgroup")
	}
	if err := os.WriteFile(limits[0], []byte("100000000"), 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Conn.Send(t.Context(), messenger.Input{JobID: "a"}); err != nil {
		t.Fatal(err)
	}
	var exit *runtime.Exit
	if err := h.Wait(); !errors.As(err, &exit) || !exit.OutOfMemory {
		t.Errorf("Run: %v, want out of memory", err)
	}
	h.Close()
	if left, _ := filepath.Glob(filepath.Dir(limits[0])); len(left) > 0 {
		t.Errorf("control group %v is left", left)
	}
}

func TestStateIsPrivate(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	h.Run()
	h.Do("a", "")
	life := w.lives()[0]
	for name, want := range map[string]os.FileMode{"": 0o700, "socket": 0o600, "spec.json": 0o600, "state.json": 0o600, "outcome.json": 0o600} {
		info, err := os.Stat(filepath.Join(life, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v, want mode %o", name, info.Mode().Perm(), err, want)
		}
	}
	h.StopAndClose()
}

// The log of a sheep goes on from one runner to the next, and from the files
// that the configuration names.
func TestLogs(t *testing.T) {
	for _, files := range []bool{false, true} {
		t.Run(fmt.Sprintf("files=%v", files), func(t *testing.T) {
			w := newWorld(t)
			if files {
				w.more = "stdout_file: " + filepath.Join(w.dir, "out.log") + "\nstderr_file: " + filepath.Join(w.dir, "err.log") + "\n"
			}
			w.addModel(t, model, "print up")
			first := w.inherit(t)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			defer time.AfterFunc(2*hang, leave).Stop() // ends a read in vain
			log, err := first.Sheep.(runtime.Logger).Logs(ctx, job.LogQuery{Tail: -1, Follow: true})
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			following := bufio.NewReader(log)
			h := first
			for i := range 2 {
				if i > 0 {
					h = w.inherit(t)
				}
				h.Load()
				h.Run()
				if got, err := following.ReadString('\n'); got != "up\n" || err != nil {
					t.Fatalf("runner %d: read %q, %v", i, got, err)
				}
				h.StopAndClose()
			}
			past, err := h.Sheep.(runtime.Logger).Logs(t.Context(), job.LogQuery{Tail: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer past.Close()
			if got, err := io.ReadAll(past); string(got) != "up\n" || err != nil {
				t.Errorf("the last line is %q, %v", got, err)
			}
			leave()
			if _, err := following.ReadString('\n'); !errors.Is(err, context.Canceled) {
				t.Errorf("following ends with %v", err)
			}
		})
	}
}
