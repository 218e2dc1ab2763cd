package sqlite

import (
	"sync"

	"github.com/iterait/shepherd/job"
)

// Bounds of the rows in memory: their number, and the bytes of a row's failure.
const (
	maxCachedRows    = 1024
	maxCachedFailure = 4 << 10
)

// rowCache keeps the rows that were committed last, which are normally those of all jobs
// under way: their rows are read from here and not from the file. Rows in the cache are
// not changed.
type rowCache struct {
	mu    sync.RWMutex
	byID  map[job.ID]*row
	bySeq map[int64]*row
	order []*row // by time of commit; some are replaced by later ones
}

func newRowCache() *rowCache {
	return &rowCache{byID: make(map[job.ID]*row), bySeq: make(map[int64]*row)}
}

// get returns a row, nil where it is not in the cache.
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

// publish adds the rows that a transaction wrote; nil removes a row, which is then read
// from the file.
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
		if r == nil || r.Failure != nil && len(r.Failure.Message)+len(r.Failure.Traceback) > maxCachedFailure {
			continue
		}
		c.byID[id], c.bySeq[r.Seq] = r, r
		c.order = append(c.order, r)
	}
	for len(c.byID) > maxCachedRows || len(c.order) > 4*maxCachedRows {
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
