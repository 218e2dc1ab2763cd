package shepherd

import (
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// Bounds of the remembered payloads: bytes in total, bytes of one, and age.
const (
	maxPayloads = 8 << 20
	maxPayload  = 256 << 10
	payloadLife = 2 * time.Second
)

// payloads caches the payloads of the latest submissions, so that a small job that runs at
// once need not fetch its input from storage. The zero value is ready to use.
type payloads struct {
	mu    sync.Mutex
	kept  map[job.ID]payload
	order []job.ID // oldest first; may contain ids that were taken already
	bytes int
}

type payload struct {
	data []byte
	at   time.Time
}

// keep remembers the payload of a job that was just submitted. A nil payload forgets that of
// an earlier run.
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

// take returns a payload and forgets it; ok is false if there is none.
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
