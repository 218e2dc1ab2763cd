package shepherd_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Beyond the bound no job is taken, and nothing of it is left in storage.
func TestQueueBound(t *testing.T) {
	p := newFixture(t)
	p.config.MaxQueued = 2
	p.start()
	later := func(r *job.Request) { r.NotBefore = time.Now().Add(time.Hour) }
	p.submit("one", "m", "1", later)
	p.submit("two", "m", "2", later)
	var full *job.QueueFull
	r := job.Request{ID: "three", Model: job.Model{Name: "m"}, Payload: []byte("3")}
	if err := p.core.Submit(t.Context(), r); !errors.As(err, &full) || full.Limit != 2 {
		t.Fatalf("a third job: %v", err)
	}
	if p.there("three") {
		t.Error("a job that was refused is in storage")
	}
	if err := p.core.Cancel(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	p.submit("three", "m", "3")
	p.await("three", job.Done)
}

// A disk that is nearly full: no job is taken while it is the ledger's, and none
// fails while it is that of the inputs.
func TestDisksNearlyFull(t *testing.T) {
	p := newFixture(t)
	var state, stage atomic.Bool
	full := fmt.Errorf("the disk has 3 MiB left: %w", errdefs.ErrResourceExhausted)
	p.config.StateRoom = func() error {
		if state.Load() {
			return full
		}
		return nil
	}
	p.config.StageRoom = func(int64) error {
		if stage.Load() {
			return full
		}
		return nil
	}
	p.start()
	state.Store(true)
	var away *job.Unavailable
	r := job.Request{ID: "refused", Model: job.Model{Name: "m"}, Payload: []byte("1")}
	if err := p.core.Submit(t.Context(), r); !errors.As(err, &away) || !errors.Is(err, full) || !strings.Contains(away.Error(), "disk of the ledger is nearly full") {
		t.Fatalf("with a full disk of the ledger: %v", err)
	}
	if p.there("refused") {
		t.Error("a job that was refused is in storage")
	}
	state.Store(false)

	stage.Store(true)
	p.submit("waits", "m", "2")
	p.eventually("the sheep says why it rests", func() bool {
		return strings.Contains(p.core.Sheep(t.Context())[0].Detail, "3 MiB left")
	})
	if status, err := p.core.Job(t.Context(), "waits"); err != nil || status.State.Final() {
		t.Errorf("the job is %+v, %v", status, err)
	}
	stage.Store(false)
	p.await("waits", job.Done)
}
