package embedded_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/storage/embedded"
)

// stream yields size bytes without holding them.
type stream struct{ left int64 }

func (s *stream) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), s.left)
	s.left -= n
	return int(n), nil
}

// memory returns what the process holds resident, and its peak, in bytes.
func memory(t testing.TB, pid int) (rss, peak int64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			rss = kib << 10
		case "VmHWM":
			peak = kib << 10
		}
	}
	return rss, peak
}

// TestMemoryStaysFlat sends and fetches a large object, in one piece and in parts,
// and looks at the server's process: it grows by far less than that takes.
func TestMemoryStaysFlat(t *testing.T) {
	const size = 128 << 20
	s, process := victim(t, t.TempDir())
	defer func() { process.Process.Kill(); process.Wait() }()
	c := s.client(nil)
	b := s.bucket(c, "large")
	before, _ := memory(t, process.Process.Pid)
	for key, o := range map[string]minio.PutObjectOptions{"single": {DisableMultipart: true}, "parts": {PartSize: 64 << 20, NumThreads: 2}} {
		if _, err := c.PutObject(t.Context(), b, key, &stream{size}, size, o); err != nil {
			t.Fatal(err)
		}
		r, err := c.GetObject(t.Context(), b, key, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); n != size || err != nil {
			t.Fatalf("%d bytes came back, %v", n, err)
		}
		r.Close()
		if err := c.RemoveObject(t.Context(), b, key, minio.RemoveObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	_, peak := memory(t, process.Process.Pid)
	t.Logf("resident before: %d MiB, at most: %d MiB", before>>20, peak>>20)
	if peak-before > 48<<20 {
		t.Errorf("memory grew by %d MiB", (peak-before)>>20)
	}
	if before > 40<<20 {
		t.Errorf("an idle server takes %d MiB", before>>20)
	}
}

// BenchmarkLarge moves 1 GiB; MB/s are 10^6 bytes.
func BenchmarkLarge(b *testing.B) {
	const gib = 1 << 30
	s := start(b, b.TempDir())
	c := s.client(nil)
	bucket := s.bucket(c, "large")
	for name, o := range map[string]minio.PutObjectOptions{"put": {DisableMultipart: true}, "put-parts": {PartSize: 64 << 20, NumThreads: 2}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(gib)
			for b.Loop() {
				if _, err := c.PutObject(b.Context(), bucket, "x", &stream{gib}, gib, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("get", func(b *testing.B) {
		b.SetBytes(gib)
		for b.Loop() {
			r, err := c.GetObject(b.Context(), bucket, "x", minio.GetObjectOptions{})
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); n != gib || err != nil {
				b.Fatal(n, err)
			}
			r.Close()
		}
	})
}

// BenchmarkSmall times single requests about 1 KiB objects, and the CPU time
// that the server's own process spends on each.
func BenchmarkSmall(b *testing.B) {
	dir := b.TempDir()
	core, cpu := cpuServer(b, dir)
	if err := core.MakeBucket(b.Context(), "small", minio.MakeBucketOptions{}); err != nil {
		b.Fatal(err)
	}
	data := random(1, 1024)
	var n int
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"make-bucket", func() error {
			n++
			return core.MakeBucket(b.Context(), fmt.Sprint("bucket-", n), minio.MakeBucketOptions{})
		}},
		{"put", func() error {
			_, err := core.PutObject(b.Context(), "small", "inputs/input", bytes.NewReader(data), 1024, "", "", minio.PutObjectOptions{})
			return err
		}},
		{"get", func() error {
			r, _, _, err := core.GetObject(b.Context(), "small", "inputs/input", minio.GetObjectOptions{})
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			return err
		}},
		{"head", func() error {
			_, err := core.StatObject(b.Context(), "small", "inputs/input", minio.StatObjectOptions{})
			return err
		}},
		{"list", func() error {
			_, err := core.ListObjectsV2("small", "inputs/", "", "", "", 1000)
			return err
		}},
		{"not-found", func() error {
			if _, err := core.StatObject(b.Context(), "small", "none", minio.StatObjectOptions{}); minio.ToErrorResponse(err).StatusCode != 404 {
				return err
			}
			return nil
		}},
	} {
		b.Run(step.name, func(b *testing.B) {
			before := cpu()
			for b.Loop() {
				if err := step.do(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "server-cpu-us/op")
		})
	}
}

// cpuServer starts a server in a process of its own; the function tells how
// much CPU time that has spent.
func cpuServer(b *testing.B, dir string) (*minio.Core, func() time.Duration) {
	b.Helper()
	s, process := victim(b, dir)
	b.Cleanup(func() { process.Process.Kill(); process.Wait() })
	return s.core(), func() time.Duration {
		var total time.Duration
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", process.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if err != nil {
				continue
			}
			ns, _ := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
			total += time.Duration(ns)
		}
		return total
	}
}

// BenchmarkListing compares a page of a thousand out of a million flat keys with
// one out of ten thousand, in turn and anywhere in the bucket. The ratio is a
// promise: a page costs what it holds.
func BenchmarkListing(b *testing.B) {
	const page, pages, most = 1000, 41, 2.0
	sizes := map[string]int{"small": 10_000, "large": 1_000_000}
	s := start(b, b.TempDir())
	c := s.core()
	put(b, c.Client, s.bucket(c.Client, "model"), "x", []byte("x"))
	object, err := os.ReadFile(filepath.Join(s.dir, "buckets", "model", "x@"))
	if err != nil {
		b.Fatal(err)
	}
	for bucket, n := range sizes {
		s.bucket(c.Client, bucket)
		dir := filepath.Join(s.dir, "buckets", bucket)
		var first string
		for i := range n { // not through the server: an fsync for each would take hours
			name := filepath.Join(dir, fmt.Sprintf("key-%07d@", i))
			if i%50_000 != 0 { // fewer links than any file system allows
				err = os.Link(first, name)
			} else {
				first, err = name, os.WriteFile(name, object, 0o600)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	took := map[string][]time.Duration{}
	list := func(bucket string, from int) time.Duration {
		began := time.Now()
		r, err := c.ListObjectsV2(bucket, "", fmt.Sprintf("key-%07d", from), "", "", page)
		if err != nil || len(r.Contents) != page {
			b.Fatalf("%d listed, %v", len(r.Contents), err)
		}
		return time.Since(began)
	}
	for bucket := range sizes {
		b.Logf("the first page of %d keys, which builds the index: %s", sizes[bucket], list(bucket, 0))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		for range pages {
			for bucket, n := range sizes {
				took[bucket] = append(took[bucket], list(bucket, rnd.IntN(n-page-1)))
			}
		}
	}
	for bucket := range sizes {
		slices.Sort(took[bucket])
	}
	small, large := took["small"], took["large"]
	ratio := float64(large[len(large)/2]) / float64(small[len(small)/2])
	b.ReportMetric(float64(large[len(large)/2].Microseconds()), "us/page-of-a-million")
	b.ReportMetric(float64(small[len(small)/2].Microseconds()), "us/page-of-ten-thousand")
	b.ReportMetric(ratio, "times")
	if ratio > most {
		b.Errorf("a page of a million keys takes %.2f times as long as one of ten thousand", ratio)
	}
}

// BenchmarkOpen opens a directory of 100,000 buckets with two objects each.
func BenchmarkOpen(b *testing.B) {
	const buckets = 100_000
	dir := b.TempDir()
	open := func() *embedded.Server {
		s, err := embedded.Open(embedded.Config{Dir: dir, Listen: "127.0.0.1:0", AccessKey: accessKey, SecretKey: secretKey, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	open().Close()
	s := start(b, b.TempDir())
	c := s.client(nil)
	put(b, c, s.bucket(c, "model"), "x", []byte("x"))
	object, err := os.ReadFile(filepath.Join(s.dir, "buckets", "model", "x@"))
	if err != nil {
		b.Fatal(err)
	}
	for i := range buckets { // not through the server: an fsync for each would take an hour
		bucket := filepath.Join(dir, "buckets", fmt.Sprintf("job-%06d", i))
		for _, name := range []string{"inputs", "outputs"} {
			if err := os.MkdirAll(filepath.Join(bucket, name), 0o700); err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(bucket, name, "x@"), object, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	syscall.Sync()
	var heap runtime.MemStats
	for b.Loop() {
		s := open()
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		if err := s.Serve(ctx); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&heap)
		s.Close()
	}
	b.ReportMetric(float64(heap.HeapAlloc)/1e6, "heap-MB")
}
