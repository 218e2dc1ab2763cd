package shepherd

import (
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// How many bytes of payloads are remembered, in all and each, and how long.
const (
	maxPayloads = 8 << 20
	maxPayload  = 256 << 10
	payloadLife = 2 * time.Second
)

// payloads remembers the latest submissions' payloads for a moment: a small job
// that is run at once need not be fetched back from storage. What is not
// remembered is fetched. The zero value is empty and ready to use.
type payloads struct {
	mu    sync.Mutex
	kept  map[job.ID]payload
	order []job.ID // oldest first; some may have been taken already
	bytes int
}

type payload struct {
	data []byte
	at   time.Time
}

// keep remembers the payload of a job that was just submitted, or, where it is
// nil, that what was remembered of an earlier run no longer holds.
func (p *payloads) keep(id job.ID, data []byte) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(id)
	for len(p.order) > 0 {
		oldest, ok := p.kept[p.order[0]]
		if ok && p.bytes+len(data) <= maxPayloads && now.Sub(oldest.at) < payloadLife {
			break
		}
		p.drop(p.order[0])
		p.order = p.order[1:]
	}
	if data == nil || len(data) > maxPayload {
		return
	}
	if p.kept == nil {
		p.kept = make(map[job.ID]payload)
	}
	p.kept[id] = payload{data, now}
	p.order = append(p.order, id)
	p.bytes += len(data)
}

// take returns and forgets a payload; ok is false where there is none.
func (p *payloads) take(id job.ID) (data []byte, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found, ok := p.kept[id]
	p.drop(id)
	return found.data, ok && time.Since(found.at) < payloadLife
}

func (p *payloads) drop(id job.ID) {
	p.bytes -= len(p.kept[id].data)
	delete(p.kept, id)
}
