package access

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limits is a rate limit for each of many keys. A nil *limits limits nothing.
type limits struct {
	rate  rate.Limit
	burst int

	mu    sync.Mutex
	each  map[string]*rate.Limiter
	sweep int // the number of limiters at which full ones are dropped
}

// mostAtRest is how many limiters are kept before full ones, which are equivalent to new
// ones, are dropped.
const mostAtRest = 4096

func newLimits(perSecond float64, burst int) *limits {
	if perSecond <= 0 {
		return nil
	}
	return &limits{rate: rate.Limit(perSecond), burst: max(burst, 1), each: make(map[string]*rate.Limiter), sweep: mostAtRest}
}

// take reports whether who may proceed now, and if not, after which time.
func (l *limits) take(who string) (wait time.Duration, ok bool) {
	if l == nil {
		return 0, true
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.each[who]
	if limiter == nil {
		if len(l.each) >= l.sweep {
			l.drop(now)
		}
		limiter = rate.NewLimiter(l.rate, l.burst)
		l.each[who] = limiter
	}
	if limiter.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - limiter.TokensAt(now)
	return time.Duration(missing / float64(l.rate) * float64(time.Second)), false
}

// drop drops full limiters. The caller holds mu. It runs again when the number of limiters
// has doubled.
func (l *limits) drop(now time.Time) {
	for who, limiter := range l.each {
		if limiter.TokensAt(now) >= float64(l.burst) {
			delete(l.each, who)
		}
	}
	l.sweep = max(mostAtRest, 2*len(l.each))
}
