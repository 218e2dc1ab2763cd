package container_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// BenchmarkStart measures, in turns, from Load of a present image to the runner's
// socket connected, and `ctr run -d` of the same image to the same connection;
// the registry is asked what the tag means in the first and not in the second.
// It reports the medians and their relation, which is to be at most 1.15.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b, testenv.StartContainerd(b))
	w.addModel(b, model, "")
	h := w.inherit(b)
	h.Load()
	reference := strings.Fields(w.daemon.Ctr(b, namespace, "images", "ls", "-q"))[0]
	pidFile := filepath.Join(b.TempDir(), "pid")
	var ours, theirs []time.Duration
	for n := 0; b.Loop(); n++ {
		began := time.Now()
		h.Load()
		h.RunUntil(runtime.Connected)
		ours = append(ours, time.Since(began))
		h.StopRunner()

		id := "bench-" + strconv.Itoa(n)
		began = time.Now()
		ctr := exec.Command("ctr", "-a", w.daemon.Address, "-n", namespace, "run", "-d", "--pid-file", pidFile, reference, id)
		if out, err := ctr.CombinedOutput(); err != nil {
			b.Fatalf("ctr run: %v: %s", err, out)
		}
		pid, err := os.ReadFile(pidFile)
		if err != nil {
			b.Fatal(err)
		}
		if err := dialInside(b.Context(), string(pid)); err != nil {
			b.Fatal(err)
		}
		theirs = append(theirs, time.Since(began))
		w.daemon.Ctr(b, namespace, "tasks", "delete", "--force", id)
		w.daemon.Ctr(b, namespace, "containers", "delete", id)
	}
	b.ReportMetric(millis(median(ours)), "shepherd-ms")
	b.ReportMetric(millis(median(theirs)), "ctr-ms")
	b.ReportMetric(millis(median(ours))/millis(median(theirs)), "of-ctr")
}

// BenchmarkRoundTrip measures a job from its message to the answer of a runner that does
// nothing, by the median: the shim waits before the answer until containerd's shim has copied
// the runner's output.
func BenchmarkRoundTrip(b *testing.B) {
	w := newWorld(b, testenv.StartContainerd(b))
	w.addModel(b, model, "")
	h := w.inherit(b)
	h.Load()
	h.Run()
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		id := job.ID("job-" + strconv.Itoa(n))
		runtimetest.Prepare(b, filepath.Join(w.dataRoot(), runtimetest.Sheep), id, "print text")
		began := time.Now()
		if err := h.Conn.Send(b.Context(), messenger.Input{JobID: id}); err != nil {
			b.Fatal(err)
		}
		if a, err := h.Conn.Recv(b.Context()); err != nil || a.JobID != id {
			b.Fatalf("got %+v, %v", a, err)
		}
		took = append(took, time.Since(began))
		if err := h.Conn.Ack(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
	h.StopAndClose()
	b.ReportMetric(millis(median(took)), "round-trip-ms")
}

// BenchmarkSwitch measures from the wish for another present model to its
// runner's socket connected: the stop of one container, and the start of another.
func BenchmarkSwitch(b *testing.B) {
	w := newWorld(b, testenv.StartContainerd(b))
	models := []job.Model{model, {Name: "letters", Version: "v1"}}
	for _, m := range models {
		w.addModel(b, m, "print "+m.Name)
	}
	h := w.inherit(b)
	load := func(m job.Model) {
		if err := h.Sheep.Load(b.Context(), m, runtime.Discard); err != nil {
			b.Fatal(err)
		}
	}
	load(models[1])
	load(models[0])
	h.RunUntil(runtime.Connected)
	var switches, stops []time.Duration
	for n := 1; b.Loop(); n++ {
		began := time.Now()
		h.StopRunner()
		stops = append(stops, time.Since(began))
		load(models[n%2])
		h.RunUntil(runtime.Connected)
		switches = append(switches, time.Since(began))
	}
	h.StopRunner()
	b.ReportMetric(millis(median(switches)), "switch-ms")
	b.ReportMetric(millis(median(stops)), "stop-ms")
}

// dialInside connects to port 9999 in the network namespace of a process and
// waits for the greeting of the runner's socket, as the shim does.
func dialInside(ctx context.Context, pid string) error {
	result := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked
		ns, err := os.Open(fmt.Sprintf("/proc/%s/ns/net", pid))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		for err == nil {
			var conn net.Conn
			if conn, err = new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:9999"); err == nil {
				_, err = conn.Read(make([]byte, 10))
				conn.Close()
				break
			}
			if strings.Contains(err.Error(), "refused") {
				time.Sleep(time.Millisecond)
				err = nil
			}
		}
		result <- err
	}()
	return <-result
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
