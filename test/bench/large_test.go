package bench

import (
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/internal/testenv"
)

// BenchmarkLarge takes a job with 1 GiB of input and as much output through
// the daemon and watches its memory and, every 10 ms, whether it answers
// /status within 50 ms. On a machine that is busy with a gigabyte nobody may
// answer in time, so a server that does nothing else is asked beside it: late
// are the daemon's late answers beyond that one's.
func BenchmarkLarge(b *testing.B) {
	server := testenv.StartMinIO(b)
	w := newWorld(b, server.URL, server.AccessKey, server.SecretKey)
	floor := newFloor(b, server)
	null := startNull(b)
	w.start()
	id := names("small")
	for range 50 { // what a daemon at work takes
		must(b, w.do(id(), "noop:v1"))
	}
	const size = 1 << 30
	must(b, floor.client.MakeBucket(b.Context(), "large", minio.MakeBucketOptions{}))
	_, err := floor.client.PutObject(b.Context(), "large", "inputs/input",
		io.LimitReader(rand.NewChaCha8([32]byte{1}), size), size, minio.PutObjectOptions{PartSize: 64 << 20})
	must(b, err)

	before := resident(b, w.daemon.Process.Pid)
	over := make(chan struct{})
	var watchers sync.WaitGroup
	var api, control answers
	watchers.Go(func() { api.watch(w.api+"/status", over) })
	watchers.Go(func() { control.watch(null, over) })
	peak := before
	watchers.Go(func() {
		every(10*time.Millisecond, over, func() { peak = max(peak, resident(b, w.daemon.Process.Pid)) })
	})
	began := time.Now()
	err = w.submit("large", "noop:v1", "")
	if err == nil {
		err = w.await("large")
	}
	took := time.Since(began)
	close(over)
	watchers.Wait()
	must(b, err)
	for object := range floor.client.ListObjectsIter(b.Context(), "large", minio.ListObjectsOptions{Prefix: "outputs/", Recursive: true}) {
		if object.Err != nil || object.Size != size {
			b.Errorf("output %s of %d bytes (%v), want %d", object.Key, object.Size, object.Err, size)
		}
	}

	note(b, "1 GiB in and out", took.Seconds(), "s")
	atMost(b, "growth of RSS with 1 GiB in and out", peak-before, "MiB", 48)
	note(b, "answers of /status meanwhile", float64(api.all), "in all")
	note(b, "late answers of a server that does nothing else", float64(control.late), "in all")
	note(b, "late answers of /status", float64(api.late), "in all")
	note(b, "latest answer of /status", ms(api.worst), "ms")
	atMost(b, "late answers of /status beyond those", float64(max(0, api.late-control.late)), "in all", 0)
}

// answers are those to one request, made every 10 ms.
type answers struct {
	all, late int
	worst     time.Duration
}

func (a *answers) watch(url string, over <-chan struct{}) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: hang}
	every(10*time.Millisecond, over, func() {
		began := time.Now()
		answer, err := client.Get(url)
		if err == nil {
			_, err = io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
		took := time.Since(began)
		a.all++
		a.worst = max(a.worst, took)
		if err != nil || answer.StatusCode != http.StatusOK || took > 50*time.Millisecond {
			a.late++
		}
	})
}

// every calls do at each interval until over is closed.
func every(interval time.Duration, over <-chan struct{}, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			do()
		}
	}
}
