package server

import (
	"log/slog"
	"sync"
	"time"
)

// limiter limits log lines that a runner or daemon can cause at will: it writes at most
// burst lines in each period, and the number of those it dropped.
type limiter struct {
	log *slog.Logger

	mu      sync.Mutex
	since   time.Time
	written int
	dropped int // lines not written in this period
}

const (
	burst  = 10
	period = 10 * time.Second
)

func newLimiter(log *slog.Logger) *limiter { return &limiter{log: log} }

func (l *limiter) warn(msg string, args ...any) {
	if l.admit(time.Now()) {
		l.log.Warn(msg, args...)
	}
}

func (l *limiter) admit(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= period {
		if l.dropped > 0 {
			l.log.Warn("more lines like these were dropped", "lines", l.dropped)
		}
		l.since, l.written, l.dropped = now, 0, 0
	}
	if l.written == burst {
		l.dropped++
		return false
	}
	l.written++
	return true
}
