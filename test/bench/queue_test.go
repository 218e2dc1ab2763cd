package bench

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// BenchmarkQueue submits 100,000 jobs, whose inputs are in storage, to a busy sheep, and
// then kills the daemon. The last thousand are submitted in turns with the first thousand
// of another daemon on the same machine. The storage keeps nothing: filling a real one
// would take most of the time and show nothing about the daemon.
func BenchmarkQueue(b *testing.B) {
	null, _ := startNull(b)
	w := newWorld(b, null, "access-key", "secret-key")
	w.start()
	must(b, w.submit("busy", "hold:v1", ""))
	const jobs, thousand, turns = 100_000, 1000, 20
	began := time.Now()
	submitMany(b, w, 0, jobs-thousand)
	note(b, "submissions of 16 clients", (jobs-thousand)/time.Since(began).Seconds(), "jobs/s")

	fresh := newWorld(b, null, "access-key", "secret-key")
	fresh.start()
	must(b, fresh.submit("busy", "hold:v1", ""))
	submitMany(b, fresh, 0, 200) // opens the connections
	var first, last []time.Duration
	for turn := range turns {
		first = append(first, submitMany(b, fresh, 200+turn*thousand/turns, thousand/turns)...)
		last = append(last, submitMany(b, w, jobs-thousand+turn*thousand/turns, thousand/turns)...)
	}
	note(b, "submitting one of the first thousand", ms(median(first)), "ms")
	note(b, "submitting one of the last thousand of 100,000", ms(median(last)), "ms")
	atMost(b, "the last thousand of the first", float64(median(last))/float64(median(first)), "times", 1.5)
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

// submitMany submits n jobs by sixteen clients, numbered from the given number
// on, and returns how long each took.
func submitMany(b *testing.B, w *world, from, n int) []time.Duration {
	b.Helper()
	took := make([]time.Duration, n)
	together(b, 16, n, func(i int) error {
		began := time.Now()
		err := w.submit(fmt.Sprintf("job-%06d", from+i), "noop:v1", "")
		took[i] = time.Since(began)
		return err
	})
	return took
}
