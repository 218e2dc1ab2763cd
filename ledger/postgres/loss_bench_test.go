package postgres

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// The nodes of BenchmarkNodeLoss: those that are lost, with jobs, and those that are left.
const (
	lostNodes, lostJobs = 16, 4
	leftNodes           = 4
	lossLease           = 4 * time.Second
	// worstLoss is the longest time that is allowed, in leases: 15 s with the default one.
	worstLoss = 1.25
)

// BenchmarkNodeLoss loses nodes, each at a moment of its own, and measures how long it takes
// from then until others have claimed each of their jobs, in leases.
func BenchmarkNodeLoss(b *testing.B) {
	url := newDatabase(b) + "&pool_max_conns=4"
	var mu sync.Mutex
	lost := map[job.ID]time.Time{}
	var took []float64
	all := make(chan struct{}) // closed when every job of a lost node is claimed again

	var lostLedgers []*Ledger
	for n := range lostNodes {
		l := mustOpen(b, Config{URL: url, Lease: lossLease})
		node := fmt.Sprint("lost", n)
		if _, err := l.Join(b.Context(), node); err != nil {
			b.Fatal(err)
		}
		for i := range lostJobs {
			id := job.ID(fmt.Sprintf("job-%d-%d", n, i))
			if _, err := l.Create(b.Context(), job.Record{ID: id, Model: red}); err != nil {
				b.Fatal(err)
			}
			if c, err := l.Claim(b.Context(), ledger.Slot{Node: node, Sheep: fmt.Sprint("sheep", i), Only: id}); err != nil || c == nil {
				b.Fatalf("Claim = %v, %v", c, err)
			}
		}
		lostLedgers = append(lostLedgers, l)
	}
	var working sync.WaitGroup
	for n := range leftNodes {
		l := mustOpen(b, Config{URL: url, Lease: lossLease})
		slot := ledger.Slot{Node: fmt.Sprint("left", n), Sheep: "sheep"}
		if _, err := l.Join(b.Context(), slot.Node); err != nil {
			b.Fatal(err)
		}
		working.Go(func() {
			for {
				changed := l.Changed()
				c, err := l.Claim(b.Context(), slot)
				at := time.Now()
				switch {
				case err != nil:
					b.Error(err)
					return
				case c != nil:
					mu.Lock()
					took = append(took, at.Sub(lost[c.ID]).Seconds()/lossLease.Seconds())
					if len(took) == lostNodes*lostJobs {
						close(all)
					}
					mu.Unlock()
					continue
				}
				select {
				case <-changed:
				case <-all:
					return
				case <-time.After(10 * lossLease):
					b.Error("jobs of a lost node are not claimed")
					return
				}
			}
		})
	}
	b.ResetTimer()
	for n, l := range lostLedgers {
		working.Go(func() {
			time.Sleep(rand.N(lossLease))
			mu.Lock()
			for i := range lostJobs {
				lost[job.ID(fmt.Sprintf("job-%d-%d", n, i))] = time.Now()
			}
			mu.Unlock()
			if err := l.Close(); err != nil { // the lease goes on in the database
				b.Error(err)
			}
		})
	}
	working.Wait()
	b.StopTimer()
	if len(took) == 0 {
		b.Fatal("no job was claimed")
	}
	slices.Sort(took)
	median, worst := took[len(took)/2], took[len(took)-1]
	b.ReportMetric(median, "leases-p50")
	b.ReportMetric(worst, "leases-worst")
	b.ReportMetric(took[0], "leases-best")
	if took[0] < 0.75 {
		b.Errorf("a job was claimed again after %.2f leases, when its node had still relied on its own", took[0])
	}
	if worst > worstLoss {
		b.Errorf("a job was claimed again after %.2f leases, at most %.2f are allowed", worst, worstLoss)
	}
}
