package bench

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// BenchmarkWaiters holds 10,000 clients on wait_ready and 1,000 that follow all events,
// each with a connection of its own. It measures their memory in the daemon, compared with an
// idle net/http handler for each, and the CPU time while nothing happens. Then the job ends,
// and all of them are answered.
func BenchmarkWaiters(b *testing.B) {
	const waiters, streams, quiet = 10_000, 1_000, 10 * time.Second
	null, nullPID := startNull(b)
	before := resident(b, nullPID)
	idle := connect(b, null, "/wait", waiters)
	settled(b, nullPID)
	least := (resident(b, nullPID) - before) / waiters
	for _, c := range idle {
		c.Close()
	}

	w := newEmbeddedWorld(b, programs)
	w.start()
	id := names("job")
	must(b, w.do(id(), "noop:v1"))
	held := id()
	must(b, w.submit(held, "hold:v1", payload))
	pid := w.daemon.Process.Pid
	settled(b, pid)
	before = resident(b, pid)
	waiting := connect(b, w.api, "/jobs/"+held+"/wait_ready", waiters)
	settled(b, pid)
	waited := resident(b, pid)
	following := connect(b, w.api, "/events", streams)
	for _, c := range following {
		must(b, c.expect("retry: "))
	}
	settled(b, pid)
	all := resident(b, pid)
	atMost(b, "RSS with 10,000 clients that wait and 1,000 streams of events", all, "MiB", 200)
	note(b, "RSS for each client that waits", 1024*(waited-before)/waiters, "KiB")
	note(b, "RSS for each stream of events", 1024*(all-waited)/streams, "KiB")
	note(b, "RSS for each request that net/http holds", 1024*least, "KiB")
	atMost(b, "RSS for each client that waits, of that", (waited-before)/waiters/least, "times", 1)

	used := cpuTime(b, pid)
	time.Sleep(quiet) // nothing happens meanwhile
	note(b, "CPU time while they wait and nothing happens", 100*float64(cpuTime(b, pid)-used)/float64(quiet), "% of a core")

	began := time.Now()
	_, err := w.ask("POST", "/jobs/"+held+"/cancel", []byte("{}"))
	must(b, err)
	var told errgroup.Group
	took := make([]time.Duration, 2)
	for i, group := range [][]*waiter{following, waiting} {
		text := []string{"event: ended", `"cancelled"`}[i]
		told.Go(func() error {
			for _, c := range group {
				if err := c.expect(text); err != nil {
					return err
				}
			}
			took[i] = time.Since(began)
			return nil
		})
	}
	must(b, told.Wait())
	hoped(b, "an event at all streams", took[0].Seconds(), "s", 1)
	note(b, "a job's end at all that wait", took[1].Seconds(), "s")
}

// waiter is a client that waits for an answer. It has no buffers while it waits, because the
// benchmark shares the machine with the daemon.
type waiter struct {
	net.Conn
	path string
}

// connect makes n connections to a server, from enough addresses for the daemon's limit for
// one, and requests path on each. They are closed at the end of the benchmark.
func connect(b *testing.B, server, path string, n int) []*waiter {
	b.Helper()
	const perAddress = 2500
	host := strings.TrimPrefix(server, "http://")
	from := netip.MustParseAddr("127.0.0.1")
	made := make([]*waiter, n)
	for i := range made {
		if i%perAddress == 0 {
			from = from.Next()
		}
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		conn, err := dialer.DialContext(b.Context(), "tcp", host)
		must(b, err)
		b.Cleanup(func() { conn.Close() })
		must(b, conn.SetDeadline(time.Now().Add(hang)))
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", path, host)
		must(b, err)
		made[i] = &waiter{conn, path}
	}
	return made
}

// expect reads until a successful answer has the text.
func (c *waiter) expect(text string) error {
	var read []byte
	for part := make([]byte, 1024); ; {
		n, err := c.Read(part)
		read = append(read, part[:n]...)
		switch {
		case bytes.Contains(read, []byte(text)):
			return nil
		case err != nil:
			return fmt.Errorf("%s: %q came, without %q: %w", c.path, read, text, err)
		}
	}
}

// settled waits until the memory of a process has not grown for a second. Nothing else shows
// that requests without an answer were read.
func settled(b *testing.B, pid int) {
	b.Helper()
	most, since := resident(b, pid), time.Now()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for time.Since(since) < time.Second {
		<-again.C
		if now := resident(b, pid); now > most {
			most, since = now, time.Now()
		}
	}
}
