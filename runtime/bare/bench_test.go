package bare_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
)

// echoMain is a runner that answers at once.
func echoMain(args []string) {
	ctx := context.Background()
	router, err := zmq.Listen(ctx, zmq.RouterConfig{Endpoint: "tcp://0.0.0.0:" + args[1], Identity: "runner"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		m, err := router.Recv(ctx)
		if err != nil {
			os.Exit(1)
		}
		in, err := messenger.DecodeInput(m.Frame)
		if err != nil {
			os.Exit(1)
		}
		frame, _ := messenger.EncodeAnswer(messenger.Answer{JobID: in.JobID})
		_ = router.Send(ctx, m.From, frame)
	}
}

// BenchmarkRoundTrip measures a message's way to a runner and back, directly and
// through the shim, in turns, and what the shim adds. It ends with the shim's
// resident size, after as many messages.
func BenchmarkRoundTrip(b *testing.B) {
	w := newWorld(b)
	port := testenv.FreePort(b)
	w.port, w.role = strconv.Itoa(port), "echo"
	w.addModel(b, model, "")
	h := w.inherit(b)
	h.Load()
	h.Run()
	ctx := b.Context()
	direct, err := zmq.Dial(ctx, zmq.Config{Endpoint: "tcp://127.0.0.1:" + w.port})
	if err != nil {
		b.Fatal(err)
	}
	defer direct.Close()

	var straight, shimmed []time.Duration
	for n := 0; b.Loop(); n++ {
		in := messenger.Input{JobID: job.ID("job-" + strconv.Itoa(n)), IODataRoot: w.dataRoot()}
		frame, err := messenger.EncodeInput(in)
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := direct.Send(ctx, frame); err != nil {
			b.Fatal(err)
		}
		if _, err := direct.Recv(ctx); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		if err := h.Conn.Send(ctx, in); err != nil {
			b.Fatal(err)
		}
		if _, err := h.Conn.Recv(ctx); err != nil {
			b.Fatal(err)
		}
		ended := time.Now()
		straight, shimmed = append(straight, middle.Sub(began)), append(shimmed, ended.Sub(middle))
		if err := h.Conn.Ack(ctx, in.JobID); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(micros(median(straight)), "direct-µs")
	b.ReportMetric(micros(median(shimmed)), "shim-µs")
	b.ReportMetric(micros(median(shimmed)-median(straight)), "added-µs")
	b.ReportMetric(residentMiB(b, w.shimPID(b)), "shim-RSS-MiB")
	h.StopAndClose()
}

// BenchmarkStart measures from Run's call to the runner taking jobs, with a
// runner that binds at once, and how long it takes to stop it.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	w.role = "echo"
	w.addModel(b, model, "")
	var up []time.Duration
	for n := 0; b.Loop(); n++ {
		h := w.inherit(b)
		h.Load()
		began := time.Now()
		h.Run()
		if err := h.Conn.Send(b.Context(), messenger.Input{JobID: "a"}); err != nil {
			b.Fatal(err)
		}
		if _, err := h.Conn.Recv(b.Context()); err != nil {
			b.Fatal(err)
		}
		up = append(up, time.Since(began))
		if err := h.Conn.Ack(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
		h.StopAndClose()
	}
	b.ReportMetric(micros(median(up))/1000, "start-to-answer-ms")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func residentMiB(t testing.TB, pid int) float64 {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "VmRSS:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// TestShimStaysSmall guards the promise of 12 MiB, large answers included.
func TestShimStaysSmall(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	h.Run()
	for n := range 50 {
		h.Do(job.ID("job-"+strconv.Itoa(n)), "")
	}
	if rss := residentMiB(t, w.shimPID(t)); rss > 12 {
		t.Errorf("the shim has %.1f MiB resident, want at most 12", rss)
	}
	h.Prepare("flood", "flood 50000000")
	if err := h.Conn.Send(t.Context(), messenger.Input{JobID: "flood"}); err != nil {
		t.Fatal(err)
	}
	h.Recv("flood")
	if rss := residentMiB(t, w.shimPID(t)); rss > 14 {
		t.Errorf("after 50 MB of output the shim has %.1f MiB resident, want at most 14", rss)
	}
	h.StopAndClose()
}
