// Package nn is a small neural network for small images: convolution, pooling
// and dense layers with their gradients, the cross-entropy loss, the Adam
// optimiser and a file format for weights. It is written to be read: it supports only
// float32, one sample at a time, and no accelerator.
//
// # Shapes
//
// An image or activation is a flat slice in the order channel, row, column, with the
// dimensions of a Shape.
//
// # Replicas
//
// A layer owns the buffers it computes in, so forward and backward passes do not
// allocate, and one goroutine at a time may use a network. Further goroutines use
// replicas, which share only the weights.
//
// # Reproducibility
//
// Sums are computed in a fixed order, so processors of one kind compute the same bits,
// with any number of cores.
package nn

// Shape is the size of an activation: the numbers of planes, rows and columns.
type Shape struct {
	Channels, Height, Width int
}

// Len returns the number of values of an activation of this shape.
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
// Forward computes the layer's output. It keeps a reference to in, which must not change
// until Backward has been called, if it will be. The returned slice belongs to the layer
// and is overwritten by the next Forward.
//
// Backward takes the gradient of the loss by the last output, adds the
// gradients by the layer's weights to Params()[…].Grad and returns the
// gradient by the last input, which belongs to the layer likewise. The first
// layer of a network may return nil, because the gradient by the image is not needed.
type Layer interface {
	Forward(in []float32) []float32
	Backward(grad []float32) []float32
	Params() []*Param
	// Replica returns a layer that shares this one's weights and nothing else.
	Replica() Layer
}
