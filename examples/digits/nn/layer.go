// Package nn is a small neural network for small images: convolution, pooling
// and dense layers with their gradients, the cross-entropy loss, the Adam
// optimiser and a file format for weights. It is written to be read; it
// knows only float32, one sample at a time, and no accelerator.
//
// # Shapes
//
// An image or activation is a flat slice in the order channel, row, column. A
// Shape says how it is to be read.
//
// # Replicas
//
// A layer owns the buffers it computes in, so forward and backward passes
// allocate nothing and a network serves one goroutine at a time. For more
// goroutines take replicas: they share the weights and own everything else.
//
// # Reproducibility
//
// Sums are taken in a fixed order, so the same kind of processor computes the
// same bits, whatever the number of cores.
package nn

// Shape is the size of an activation: so many planes of so many rows and columns.
type Shape struct {
	Channels, Height, Width int
}

// Len is the number of values an activation of this shape has.
func (s Shape) Len() int { return s.Channels * s.Height * s.Width }

// Param is one tensor of weights with its gradient.
type Param struct {
	Name  string
	Shape []int
	Value []float32 // shared by all replicas of a layer
	Grad  []float32 // this replica's own; Backward adds to it
}

func newParam(name string, shape ...int) *Param {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return &Param{Name: name, Shape: shape, Value: make([]float32, n), Grad: make([]float32, n)}
}

func (p *Param) replica() *Param {
	return &Param{Name: p.Name, Shape: p.Shape, Value: p.Value, Grad: make([]float32, len(p.Value))}
}

// Layer is one step of a network.
//
// Forward computes the layer's output. It keeps a reference to in, which must
// stay as it is until Backward has been called or is known not to be. The
// slice returned belongs to the layer and is overwritten by the next Forward.
//
// Backward takes the gradient of the loss by the last output, adds the
// gradients by the layer's weights to Params()[…].Grad and returns the
// gradient by the last input, which belongs to the layer likewise. The first
// layer of a network may return nil: nothing needs the gradient by the image.
type Layer interface {
	Forward(in []float32) []float32
	Backward(grad []float32) []float32
	Params() []*Param
	// Replica returns a layer that shares this one's weights and nothing else.
	Replica() Layer
}
