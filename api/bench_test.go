package api

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
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
