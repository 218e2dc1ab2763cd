package bench

import (
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/internal/testenv"
)

// BenchmarkLarge runs a job with 1 GiB of input and as much output a few times, and measures
// the daemon's memory and, every 10 ms, whether it answers /status within 50 ms. On an
// overloaded machine any server may be late. So a server that does nothing else is queried,
// too, and its late answers are subtracted. Delays by the daemon itself occur in every
// round, so the round with the fewest is the result.
func BenchmarkLarge(b *testing.B) {
	server := testenv.StartMinIO(b)
	w := newWorld(b, server.URL, server.AccessKey, server.SecretKey)
	floor := newFloor(b, server)
	null, _ := startNull(b)
	w.start()
	id := names("small")
	for range 50 { // warms up
		must(b, w.do(id(), "noop:v1"))
	}
	const size, rounds = 1 << 30, 4
	must(b, floor.client.MakeBucket(b.Context(), "large", minio.MakeBucketOptions{}))
	_, err := floor.client.PutObject(b.Context(), "large", "inputs/input",
		io.LimitReader(rand.NewChaCha8([32]byte{1}), size), size, minio.PutObjectOptions{PartSize: 64 << 20})
	must(b, err)

	before := resident(b, w.daemon.Process.Pid)
	peak := before
	var took []time.Duration
	var api, control, beyond []int64
	var all int
	var worst time.Duration
	for range rounds {
		over := make(chan struct{})
		var watchers sync.WaitGroup
		var asked, compared answers
		watchers.Go(func() { asked.watch(w.api+"/status", over) })
		watchers.Go(func() { compared.watch(null, over) })
		watchers.Go(func() {
			every(10*time.Millisecond, over, func() {
				mib, err := readResident(w.daemon.Process.Pid)
				if err != nil {
					b.Error(err)
				}
				peak = max(peak, mib)
			})
		})
		began := time.Now()
		err := w.submit("large", "noop:v1", "")
		if err == nil {
			err = w.await("large")
		}
		took = append(took, time.Since(began))
		close(over)
		watchers.Wait()
		must(b, err)
		object, err := floor.client.StatObject(b.Context(), "large", "outputs/output", minio.StatObjectOptions{})
		must(b, err)
		if object.Size != size {
			b.Fatalf("the output has %d bytes, want %d", object.Size, size)
		}
		must(b, floor.client.RemoveObject(b.Context(), "large", "outputs/output", minio.RemoveObjectOptions{}))
		api, control = append(api, asked.late), append(control, compared.late)
		beyond = append(beyond, max(0, asked.late-compared.late))
		all, worst = all+asked.all, max(worst, asked.worst)
	}

	note(b, "1 GiB in and out", median(took).Seconds(), "s")
	atMost(b, "growth of RSS with 1 GiB in and out", peak-before, "MiB", 64)
	note(b, "answers of /status meanwhile", float64(all)/rounds, "a round")
	note(b, "latest answer of /status", ms(worst), "ms")
	note(b, "late answers of /status", float64(median(api)), "a round")
	note(b, "late answers of a server that does nothing else", float64(median(control)), "a round")
	atMost(b, "late answers of /status beyond those, at best", float64(slices.Min(beyond)), "a round", 0)
}

// answers are the answers to a request that is sent every 10 ms.
type answers struct {
	all   int
	late  int64
	worst time.Duration
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
