package bench

import (
	"bufio"
	"context"
	"net/http"
	"sync"
	"testing"
	"time"
)

// BenchmarkPages runs a job a second, without pages and with a hundred open pages, which
// send the requests of browsers: the difference is the cost of the pages, as a part of a
// core.
func BenchmarkPages(b *testing.B) {
	const pages, watched = 100, 15 * time.Second
	w := newEmbeddedWorld(b, programs)
	w.start()
	id := names("job")
	must(b, w.do(id(), "noop:v1"))
	share := func() float64 {
		used, began := cpuTime(b, w.daemon.Process.Pid), time.Now()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for time.Since(began) < watched {
			must(b, w.do(id(), "noop:v1"))
			<-tick.C
		}
		return 100 * float64(cpuTime(b, w.daemon.Process.Pid)-used) / float64(time.Since(began))
	}
	alone := share()

	ctx, leave := context.WithCancel(b.Context())
	var open, heard sync.WaitGroup
	transport := &http.Transport{}
	for range pages {
		heard.Add(1)
		open.Go(func() {
			told := sync.OnceFunc(heard.Done)
			defer told()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.api+"/flock", nil)
			if err != nil {
				b.Error(err)
				return
			}
			answer, err := transport.RoundTrip(request)
			if err != nil {
				b.Error(err)
				return
			}
			defer answer.Body.Close()
			lines := bufio.NewScanner(answer.Body)
			lines.Buffer(nil, 4<<20)
			for lines.Scan() {
				told()
			}
		})
	}
	heard.Wait()
	seen := share()
	leave()
	open.Wait()
	transport.CloseIdleConnections()
	note(b, "the daemon with a job a second", alone, "% of a core")
	atMost(b, "a hundred open pages beside it", seen-alone, "% of a core", 5)
}
