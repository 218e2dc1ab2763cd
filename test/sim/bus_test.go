package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// bus is where every call of a core to its ledger, its storage and its sheep
// parks until the scheduler picks it. Which is next, and its reply, depends only on the
// seed.
type bus struct {
	arrived chan struct{} // receives after a call has parked

	mu     sync.Mutex
	parked []*call
	serial map[string]int
}

// call is a parked call.
type call struct {
	to     target
	by     *incarnation
	name   string
	serial int // among those of the same name
	due    time.Time
	reply  chan reply // receives once
}

// target is the part that is called.
type target string

const (
	toLedger  target = "ledger"
	toStorage target = "storage"
	toSheep   target = "sheep"
)

// reply is the result of a call.
type reply int

const (
	proceeds reply = iota
	fails          // it is not made, and returns an error
	lies           // it is made, and returns an error
	full           // it is not made, because there is no room for what it writes
	odd            // an error that is specific to this call
	deaf           // a runner is started that never takes a job
	cutOff         // its caller has crashed
	gaveUp         // its context has ended
)

// errCrashed is the error of all calls of a core whose process has crashed. It has no class, so
// that it is not tried again.
var errCrashed = errors.New("the node has crashed")

func newBus() *bus {
	return &bus{arrived: make(chan struct{}, 1), serial: make(map[string]int)}
}

// enter parks a call until it is picked, its caller crashes, or ctx ends.
func (b *bus) enter(ctx context.Context, by *incarnation, to target, name string) reply {
	if by.dead() {
		return cutOff
	}
	if ctx.Err() != nil {
		return gaveUp
	}
	c := &call{to: to, by: by, name: fmt.Sprintf("%s %s %s", by.node.name, to, name), reply: make(chan reply, 1)}
	b.mu.Lock()
	b.serial[c.name]++
	c.serial = b.serial[c.name]
	b.parked = append(b.parked, c)
	b.mu.Unlock()
	select {
	case b.arrived <- struct{}{}:
	default:
	}
	select {
	case f := <-c.reply:
		return f
	case <-by.crashed:
		b.leave(c)
		return cutOff
	case <-ctx.Done():
		b.leave(c)
		return gaveUp
	}
}

func (b *bus) leave(c *call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parked = slices.DeleteFunc(b.parked, func(other *call) bool { return other == c })
}

// waiting returns the parked calls in an order that does not depend on when they were made.
func (b *bus) waiting() []*call {
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.SortFunc(b.parked, func(a, b *call) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.serial, b.serial))
	})
	return slices.Clone(b.parked)
}

func (b *bus) pick(c *call, f reply) {
	b.leave(c)
	c.reply <- f
}

// journal is the log of a world, for the message of its failure and to compare two runs of a
// seed.
type journal struct {
	began time.Time
	mu    sync.Mutex
	lines []string
	sum   uint64
}

const journalLines = 20_000 // that are kept

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	line := fmt.Sprintf("%10s  %s", time.Since(j.began).Round(time.Microsecond), fmt.Sprintf(format, args...))
	h := fnv.New64a()
	fmt.Fprintf(h, "%x%s", j.sum, line)
	j.sum = h.Sum64()
	if len(j.lines) >= 2*journalLines {
		j.lines = append(j.lines[:0], j.lines[journalLines:]...)
	}
	j.lines = append(j.lines, line)
}

// dice makes the random choices of a seed.
type dice struct{ *rand.Rand }

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 0x5eed))} }

// chance returns true once in n times.
func (d dice) chance(n int) bool { return n > 0 && d.IntN(n) == 0 }

// span returns a duration up to most.
func (d dice) span(most time.Duration) time.Duration {
	return time.Duration(d.Int64N(int64(most))).Truncate(time.Millisecond)
}

func choose[T any](d dice, from []T) T { return from[d.IntN(len(from))] }

// journalWriter writes the log of a node's daemon to the journal until it crashes.
type journalWriter struct{ by *incarnation }

func (w journalWriter) Write(line []byte) (int, error) {
	if !w.by.dead() {
		w.by.log.add("%s logs %s", w.by.node.name, strings.TrimSpace(string(line)))
	}
	return len(line), nil
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
