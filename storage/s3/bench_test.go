package s3_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/s3"
)

const gib = 1 << 30

// BenchmarkSmall is what one request costs this process, in CPU time beside the
// time on the clock.
func BenchmarkSmall(b *testing.B) {
	store := benchStore(b)
	fatalB(b, store.Init(b.Context(), "bench", make([]byte, 1024)))
	b.Run("SetStatus", func(b *testing.B) {
		cpu(b, func() error { return store.SetStatus(b.Context(), "bench", job.Status{State: job.Done}) })
	})
	b.Run("Open", func(b *testing.B) {
		cpu(b, func() error {
			file, err := store.Open(b.Context(), "bench", "inputs/input", nil)
			if err != nil {
				return err
			}
			defer file.Body.Close()
			_, err = io.Copy(io.Discard, file.Body)
			return err
		})
	})
	b.Run("Stage", func(b *testing.B) {
		n, dir := 0, b.TempDir()
		cpu(b, func() error {
			n++
			path := filepath.Join(dir, fmt.Sprint(n))
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			root, err := os.OpenRoot(path)
			if err != nil {
				return err
			}
			defer root.Close()
			_, err = store.Stage(b.Context(), "bench", root, storage.Options{})
			return err
		})
	})
	b.Run("Init", func(b *testing.B) {
		n, base := 0, time.Now().UnixNano()
		cpu(b, func() error {
			n++
			return store.Init(b.Context(), job.ID(fmt.Sprintf("bench-%d-%d", base, n)), make([]byte, 1024))
		})
	})
}

// BenchmarkLarge moves 1 GiB each way.
func BenchmarkLarge(b *testing.B) {
	store := benchStore(b)
	dir := b.TempDir()
	fatalB(b, store.Init(b.Context(), "bench", nil))
	sparse(b, filepath.Join(dir, "outputs/large"), gib)
	b.Run("Collect", func(b *testing.B) {
		b.SetBytes(gib)
		cpu(b, func() error { _, err := store.Collect(b.Context(), "bench", openRoot(b, dir), false); return err })
	})
	file, err := os.Open(filepath.Join(dir, "outputs/large"))
	fatalB(b, err)
	defer file.Close()
	fatalB(b, store.Put(b.Context(), "bench", "inputs/large", file, gib))
	b.Run("Stage", func(b *testing.B) {
		b.SetBytes(gib)
		cpu(b, func() error {
			if err := os.RemoveAll(filepath.Join(dir, "inputs")); err != nil {
				return err
			}
			_, err := store.Stage(b.Context(), "bench", openRoot(b, dir), storage.Options{})
			return err
		})
	})
}

func benchStore(b *testing.B) *s3.Store {
	server := testenv.StartMinIO(b)
	return open(b, s3.Config{URL: server.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
}

// cpu runs the benchmark and reports this process's CPU time for each run.
func cpu(b *testing.B, run func() error) {
	b.ReportAllocs()
	before := used(b)
	for b.Loop() {
		fatalB(b, run())
	}
	b.ReportMetric(float64((used(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

func used(b *testing.B) time.Duration {
	var usage syscall.Rusage
	fatalB(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func fatalB(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
