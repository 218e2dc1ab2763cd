package s3_test

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// cpuTime is what this process has used of the processors: a Store and its server
// both run in it.
func cpuTime(b *testing.B) time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// stores are both ways to the embedded storage.
func stores(b *testing.B) map[string]storage.Store {
	h, server := startEmbedded(b, "")
	direct, err := server.Store("", nil)
	fatalB(b, err)
	return map[string]storage.Store{"direct": direct, "http": h.Open(b, h.URL, h.AccessKey, h.SecretKey)}
}

// BenchmarkSmallJob is what a job with a small input and output asks of storage.
func BenchmarkSmallJob(b *testing.B) {
	payload := make([]byte, 1024)
	for name, store := range stores(b) {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			fatalB(b, os.Mkdir(filepath.Join(dir, "outputs"), 0o755))
			fatalB(b, os.WriteFile(filepath.Join(dir, "outputs/output"), payload, 0o600))
			root := openRoot(b, dir)
			before, n := cpuTime(b), 0
			for b.Loop() {
				n++
				id := job.ID("small-" + name + "-" + time.Now().Format("150405.000000000")[7:])
				fatalB(b, store.Init(b.Context(), id, payload))
				_, err := store.Stage(b.Context(), id, root, storage.Options{})
				fatalB(b, err)
				_, err = store.Collect(b.Context(), id, root, false)
				fatalB(b, err)
				fatalB(b, store.SetStatus(b.Context(), id, job.Status{State: job.Done}))
				fatalB(b, store.Remove(b.Context(), id))
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(n), "cpu-us/op")
		})
	}
}

// BenchmarkGiB takes 1 GiB out of storage and into it, beside what copying the
// same bytes and syncing them takes.
func BenchmarkGiB(b *testing.B) {
	const size = 1 << 30
	dir := b.TempDir()
	fatalB(b, os.Mkdir(filepath.Join(dir, "outputs"), 0o755))
	path := filepath.Join(dir, "outputs/large")
	file, err := os.Create(path)
	fatalB(b, err)
	piece := make([]byte, 1<<20)
	for i := range size >> 20 {
		piece[0], piece[1] = byte(i), byte(i>>8)
		_, err := file.Write(piece)
		fatalB(b, err)
	}
	fatalB(b, file.Sync())
	fatalB(b, file.Close())
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(2 * size)
		for b.Loop() {
			for range 2 { // in and out
				fatalB(b, copyFile(path, filepath.Join(dir, "copy")))
			}
		}
	})
	fatalB(b, os.RemoveAll(filepath.Join(dir, "copy")))
	for name, store := range stores(b) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(2 * size)
			for b.Loop() {
				const id = job.ID("large-job")
				fatalB(b, store.Init(b.Context(), id, nil))
				_, err := store.Collect(b.Context(), id, openRoot(b, dir), false)
				fatalB(b, err)
				b.StopTimer()
				in, err := store.Open(b.Context(), id, "outputs/large", nil)
				fatalB(b, err)
				fatalB(b, store.Put(b.Context(), id, "inputs/large", in.Body, size))
				fatalB(b, in.Body.Close())
				to := b.TempDir()
				b.StartTimer()
				_, err = store.Stage(b.Context(), id, openRoot(b, to), storage.Options{})
				fatalB(b, err)
				b.StopTimer()
				fatalB(b, os.RemoveAll(filepath.Join(to, "inputs")))
				fatalB(b, store.Remove(b.Context(), id))
				b.StartTimer()
			}
		})
	}
}

// copyFile is what cp does, with an fsync.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 256<<10)); err != nil {
		return err
	}
	return out.Sync()
}
