package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func benchLedger(b *testing.B) *Ledger {
	b.Helper()
	return mustOpen(b, Config{Path: filepath.Join(b.TempDir(), "ledger.db")})
}

// fill queues n jobs, by many callers at once.
func fill(tb testing.TB, l *Ledger, from, n int) {
	tb.Helper()
	var next atomic.Int64
	next.Store(int64(from))
	failed := make(chan error, 16)
	for range cap(failed) {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= from+n {
					failed <- nil
					return
				}
				if _, err := l.Create(tb.Context(), numbered(i)); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			tb.Fatal(err)
		}
	}
}

func numbered(i int) job.Record {
	return job.Record{ID: job.ID(fmt.Sprintf("job-%09d", i)), Model: job.Model{Name: "model", Version: fmt.Sprint(i % 3)}}
}

// BenchmarkCreate queues jobs durably: by one caller, who waits for each, and
// by sixteen, who share commits.
func BenchmarkCreate(b *testing.B) {
	b.Run("sequential", func(b *testing.B) {
		l := benchLedger(b)
		var times []time.Duration
		before := cpu(b)
		for i := 0; b.Loop(); i++ {
			begin := time.Now()
			if _, err := l.Create(b.Context(), numbered(i)); err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Since(begin))
		}
		b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(len(times)), "cpu-µs/op")
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
	})
	b.Run("16-way", func(b *testing.B) {
		l := benchLedger(b)
		before := l.writer.commits.Load()
		b.ResetTimer()
		fill(b, l, 0, b.N)
		b.StopTimer()
		b.ReportMetric(float64(l.writer.commits.Load()-before)/float64(b.N), "commits/op")
	})
}

// cpu is the processor time this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// resident is how much of this process is in memory, in MiB.
func resident(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return float64(pages*os.Getpagesize()) / (1 << 20)
}

// BenchmarkQueueLength shows, in one run, how much longer a step takes with
// 100,000 jobs queued than with 1,000.
func BenchmarkQueueLength(b *testing.B) {
	const short, long, sample = 1_000, 100_000, 500
	for range b.N {
		l := benchLedger(b)
		fill(b, l, 0, short)
		create1, claim1, finish1 := steps(b, l, short, sample)
		fill(b, l, short+sample, long-short)
		create2, claim2, finish2 := steps(b, l, long+sample, sample)
		b.ReportMetric(resident(b), "rss-MiB")
		b.ReportMetric(micros(create2, sample), "create-µs")
		b.ReportMetric(micros(claim2, sample), "claim-µs")
		b.ReportMetric(micros(finish2, sample), "finish-µs")
		b.ReportMetric(float64(create2)/float64(create1), "create-ratio")
		b.ReportMetric(float64(claim2)/float64(claim1), "claim-ratio")
		b.ReportMetric(float64(finish2)/float64(finish1), "finish-ratio")
		b.StopTimer()
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		again, err := Open(b.Context(), Config{Path: l.path})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(begin).Microseconds())/1000, "open-ms")
		again.Close()
		b.StartTimer()
	}
}

func micros(d time.Duration, n int) float64 { return float64(d.Microseconds()) / float64(n) }

// steps creates, claims and finishes n jobs one after the other.
func steps(b *testing.B, l *Ledger, from, n int) (create, claim, finish time.Duration) {
	b.Helper()
	slot := ledger.Slot{Node: "n", Sheep: "a", Prefer: job.Model{Name: "model", Version: "1"}}
	for i := range n {
		begin := time.Now()
		if _, err := l.Create(b.Context(), numbered(from+i)); err != nil {
			b.Fatal(err)
		}
		created := time.Now()
		c, err := l.Claim(b.Context(), slot)
		if err != nil || c == nil {
			b.Fatalf("Claim: %v, %v", c, err)
		}
		claimed := time.Now()
		if _, err := l.Finish(b.Context(), c.ID, c.Token, ledger.Outcome{State: job.Done, Cause: job.CauseDone}); err != nil {
			b.Fatal(err)
		}
		create += created.Sub(begin)
		claim += claimed.Sub(created)
		finish += time.Since(claimed)
	}
	return create, claim, finish
}

