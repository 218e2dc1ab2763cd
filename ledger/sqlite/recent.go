package sqlite

import (
	"sync"

	"github.com/iterait/shepherd/job"
)

// Bounds of the rows that are kept in memory: their number, and the bytes of a
// row's failure.
const (
	recentRows       = 1024
	recentRowFailure = 4 << 10
)

// rowCache holds the rows that were committed last: those of the jobs that are
// under way, unless there are very many. What a job's way through the daemon
// reads of it is found here and not in the file. Rows are not changed once they
// are in it.
type rowCache struct {
	mu    sync.RWMutex
	byID  map[job.ID]*row
	bySeq map[int64]*row
	order []*row // as they came, some of them replaced meanwhile
}

func newRowCache() *rowCache {
	return &rowCache{byID: make(map[job.ID]*row), bySeq: make(map[int64]*row)}
}

// get returns a row, nil where it is not here.
func (c *rowCache) get(id job.ID) *row {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byID[id]
}

func (c *rowCache) getSeq(seq int64) *row {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.bySeq[seq]
}

// publish takes over what a transaction changed; nil for what is to be read from
// the file.
func (c *rowCache) publish(changed map[job.ID]*row) {
	if len(changed) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, r := range changed {
		if old := c.byID[id]; old != nil {
			c.drop(old)
		}
		if r == nil || r.Failure != nil && len(r.Failure.Message)+len(r.Failure.Traceback) > recentRowFailure {
			continue
		}
		c.byID[id], c.bySeq[r.Seq] = r, r
		c.order = append(c.order, r)
	}
	for len(c.byID) > recentRows || len(c.order) > 4*recentRows {
		oldest := c.order[0]
		c.order[0] = nil
		if c.order = c.order[1:]; c.byID[oldest.ID] == oldest {
			c.drop(oldest)
		}
	}
}

func (c *rowCache) drop(r *row) {
	delete(c.byID, r.ID)
	delete(c.bySeq, r.Seq)
}
