package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/iterait/shepherd/config/size"
)

// Phase is a step of Ensure.
type Phase string

// The phases of Ensure. None is reported for an image that exists locally.
const (
	Resolving Phase = "resolving" // asking the registry for the reference's digest
	Pulling   Phase = "pulling"   // fetching layers, and unpacking those fetched
	Unpacking Phase = "unpacking" // all layers are fetched, some not yet unpacked
)

// Progress is the progress of Ensure.
type Progress struct {
	Reference string
	Phase     Phase
	// Done and Total count the bytes of the image's compressed layers. Layers that
	// exist locally count as done. Total is 0 until the layers are known.
	Done, Total int64
	// Rate is bytes a second, averaged over the last few seconds.
	Rate float64
	// LayersDone is the number of layers fetched, Layers that of all layers.
	LayersDone, Layers int
}

// String describes the progress in one line for people.
func (p Progress) String() string {
	switch {
	case p.Phase == Resolving || p.Phase == Pulling && p.Total == 0:
		return "asking the registry for " + p.Reference
	case p.Phase == Unpacking:
		return fmt.Sprintf("unpacking %s (%s)", p.Reference, size.Text(p.Total))
	}
	return fmt.Sprintf("pulling %s: %d%%, %s of %s at %s/s, %d of %d layers",
		p.Reference, p.Done*100/p.Total, size.Text(p.Done), size.Text(p.Total), size.Text(int64(p.Rate)), p.LayersDone, p.Layers)
}

// reportInterval is the time between two progress reports of a pull.
const reportInterval = 250 * time.Millisecond

// tracker tracks the progress of one pull.
type tracker struct {
	mu      sync.Mutex
	phase   Phase
	layers  []ocispec.Descriptor
	at      map[digest.Digest]int64 // bytes of the layer that are fetched
	done    map[digest.Digest]bool
	fetched int64 // bytes that came over the network
	ingests map[string]bool
}

func newTracker() *tracker {
	return &tracker{phase: Resolving, at: map[digest.Digest]int64{}, done: map[digest.Digest]bool{}, ingests: map[string]bool{}}
}

func (t *tracker) enter(p Phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase = p
}

// setLayers sets the layers of the image.
func (t *tracker) setLayers(layers []ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.layers = layers
}

// getLayers returns the layers that setLayers set.
func (t *tracker) getLayers() []ocispec.Descriptor {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.layers
}

// finish records that a layer is complete.
func (t *tracker) finish(d digest.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done[d] = true
}

// seek records that a layer's bytes before offset exist locally.
func (t *tracker) seek(d digest.Digest, offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at[d] = offset
}

// read records that n more bytes of a layer were received.
func (t *tracker) read(d digest.Digest, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at[d] += n
	t.fetched += n
}

// received returns how many bytes of layers were received from the network.
func (t *tracker) received() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fetched
}

// progress returns the present progress, without the rate.
func (t *tracker) progress(reference string) Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := Progress{Reference: reference, Phase: t.phase, Layers: len(t.layers)}
	for _, l := range t.layers {
		p.Total += l.Size
		if t.done[l.Digest] {
			p.Done += l.Size
			p.LayersDone++
		} else {
			p.Done += min(t.at[l.Digest], l.Size)
		}
	}
	if p.Phase == Pulling && p.Layers > 0 && p.LayersDone == p.Layers {
		p.Phase = Unpacking
	}
	return p
}

// watch reports the progress at once and, when it has changed, at each reportInterval
// until ctx ends.
func (t *tracker) watch(ctx context.Context, reference string, report func(Progress)) {
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	last := t.progress(reference)
	report(last)
	before, at := t.received(), time.Now()
	rate := 0.0
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			received := t.received()
			if elapsed := now.Sub(at).Seconds(); elapsed > 0 {
				// An exponential moving average over about two seconds.
				rate += (float64(received-before)/elapsed - rate) * min(1, elapsed/2)
				if before == 0 {
					rate = float64(received) / elapsed
				}
			}
			before, at = received, now
			p := t.progress(reference)
			p.Rate = rate
			if p != last {
				report(p)
				last = p
			}
		}
	}
}
