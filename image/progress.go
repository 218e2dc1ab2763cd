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

// Phase says what is being done for an image.
type Phase string

// The phases of Ensure. An image that is here already has none.
const (
	Resolving Phase = "resolving" // the registry is asked what the reference means
	Pulling   Phase = "pulling"   // layers are fetched, and unpacked meanwhile
	Unpacking Phase = "unpacking" // all is fetched, layers are still being unpacked
)

// Progress is how far an image is.
type Progress struct {
	Reference string
	Phase     Phase
	// Done and Total count the bytes of the image's layers, as they are
	// transferred. What was here already counts as done. Total is 0 while the
	// layers are not known.
	Done, Total int64
	// Rate is bytes a second, over the last few seconds.
	Rate float64
	// LayersDone and Layers count layers that are fetched, and all.
	LayersDone, Layers int
}

// String tells people, in one line.
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

// interval is the time between two reports of the same phase.
const interval = 250 * time.Millisecond

// tracker follows one pull.
type tracker struct {
	mu      sync.Mutex
	phase   Phase
	layers  []ocispec.Descriptor
	at      map[digest.Digest]int64 // bytes of the layer that are here
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

// setLayers tells which layers the image has.
func (t *tracker) setLayers(layers []ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.layers = layers
}

// getLayers returns what setLayers was told.
func (t *tracker) getLayers() []ocispec.Descriptor {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.layers
}

// finish says that a layer is here.
func (t *tracker) finish(d digest.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done[d] = true
}

// seek says that a layer is here up to offset.
func (t *tracker) seek(d digest.Digest, offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at[d] = offset
}

// read says that n more bytes of a layer came.
func (t *tracker) read(d digest.Digest, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at[d] += n
	t.fetched += n
}

// moved is how many bytes came over the network.
func (t *tracker) moved() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fetched
}

// progress is the present state, without the rate.
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

// watch reports every interval until ctx ends, where there is anything new.
func (t *tracker) watch(ctx context.Context, reference string, report func(Progress)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := t.progress(reference)
	report(last)
	before, at := t.moved(), time.Now()
	rate := 0.0
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			moved := t.moved()
			if elapsed := now.Sub(at).Seconds(); elapsed > 0 {
				// A mean that forgets: about the last two seconds.
				rate += (float64(moved-before)/elapsed - rate) * min(1, elapsed/2)
				if before == 0 {
					rate = float64(moved) / elapsed
				}
			}
			before, at = moved, now
			p := t.progress(reference)
			p.Rate = rate
			if p != last {
				report(p)
				last = p
			}
		}
	}
}
