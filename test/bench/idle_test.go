package bench

import (
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

// BenchmarkIdle starts a daemon without embedded storage several times, from
// the start of its process to the first 200 of /readyz, which needs ledger and storage.
// Its memory is measured after it was idle for a while.
func BenchmarkIdle(b *testing.B) {
	server := testenv.StartMinIO(b)
	w := newWorld(b, server.URL, server.AccessKey, server.SecretKey)
	var starts []time.Duration
	for range 7 {
		if w.daemon != nil {
			w.stop()
		}
		starts = append(starts, w.start())
	}
	hoped(b, "start to ready", ms(median(starts)), "ms", 200)
	time.Sleep(2 * time.Second) // this is what idle means
	// How much of the program's file is mapped, which is in the page cache anyway, is the
	// kernel's choice. Only the daemon's own memory has a bound.
	hoped(b, "RSS of the idle daemon", resident(b, w.daemon.Process.Pid), "MiB", 30)
	own, err := readMemory(w.daemon.Process.Pid, "RssAnon:")
	must(b, err)
	atMost(b, "of that, memory of its own", own, "MiB", 20)
}

// BenchmarkSwitch runs jobs whose model changes each time, in turns with jobs whose model
// is loaded: the difference is the cost of a switch.
func BenchmarkSwitch(b *testing.B) {
	server := testenv.StartMinIO(b)
	w := newWorld(b, server.URL, server.AccessKey, server.SecretKey)
	w.start()
	id := names("job")
	must(b, w.do(id(), "noop:v1"))
	var same, other []time.Duration
	for i := range 20 {
		model := []string{"noop:v2", "noop:v1"}[i%2]
		began := time.Now()
		must(b, w.do(id(), model))
		middle := time.Now()
		must(b, w.do(id(), model))
		other, same = append(other, middle.Sub(began)), append(same, time.Since(middle))
	}
	note(b, "model switch", ms(median(other)-median(same)), "ms")
	atMost(b, "RSS of the shim", resident(b, w.shim()), "MiB", 12)
}