// BenchmarkJob takes one job after the other from its submission to its end, with
// 20,000 jobs of 20 models waiting: claimed ahead, then started.
func BenchmarkJob(b *testing.B) {
	l := benchLedger(b)
	var group sync.WaitGroup
	for worker := range 10 {
		group.Go(func() {
			for i := range 2000 {
				rec := numbered(worker*2000 + i)
				rec.Model.Version = fmt.Sprint(i % 20)
				if _, err := l.Create(b.Context(), rec); err != nil {
					b.Error(err)
				}
			}
		})
	}
	group.Wait()
	slot := ledger.Slot{Node: "n", Sheep: "a", Prefer: job.Model{Name: "model", Version: "7"}, Ahead: true}
	commits, used := l.writer.commits.Load(), cpu(b)
	for i := 0; b.Loop(); i++ {
		rec := numbered(1_000_000 + i)
		rec.Model.Version = fmt.Sprint(i % 20)
		if _, err := l.Create(b.Context(), rec); err != nil {
			b.Fatal(err)
		}
		c, err := l.Claim(b.Context(), slot)
		if err != nil || c == nil {
			b.Fatalf("Claim: %v, %v", c, err)
		}
		if _, err := l.Start(b.Context(), c.ID, c.Token); err != nil {
			b.Fatal(err)
		}
		if _, err := l.Finish(b.Context(), c.ID, c.Token, ledger.Outcome{State: job.Done, Cause: job.CauseDone}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(l.writer.commits.Load()-commits)/float64(b.N), "commits/op")
	b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkClaimExcept shows, in one run, how much longer a claim takes where
// 20,000 jobs of models that the sheep cannot run come first than where 500 do.
func BenchmarkClaimExcept(b *testing.B) {
	const short, long, sample = 500, 20_000, 300
	slot := ledger.Slot{Node: "n", Sheep: "a", Ahead: true}
	for i := range 3 {
		slot.Except = append(slot.Except, job.Model{Name: "model", Version: fmt.Sprint(i)})
	}
	claims := func(l *Ledger) time.Duration {
		for i := range sample {
			if _, err := l.Create(b.Context(), job.Record{ID: job.ID(fmt.Sprint("mine", i)), Model: job.Model{Name: fmt.Sprint("mine", i%20)}}); err != nil {
				b.Fatal(err)
			}
		}
		begin := time.Now()
		for range sample {
			c, err := l.Claim(b.Context(), slot)
			if err != nil || c == nil {
				b.Fatalf("Claim: %v, %v", c, err)
			}
			if _, err := l.Finish(b.Context(), c.ID, c.Token, ledger.Outcome{State: job.Done, Cause: job.CauseDone}); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(begin)
	}
	for range b.N {
		l := benchLedger(b)
		fill(b, l, 0, short)
		few := claims(l)
		fill(b, l, short, long-short)
		many := claims(l)
		b.ReportMetric(micros(many, sample), "claim+finish-µs")
		b.ReportMetric(float64(many)/float64(few), "claim+finish-ratio")
	}
}

// BenchmarkWaiting looks at what waits, for the metrics, with 100,000 jobs in the
// queue of ten models and five sheep, all of another priority.
func BenchmarkWaiting(b *testing.B) {
	l := benchLedger(b)
	var kinds sync.WaitGroup
	for kind := range 50 {
		kinds.Go(func() {
			for i := range 2000 {
				rec := numbered(kind*2000 + i)
				rec.Priority, rec.Model.Version, rec.Sheep = i, fmt.Sprint(kind%10), fmt.Sprint("sheep", kind/10)
				if _, err := l.Create(b.Context(), rec); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	kinds.Wait()
	b.ResetTimer()
	for b.Loop() {
		if list, err := l.Waiting(b.Context(), 64); err != nil || len(list) != 50 || list[0].Jobs != 2000 {
			b.Fatal(list, err)
		}
	}
}
