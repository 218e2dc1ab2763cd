package shepherd_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/memory"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	storage "github.com/iterait/shepherd/storage/memory"
)

// silent is a ledger that answers nothing once it is away: a call then takes ten seconds,
// as those of a database do that cannot be reached, or until its context ends.
type silent struct {
	*memory.Ledger
	away atomic.Bool
	lost chan struct{} // the node's lease
}

func (l *silent) answer(ctx context.Context) error {
	if !l.away.Load() {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Second):
		return errdefs.ErrUnavailable
	}
}

// ofSilence is its lease.
type ofSilence struct{ l *silent }

func (s ofSilence) Lost() <-chan struct{}             { return s.l.lost }
func (s ofSilence) Release(ctx context.Context) error { return s.l.answer(ctx) }

func (l *silent) Join(context.Context, string) (ledger.Lease, error) { return ofSilence{l}, nil }

func (l *silent) Events(ctx context.Context, after job.Cursor, f ledger.EventFilter, limit int) ([]job.Event, job.Cursor, error) {
	if err := l.answer(ctx); err != nil {
		return nil, "", err
	}
	return l.Ledger.Events(ctx, after, f, limit)
}

func (l *silent) Get(ctx context.Context, id job.ID) (job.Record, error) {
	if err := l.answer(ctx); err != nil {
		return job.Record{}, err
	}
	return l.Ledger.Get(ctx, id)
}

func (l *silent) Claim(ctx context.Context, s ledger.Slot) (*ledger.Claim, error) {
	if err := l.answer(ctx); err != nil {
		return nil, err
	}
	return l.Ledger.Claim(ctx, s)
}

func (l *silent) Release(ctx context.Context, id job.ID, t ledger.Token, r ledger.Return) (job.Record, error) {
	if err := l.answer(ctx); err != nil {
		return job.Record{}, err
	}
	return l.Ledger.Release(ctx, id, t, r)
}

func (l *silent) SetCheckpoint(ctx context.Context, consumer string, at job.Cursor) error {
	if err := l.answer(ctx); err != nil {
		return err
	}
	return l.Ledger.SetCheckpoint(ctx, consumer, at)
}

// A node whose lease is lost while the database does not answer ends at once, whether it was
// stopped before or not: it waits for nothing that others do now.
func TestEndWithoutLedger(t *testing.T) {
	for _, c := range []struct {
		name    string
		stopped bool // before the lease was lost
		within  time.Duration
	}{
		{"by itself", false, time.Second},
		{"while it is stopped", true, 6 * time.Second}, // after the moment that what is nearly done may take
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := make(chan struct{})
				driver := fake.New(fake.Config{Runners: fake.NewRunners(), Handle: func(ctx context.Context, _ job.Model, _ messenger.Input) error {
					close(began)
					<-ctx.Done()
					return ctx.Err()
				}})
				sheep, err := driver.NewSheep("sheep", func(any) error { return nil })
				if err != nil {
					t.Fatal(err)
				}
				kept := &silent{Ledger: memory.New(memory.Config{}), lost: make(chan struct{})}
				core, err := shepherd.New(shepherd.Config{
					Node: "node", DataRoot: t.TempDir(), Ledger: kept, Store: new(storage.Store), MaxAttempts: 3, Log: slog.New(slog.DiscardHandler),
					Peers: nodes{"node", "other"}, Sheep: []shepherd.Member{{Name: "sheep", Type: "fake", Sheep: sheep}},
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := core.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				defer kept.Close()
				if err := core.Submit(t.Context(), job.Request{ID: "job-1", Model: job.Model{Name: "m", Version: "1"}, Payload: []byte("x")}); err != nil {
					t.Fatal(err)
				}
				<-began
				kept.away.Store(true)
				time.Sleep(9 * time.Second)
				at := time.Now()
				lose := func() { close(kept.lost) }
				if c.stopped {
					time.AfterFunc(3*time.Second, lose)
				} else {
					lose()
					<-core.LeaseLost()
				}
				atOnce, cancel := context.WithCancel(context.Background())
				cancel()
				core.Stop(atOnce)
				if took := time.Since(at); took > c.within {
					t.Errorf("it takes %v to end, at most %v are allowed", took, c.within)
				}
			})
		})
	}
}
