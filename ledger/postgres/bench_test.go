package postgres

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// BenchmarkFleet has 20 nodes with 4 sheep each take jobs through one database: each is
// submitted, claimed and finished.
func BenchmarkFleet(b *testing.B) {
	const nodes, sheep = 20, 4
	url := newDatabase(b)
	var ledgers []*Ledger
	for range nodes {
		ledgers = append(ledgers, mustOpen(b, Config{URL: url + "&pool_max_conns=4", Lease: longLease}))
	}
	var next atomic.Int64
	var mu sync.Mutex
	var claims []time.Duration
	b.ResetTimer()
	var working sync.WaitGroup
	for i, l := range ledgers {
		for s := range sheep {
			slot := ledger.Slot{Node: fmt.Sprint("node", i), Sheep: fmt.Sprint("sheep", s)}
			working.Go(func() {
				for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
					if _, err := l.Create(b.Context(), job.Record{ID: job.ID(fmt.Sprint("job", n)), Model: red}); err != nil {
						b.Error(err)
						return
					}
					began := time.Now()
					c, err := l.Claim(b.Context(), slot)
					took := time.Since(began)
					if err != nil || c == nil {
						b.Errorf("Claim = %v, %v", c, err)
						return
					}
					mu.Lock()
					claims = append(claims, took)
					mu.Unlock()
					if _, err := l.Finish(b.Context(), c.ID, c.Token, done); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	working.Wait()
	b.StopTimer()
	var statements int64
	for _, l := range ledgers {
		statements += l.statements.Load()
	}
	slices.Sort(claims)
	if len(claims) > 0 {
		b.ReportMetric(float64(claims[len(claims)/2].Microseconds())/1000, "ms-claim-p50")
		b.ReportMetric(float64(claims[len(claims)*99/100].Microseconds())/1000, "ms-claim-p99")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	b.ReportMetric(float64(statements)/float64(b.N), "statements/job")
}
