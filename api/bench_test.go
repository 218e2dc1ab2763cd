package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/iterait/shepherd/job"
)

// discard is a ResponseWriter that costs next to nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

func benchmarkRequest(b *testing.B, service Service, method, path, body string) {
	b.Helper()
	handler := New(Config{Service: service})
	b.ReportAllocs()
	for b.Loop() {
		request := httptest.NewRequest(method, path, strings.NewReader(body))
		handler.ServeHTTP(&discard{header: http.Header{}}, request)
	}
}

// accepting takes every job and remembers none.
type accepting struct{ *fake }

func (accepting) Submit(_ context.Context, _ job.Request) error { return nil }

func BenchmarkStartJob(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("payload=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			body := strings.Replace(start, `"data"`, `"`+strings.Repeat("x", size)+`"`, 1)
			benchmarkRequest(b, accepting{newFake()}, "POST", "/start-job", body)
		})
	}
}

func BenchmarkResult(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 20} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			service := newFake()
			service.add("a", job.Done).outputs["output"] = make([]byte, size)
			benchmarkRequest(b, service, "GET", "/jobs/a/result", "")
		})
	}
}

func BenchmarkStatus(b *testing.B) {
	service := newFake()
	service.add("a", job.Done)
	benchmarkRequest(b, service, "GET", "/jobs/a/status", "")
}

// BenchmarkWaiters holds 10,000 clients, or as many as the limit of open files
// allows, on wait_ready over real connections and
// tells what each costs in memory, net/http's share and the test's own end of
// the connection included.
func BenchmarkWaiters(b *testing.B) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		b.Fatal(err)
	}
	waiters := min(10_000, int(files.Cur)/2-100) // both ends are here
	for b.Loop() {
		service := newFake()
		service.add("a", job.Processing)
		server := httptest.NewServer(New(Config{Service: service}))
		before := inUse()
		connections := make([]net.Conn, waiters)
		for i := range connections {
			connection, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.WriteString(connection, "GET /jobs/a/wait_ready HTTP/1.1\r\nHost: shepherd\r\n\r\n"); err != nil {
				b.Fatal(err)
			}
			connections[i] = connection
		}
		for service.waiting.Load() < int64(waiters) {
			runtime.Gosched()
		}
		b.ReportMetric(float64(inUse()-before)/float64(waiters), "B/waiter")
		b.ReportMetric(float64(waiters), "waiters")
		service.finish("a")
		for _, connection := range connections {
			var first [12]byte
			if _, err := io.ReadFull(connection, first[:]); err != nil || string(first[:]) != "HTTP/1.1 200" {
				b.Fatalf("%q %v", first, err)
			}
			connection.Close()
		}
		server.Close()
	}
}

// inUse is the memory that heap and stacks take once garbage is gone.
func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
