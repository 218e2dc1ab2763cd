package main

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/model"
	"github.com/iterait/shepherd/examples/digits/nn"
)

const (
	batchSize = 32
	// shards is the number of parts of a batch. Gradients are summed in order within each
	// part, and the parts in order, so the result does not depend on the number of cores.
	shards      = 4
	initialRate = 2e-3
)

// trainer trains one network.
type trainer struct {
	seed      uint64
	network   *nn.Network
	optimiser *nn.Adam
	shards    [shards]shard
}

// shard is the state of one goroutine of a batch.
type shard struct {
	network *nn.Network
	params  []*nn.Param
	input   [data.Pixels]float32
	loss    float64
}

func newTrainer(seed uint64) *trainer {
	network := model.NewNetwork(rand.New(rand.NewPCG(seed, 0)))
	t := &trainer{seed: seed, network: network, optimiser: nn.NewAdam(network.Params())}
	for i := range t.shards {
		t.shards[i].network = network.Replica()
		t.shards[i].params = t.shards[i].network.Params()
	}
	return t
}

// epoch trains the network with every sample once, distorted and in a new random order, and
// returns the mean loss. It is number e of the epochs, from 0; the learning rate falls
// from epoch to epoch along half a cosine.
func (t *trainer) epoch(ctx context.Context, samples []data.Sample, e, epochs int) (float64, error) {
	rng := rand.New(rand.NewPCG(t.seed, uint64(e)+1))
	order := rng.Perm(len(samples))
	progress := float64(e) / float64(epochs)
	rate := initialRate * (0.01 + 0.99*(1+math.Cos(math.Pi*progress))/2)

	var loss float64
	for start := 0; start < len(order); start += batchSize {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		batch := order[start:min(start+batchSize, len(order))]
		loss += t.batch(samples, batch, e)
		t.step(len(batch), rate)
	}
	return loss / float64(len(samples)), nil
}

// batch computes the gradients of the samples of these indices and returns the
// sum of their losses.
func (t *trainer) batch(samples []data.Sample, batch []int, epoch int) float64 {
	var wait sync.WaitGroup
	for i := range t.shards {
		wait.Go(func() {
			s := &t.shards[i]
			s.loss = 0
			for j := i; j < len(batch); j += shards {
				sample := &samples[batch[j]]
				// One generator per sample, so the result does not depend on the shard.
				rng := rand.New(rand.NewPCG(t.seed+uint64(epoch)+1, uint64(batch[j])))
				distort(&s.input, &sample.Image, rng)
				s.loss += s.network.Learn(s.input[:], sample.Label)
			}
		})
	}
	wait.Wait()
	var loss float64
	for i := range t.shards {
		loss += t.shards[i].loss
	}
	return loss
}

// step changes the weights by the mean gradient of n samples.
func (t *trainer) step(n int, rate float64) {
	scale := 1 / float32(n)
	for k, p := range t.network.Params() {
		for i := range t.shards {
			grad := t.shards[i].params[k].Grad
			for j, g := range grad {
				p.Grad[j] += scale * g
			}
			clear(grad)
		}
	}
	t.optimiser.Step(rate)
}

// accuracy returns the fraction of the undistorted samples that are classified correctly.
func (t *trainer) accuracy(samples []data.Sample) float64 {
	classifier := model.NewClassifier(t.network)
	right := 0
	for i := range samples {
		if classifier.Classify(&samples[i].Image).Digit == samples[i].Label {
			right++
		}
	}
	return float64(right) / float64(len(samples))
}
