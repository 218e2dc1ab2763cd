package shepherd

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// probed is a ledger that answers probes as it is told.
type probed struct {
	ledger.Ledger
	ping func(context.Context) error
}

func (p *probed) Ping(ctx context.Context) error                   { return p.ping(ctx) }
func (p *probed) Count(ctx context.Context) (ledger.Counts, error) { return nil, p.ping(ctx) }

// A core that works is alive, also when the ledger cannot be written; a lane, a
// lock or the ledger that is stuck is told.
func TestAlive(t *testing.T) {
	well := func(context.Context) error { return nil }
	for _, c := range []struct {
		name string
		ping func(context.Context) error
		do   func(l *lane)
		at   time.Duration // after now
		want string        // empty: it is alive
	}{
		{"idle", well, func(l *lane) { l.worker.pulse.works(); l.worker.pulse.waits() }, time.Hour, ""},
		{"at work", well, func(l *lane) { l.worker.pulse.works() }, time.Minute, ""},
		{"disk full", func(context.Context) error { return errdefs.ErrResourceExhausted }, nil, 0, ""},
		{"worker stuck", well, func(l *lane) { l.worker.pulse.works() }, time.Hour, "running of jobs of sheep dolly"},
		{"feeder stuck", well, func(l *lane) { l.feeder.pulse.works() }, time.Hour, "claiming of jobs of sheep dolly"},
		{"lane locked", well, func(l *lane) { l.state.mu.Lock() }, 0, "lock"},
		{"ledger stuck", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, nil, 0, "ledger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := New(Config{
				Node: "node", DataRoot: t.TempDir(), Ledger: &probed{ping: c.ping}, Store: noStore{},
				MaxAttempts: 1, Log: slog.New(slog.DiscardHandler), Sheep: []Member{{Name: "dolly"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			l := s.env.flock.named("dolly")
			if c.do != nil {
				c.do(l)
			}
			ctx := t.Context()
			if c.name == "lane locked" || c.name == "ledger stuck" { // the look ends with its context
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			err = s.aliveAt(ctx, time.Now().Add(c.at))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("it says %v, want %q", err, c.want)
			}
			if c.name == "lane locked" {
				l.state.mu.Unlock() // lets the look end
			}
		})
	}
}

type noStore struct{ storage.Store }
