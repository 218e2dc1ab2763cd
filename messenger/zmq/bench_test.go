package zmq_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/messenger/zmq"
)

// BenchmarkRoundTrip asks a runner and waits for its answer.
func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{300, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("libzmq-runner/%d", size), func(b *testing.B) {
			port := testenv.FreePort(b)
			pyRunner(b, port)
			roundTrips(b, tcp(port), size)
		})
		b.Run(fmt.Sprintf("go-runner/%d", size), func(b *testing.B) {
			router := echo(b, zmq.RouterConfig{Endpoint: "tcp://127.0.0.1:0"})
			roundTrips(b, "tcp://"+router.Addr().String(), size)
		})
	}
}

func roundTrips(b *testing.B, endpoint string, size int) {
	conn := dial(b, endpoint)
	ctx := b.Context()
	body := bytes.Repeat([]byte("a"), size)
	took := make([]time.Duration, 0, 1<<16)
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if err := conn.Send(ctx, body); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Recv(ctx); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
