package nn

import "math"

// Network is a sequence of layers whose output is one score per class.
type Network struct {
	layers []Layer
	probs  []float32
	grad   []float32 // by the scores
}

// NewNetwork returns the network of these layers. The output of the last one is a score for
// each of the classes.
func NewNetwork(classes int, layers ...Layer) *Network {
	return &Network{layers: layers, probs: make([]float32, classes), grad: make([]float32, classes)}
}

// Replica returns a network for another goroutine: it shares the weights,
// which must not change meanwhile, and nothing else.
func (n *Network) Replica() *Network {
	layers := make([]Layer, len(n.layers))
	for i, l := range n.layers {
		layers[i] = l.Replica()
	}
	return NewNetwork(len(n.probs), layers...)
}

// Params returns all tensors of weights, first layer first.
func (n *Network) Params() []*Param {
	var ps []*Param
	for _, l := range n.layers {
		ps = append(ps, l.Params()...)
	}
	return ps
}

// Predict returns the probability of each class. The slice is overwritten by
// the next call. It allocates nothing.
func (n *Network) Predict(in []float32) []float32 {
	for _, l := range n.layers {
		in = l.Forward(in)
	}
	softmax(n.probs, in)
	return n.probs
}

// Learn adds the gradient of the loss on one sample to the gradients of the
// weights and returns that loss: the negative logarithm of the probability
// of the right class.
func (n *Network) Learn(in []float32, class int) float64 {
	probs := n.Predict(in)
	// The gradient of the loss by the scores is the prediction minus the target.
	copy(n.grad, probs)
	n.grad[class]--
	grad := n.grad
	for i := len(n.layers) - 1; i >= 0; i-- {
		grad = n.layers[i].Backward(grad)
	}
	// A probability too small for a float32 is replaced by the smallest one.
	return -math.Log(max(float64(probs[class]), math.SmallestNonzeroFloat32))
}

// Best returns the most probable class.
func Best(probs []float32) int {
	best := 0
	for i, p := range probs {
		if p > probs[best] {
			best = i
		}
	}
	return best
}

// softmax converts scores to probabilities. Subtracting the greatest score first does not
// change the result but keeps the exponentials finite.
func softmax(probs, scores []float32) {
	top := scores[Best(scores)]
	var sum float64
	for i, s := range scores {
		e := math.Exp(float64(s - top))
		probs[i] = float32(e)
		sum += e
	}
	for i := range probs {
		probs[i] = float32(float64(probs[i]) / sum)
	}
}
