package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/time/rate"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/messenger/zmq"
)

// BenchmarkGap measures how long a runner is idle between two jobs: from its answer to the
// arrival of the next job, whose 10 MiB of inputs were staged before. It is compared with a
// round trip between two ZeroMQ sockets, which is the minimum, after pauses as long as a job:
// processors and threads that have slept take longer to wake.
func BenchmarkGap(b *testing.B) {
	server := testenv.StartMinIO(b)
	w := newWorld(b, server.URL, server.AccessKey, server.SecretKey)
	w.start()
	const pause = 200 * time.Millisecond
	runs := w.timed("gap", pause, newFloor(b, server), 30, 10<<20)
	var gaps []time.Duration
	for i := range runs[1:] {
		gaps = append(gaps, runs[i+1].began.Sub(runs[i].ended))
	}
	bare := roundTrip(b, 30, pause)
	note(b, "answer to next job at the runner, 10 MiB of inputs", ms(median(gaps)), "ms")
	note(b, "round trip of two ZeroMQ sockets, after such a pause", ms(bare), "ms")
	note(b, "round trip of two ZeroMQ sockets, one after the other", ms(roundTrip(b, 2000, 0)), "ms")
	note(b, "the runner's gap, of the round trip", float64(median(gaps))/float64(bare), "times")
}

// BenchmarkBusy measures which part of the time a runner computes, with jobs of 50 ms and a
// storage at 1 Gbit/s. Jobs of 4 MiB in and out need less time on the link than in the
// runner; those of 32 MiB need more, so that the link limits them.
func BenchmarkBusy(b *testing.B) {
	const pause, link = 50 * time.Millisecond, 125e6 // bytes a second, each way
	server := testenv.StartMinIO(b)
	near := newFloor(b, server)
	w := newWorld(b, throttle(b, server.URL, link), server.AccessKey, server.SecretKey)
	w.start()
	for _, load := range []struct{ jobs, mib int }{{60, 4}, {20, 32}} {
		runs := w.timed(fmt.Sprintf("busy-%d", load.mib), pause, near, load.jobs, load.mib<<20)
		took := runs[len(runs)-1].ended.Sub(runs[0].began)
		with := fmt.Sprintf(", %d MiB in and out", load.mib)
		note(b, "runner busy"+with, 100*float64(len(runs))*pause.Seconds()/took.Seconds(), "%")
		onLink := float64(load.mib<<20) / link
		least := max(pause.Seconds(), onLink) * float64(len(runs)-1)
		note(b, "of the rate that runner and link allow"+with, 100*(least+pause.Seconds())/took.Seconds(), "%")
	}
}

// run has the times at which a runner received and finished a job.
type run struct{ began, ended time.Time }

// timed puts inputs of that many bytes for jobs into storage, submits them all, waits for
// their end, and returns the times that the runner measured, in order, without the first
// job, which loaded the model. The runner computes for pause in each job.
func (w *world) timed(name string, pause time.Duration, storage floor, jobs, size int) []run {
	b := w.b
	b.Helper()
	log := filepath.Join(w.dir, name+".log")
	folder := filepath.Join(w.dir, "models", name, "v1")
	must(b, os.MkdirAll(folder, 0o755))
	must(b, os.WriteFile(filepath.Join(folder, "config.yaml"), fmt.Appendf(nil, "timed %s %s\n", pause, log), 0o644))
	jobs++
	for i := range jobs {
		bucket := fmt.Sprintf("%s-%d", name, i)
		must(b, storage.client.MakeBucket(b.Context(), bucket, minio.MakeBucketOptions{}))
		_, err := storage.client.PutObject(b.Context(), bucket, "inputs/input",
			io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), int64(size)), int64(size), minio.PutObjectOptions{PartSize: 64 << 20})
		must(b, err)
	}
	for i := range jobs {
		must(b, w.submit(fmt.Sprintf("%s-%d", name, i), name+":v1", ""))
	}
	for i := range jobs {
		must(b, w.await(fmt.Sprintf("%s-%d", name, i)))
	}
	text, err := os.ReadFile(log)
	must(b, err)
	var runs []run
	for line := range strings.Lines(string(text)) {
		var began, ended int64
		if _, err := fmt.Sscan(line, &began, &ended); err != nil {
			b.Fatalf("the runner wrote %q: %v", line, err)
		}
		runs = append(runs, run{time.Unix(0, began), time.Unix(0, ended)})
	}
	if len(runs) != jobs {
		b.Fatalf("the runner had %d jobs, want %d", len(runs), jobs)
	}
	return runs[1:]
}

// roundTrip measures the median time, over trips, of a message of 300 bytes to a ZeroMQ socket
// that sends it back, each after a pause.
func roundTrip(b *testing.B, trips int, pause time.Duration) time.Duration {
	b.Helper()
	router, err := zmq.Listen(b.Context(), zmq.RouterConfig{Endpoint: "tcp://127.0.0.1:0"})
	must(b, err)
	ctx, stop := context.WithCancel(b.Context())
	var echo sync.WaitGroup
	echo.Go(func() {
		for {
			m, err := router.Recv(ctx)
			if err != nil || router.Send(ctx, m.From, m.Frame) != nil {
				return
			}
		}
	})
	defer echo.Wait()
	defer router.Close()
	defer stop()
	conn, err := zmq.Dial(b.Context(), zmq.Config{Endpoint: "tcp://" + router.Addr().String()})
	must(b, err)
	defer conn.Close()
	body := bytes.Repeat([]byte("a"), 300)
	var took []time.Duration
	for range trips {
		time.Sleep(pause)
		began := time.Now()
		must(b, conn.Send(b.Context(), body))
		_, err := conn.Recv(b.Context())
		must(b, err)
		took = append(took, time.Since(began))
	}
	return median(took)
}

// throttle returns an address that forwards to the server at url with so many bytes a second
// each way, over all connections together.
func throttle(b *testing.B, url string, perSecond float64) string {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	const burst = 64 << 10
	up, down := rate.NewLimiter(rate.Limit(perSecond), burst), rate.NewLimiter(rate.Limit(perSecond), burst)
	ctx, stop := context.WithCancel(b.Context())
	var relays sync.WaitGroup
	relay := func(to, from net.Conn, limit *rate.Limiter) {
		defer to.Close()
		part := make([]byte, burst)
		for {
			n, err := from.Read(part)
			if n > 0 && (limit.WaitN(ctx, n) != nil || write(to, part[:n]) != nil) || err != nil {
				return
			}
		}
	}
	relays.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				client.Close()
				continue
			}
			context.AfterFunc(ctx, func() { client.Close(); server.Close() })
			relays.Go(func() { relay(server, client, up) })
			relays.Go(func() { relay(client, server, down) })
		}
	})
	b.Cleanup(func() {
		stop()
		listener.Close()
		relays.Wait()
	})
	return "http://" + listener.Addr().String()
}

func write(to io.Writer, part []byte) error {
	_, err := to.Write(part)
	return err
}
