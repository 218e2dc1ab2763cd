package bench

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// BenchmarkQueue submits 100,000 jobs to a sheep that is busy, as clients do
// that have put the inputs into storage before, and kills the daemon then. Its
// storage is one that keeps nothing: filling a real one would take most of the
// time and tell nothing of the daemon.
func BenchmarkQueue(b *testing.B) {
	w := newWorld(b, startNull(b), "access-key", "secret-key")
	w.start()
	must(b, w.submit("busy", "hold:v1", ""))
	const jobs, submitters, thousand = 100_000, 16, 1000
	took := make([]time.Duration, jobs)
	began := time.Now()
	together(b, submitters, jobs, func(i int) error {
		began := time.Now()
		err := w.submit(fmt.Sprintf("job-%06d", i), "noop:v1", "")
		took[i] = time.Since(began)
		return err
	})
	note(b, "submissions of 16 clients", jobs/time.Since(began).Seconds(), "jobs/s")
	first, last := median(took[:thousand]), median(took[jobs-thousand:])
	note(b, "submitting one of the first thousand", ms(first), "ms")
	note(b, "submitting one of the last thousand of 100,000", ms(last), "ms")
	atMost(b, "the last thousand of the first", float64(last)/float64(first), "times", 1.5)
	atMost(b, "RSS with 100,000 jobs queued", resident(b, w.daemon.Process.Pid), "MiB", 150)

	w.kill()
	hoped(b, "ready after kill -9", w.start().Seconds(), "s", 2)
	atMost(b, "RSS then", resident(b, w.daemon.Process.Pid), "MiB", 150)
	for _, id := range []string{"job-000000", fmt.Sprintf("job-%06d", jobs-1)} {
		text, err := w.get("/jobs/" + id + "/status")
		must(b, err)
		if !bytes.Contains(text, []byte(`"queued"`)) {
			b.Errorf("job %s is lost: %s", id, text)
		}
	}
}
