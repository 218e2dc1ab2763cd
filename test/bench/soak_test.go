package bench

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// soakTenth is what the daemon uses after a tenth of the jobs.
type soakTenth struct {
	jobs, goroutines, descriptors int
	resident                      float64 // MiB
	ledger, storage               float64 // MiB on disk
	rate                          float64 // jobs per second since the last
}

// BenchmarkSoak takes SOAK_JOBS small jobs (20,000) through one bare sheep with the
// embedded storage, sixteen at a time, with short retention times, and measures after
// each tenth what the daemon uses: from the third tenth on, when records and events
// expire, it must not grow.
func BenchmarkSoak(b *testing.B) {
	jobs, err := strconv.Atoi(cmp.Or(os.Getenv("SOAK_JOBS"), "20000"))
	must(b, err)
	w := newEmbeddedWorld(b, programs)
	text, err := os.ReadFile(w.config)
	must(b, err)
	kept := strings.Replace(string(text), "storage: {", "ledger: {keep_jobs: 1000, event_number: 2000}\nstorage: {keep: {done: 1s}, ", 1)
	must(b, os.WriteFile(w.config, []byte(kept), 0o644))
	w.start()
	var tenths []soakTenth
	for i := range 10 {
		began := time.Now()
		together(b, 16, jobs/10, func(n int) error { return w.do(fmt.Sprintf("job-%d-%d", i, n), "noop:v1") })
		rate := float64(jobs/10) / time.Since(began).Seconds()
		s := w.soakTenth()
		for end := time.Now().Add(hang); s.storage > 1 && time.Now().Before(end); s = w.soakTenth() {
			time.Sleep(time.Second) // what is kept for a second expires at the next sweep
		}
		s.jobs, s.rate = (i+1)*jobs/10, rate
		tenths = append(tenths, s)
		b.Logf("%8d jobs: %6.1f MiB, %4d goroutines, %4d descriptors, ledger %6.1f MiB, storage %6.1f MiB, %5.0f jobs/s",
			s.jobs, s.resident, s.goroutines, s.descriptors, s.ledger, s.storage, s.rate)
	}
	early, last := tenths[2], tenths[9]
	for _, t := range tenths[3:9] { // the maximum, so that one measurement does not decide
		early.resident = max(early.resident, min(t.resident, 1.1*tenths[2].resident))
	}
	note(b, "soak jobs", float64(jobs), "jobs")
	atMost(b, "soak memory last to third tenth", last.resident/early.resident, "x", 1.2)
	atMost(b, "soak goroutines more than at the third tenth", float64(last.goroutines-early.goroutines), "goroutines", 20)
	atMost(b, "soak descriptors more than at the third tenth", float64(last.descriptors-early.descriptors), "descriptors", 20)
	atMost(b, "soak ledger last to third tenth", last.ledger/early.ledger, "x", 1.5)
	atMost(b, "soak storage after the last tenth", last.storage, "MiB", 1)
}

// soakTenth measures the daemon.
func (w *world) soakTenth() soakTenth {
	w.b.Helper()
	pid := w.daemon.Process.Pid
	s := soakTenth{resident: resident(w.b, pid)}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(w.b, err)
	s.descriptors = len(open)
	metrics, err := w.get("/metrics")
	must(w.b, err)
	found := regexp.MustCompile(`(?m)^go_goroutines (\d+)`).FindSubmatch(metrics)
	if found == nil {
		w.b.Fatal("the metrics do not tell the number of goroutines")
	}
	s.goroutines, err = strconv.Atoi(string(found[1]))
	must(w.b, err)
	files, err := filepath.Glob(filepath.Join(w.dir, "state", "ledger.db*"))
	must(w.b, err)
	s.ledger = w.diskUse(files...)
	s.storage = w.diskUse(filepath.Join(w.dir, "state", "storage"))
	return s
}

// diskUse returns the disk space of the files in MiB.
func (w *world) diskUse(paths ...string) float64 {
	w.b.Helper()
	var bytes int64
	for _, path := range paths {
		err := filepath.WalkDir(path, func(path string, entry os.DirEntry, err error) error {
			if os.IsNotExist(err) { // it was removed during the walk
				return nil
			}
			if err != nil {
				return err
			}
			var stat syscall.Stat_t
			if syscall.Lstat(path, &stat) == nil {
				bytes += stat.Blocks * 512
			}
			return nil
		})
		must(w.b, err)
	}
	return float64(bytes) / (1 << 20)
}
