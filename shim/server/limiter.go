package server

import (
	"log/slog"
	"sync"
	"time"
)

// limiter is a log for what the other side can cause at will: at most burst
// lines in each period, and a count of the rest.
type limiter struct {
	log *slog.Logger

	mu      sync.Mutex
	since   time.Time
	written int
	left    int // not written
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
		if l.left > 0 {
			l.log.Warn("more lines like these were left out", "lines", l.left)
		}
		l.since, l.written, l.left = now, 0, 0
	}
	if l.written == burst {
		l.left++
		return false
	}
	l.written++
	return true
}
