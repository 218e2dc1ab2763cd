package shepherd_test

import (
	"context"
	"os"
	"sync/atomic"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/storagetest"
)

// frozenStore is the storage of a node that is suspended at a step, and goes on later
// as if nothing had happened: its requests are sent whatever was cancelled meanwhile.
type frozenStore struct {
	storage.Store
	storage.Fencer
	at      string // the step
	reached chan struct{}
	thaw    chan struct{}
	done    chan struct{} // when the step is made
}

func (s *frozenStore) freeze(ctx context.Context, at string) (context.Context, func()) {
	if at != s.at {
		return ctx, func() {}
	}
	close(s.reached)
	<-s.thaw
	return context.WithoutCancel(ctx), func() { close(s.done) }
}

func (s *frozenStore) CollectApart(ctx context.Context, id job.ID, attempt int64, dir *os.Root) (storage.Apart, error) {
	ctx, done := s.freeze(ctx, "collect")
	defer done()
	apart, err := s.Fencer.CollectApart(ctx, id, attempt, dir)
	return &frozenApart{apart, s}, err
}

// frozenApart are outputs of a frozenStore.
type frozenApart struct {
	storage.Apart
	of *frozenStore
}

func (a *frozenApart) Promote(ctx context.Context, replace bool) error {
	ctx, done := a.of.freeze(ctx, "promote")
	defer done()
	return a.Apart.Promote(context.WithoutCancel(ctx), replace)
}

// oneClaim is a ledger of which a node gets one job.
type oneClaim struct {
	ledger.Ledger
	got atomic.Bool
}

func (l *oneClaim) Claim(ctx context.Context, slot ledger.Slot) (*ledger.Claim, error) {
	if l.got.Load() {
		return nil, nil
	}
	claim, err := l.Ledger.Claim(ctx, slot)
	l.got.Store(claim != nil)
	return claim, err
}

// A node is suspended while it stores a job's outputs. Its job is another node's, which
// runs it to its end. The first node goes on: the outputs are the second's alone.
func TestLateOutputs(t *testing.T) {
	for _, at := range []string{"collect", "promote"} {
		t.Run(at, func(t *testing.T) {
			p := newFixture(t, "left")
			write := func(names ...string) fake.Handler {
				return func(_ context.Context, _ job.Model, in messenger.Input) error {
					for _, name := range names[1:] {
						if err := fake.WriteOutput(in, name, []byte(names[0])); err != nil {
							return err
						}
					}
					return nil
				}
			}
			p.handle = write("left", job.DefaultOutput, "left")
			frozen := &frozenStore{
				Store: p.store, Fencer: p.store.Store.(storage.Fencer), at: at,
				reached: make(chan struct{}), thaw: make(chan struct{}), done: make(chan struct{}),
			}
			p.config.Peers, p.config.Store = nodes{"node", "other"}, frozen
			p.config.Ledger = &oneClaim{Ledger: p.ledger}
			q := *p
			q.core, q.runners, q.sheep, q.handle = nil, fake.NewRunners(), []string{"right"}, write("right", job.DefaultOutput, "right")
			q.config.Node, q.config.DataRoot, q.config.Store = "other", p.dir+"/other", p.store.Store
			q.config.Ledger = p.ledger
			t.Cleanup(q.stop)
			p.start()
			p.submit("job", "m", "x")
			receive(t, frozen.reached, "the outputs are not stored")
			q.start()
			claims, err := p.ledger.Held(t.Context(), "node")
			if err != nil || len(claims) != 1 {
				t.Fatalf("node holds %v, %v", claims, err)
			}
			lost := ledger.Return{Cause: job.CauseNodeLost, Spent: true}
			if _, err := p.ledger.Release(t.Context(), "job", claims[0].Token, lost); err != nil {
				t.Fatal(err)
			}
			q.await("job", job.Done)
			close(frozen.thaw)
			receive(t, frozen.done, "the node that was suspended does not go on")
			p.stop()
			files, err := storagetest.All(q.store.List(t.Context(), "job", job.OutputDir+"/"))
			if err != nil || len(files) != 2 || files[0].Name != "outputs/output" || files[1].Name != "outputs/right" {
				t.Errorf("the outputs are %v, %v", files, err)
			}
			if got := q.output("job"); got != "right" {
				t.Errorf("the output is of %s", got)
			}
		})
	}
}
