package nn

import (
	"math"
	"math/rand/v2"
)

// kernel is the side of every convolution's window. One fixed size lets the
// compiler keep a window's row of weights in registers.
const kernel = 5

// Conv slides 5×5 windows over all its input planes, without padding: an
// output plane is four rows and columns smaller than the input.
type Conv struct {
	in, out      Shape
	weight, bias *Param
	first        bool

	x    []float32 // last input
	y    []float32
	grad []float32 // by the input; nil in the first layer
}

// NewConv returns a convolution of in into the given number of planes, with random
// weights from rng. The first layer of a network computes no gradient by its input.
func NewConv(name string, in Shape, planes int, first bool, rng *rand.Rand) *Conv {
	c := &Conv{
		in:     in,
		out:    Shape{Channels: planes, Height: in.Height - kernel + 1, Width: in.Width - kernel + 1},
		weight: newParam(name+".weight", planes, in.Channels, kernel, kernel),
		bias:   newParam(name+".bias", planes),
		first:  first,
	}
	drawWeights(c.weight.Value, in.Channels*kernel*kernel, rng)
	c.buffers()
	return c
}

func (c *Conv) buffers() {
	c.y = make([]float32, c.out.Len())
	if !c.first {
		c.grad = make([]float32, c.in.Len())
	}
}

// Out returns the shape of the output.
func (c *Conv) Out() Shape { return c.out }

// Params returns the windows, then the biases.
func (c *Conv) Params() []*Param { return []*Param{c.weight, c.bias} }

// Replica implements Layer.
func (c *Conv) Replica() Layer {
	r := &Conv{in: c.in, out: c.out, weight: c.weight.replica(), bias: c.bias.replica(), first: c.first}
	r.buffers()
	return r
}

// Forward implements Layer.
func (c *Conv) Forward(in []float32) []float32 {
	c.x = in
	for o := range c.out.Channels {
		y := c.plane(c.y, o)
		for j := range y {
			y[j] = c.bias.Value[o]
		}
		for i := range c.in.Channels {
			for ky := range kernel {
				w := c.windowRow(c.weight.Value, o, i, ky)
				for row := range c.out.Height {
					addCorrelation(c.row(y, row), c.inputRow(c.x, i, row+ky), w)
				}
			}
		}
	}
	return c.y
}

// Backward implements Layer.
func (c *Conv) Backward(grad []float32) []float32 {
	clear(c.grad)
	for o := range c.out.Channels {
		g := c.plane(grad, o)
		var sum float32
		for _, v := range g {
			sum += v
		}
		c.bias.Grad[o] += sum
		for i := range c.in.Channels {
			for ky := range kernel {
				w := c.windowRow(c.weight.Value, o, i, ky)
				dw := c.windowRow(c.weight.Grad, o, i, ky)
				for row := range c.out.Height {
					gRow := c.row(g, row)
					addWindowGradient(dw, c.inputRow(c.x, i, row+ky), gRow)
					if !c.first {
						addInputGradient(c.inputRow(c.grad, i, row+ky), gRow, w)
					}
				}
			}
		}
	}
	return c.grad
}

// plane returns output plane o of an activation.
func (c *Conv) plane(v []float32, o int) []float32 {
	n := c.out.Height * c.out.Width
	return v[o*n : (o+1)*n]
}

// row returns one row of an output plane.
func (c *Conv) row(plane []float32, y int) []float32 {
	return plane[y*c.out.Width : (y+1)*c.out.Width]
}

// inputRow returns row y of input plane i.
func (c *Conv) inputRow(v []float32, i, y int) []float32 {
	at := (i*c.in.Height + y) * c.in.Width
	return v[at : at+c.in.Width]
}

// windowRow returns row ky of the window from input plane i to output plane o.
func (c *Conv) windowRow(v []float32, o, i, ky int) *[kernel]float32 {
	at := ((o*c.in.Channels+i)*kernel + ky) * kernel
	return (*[kernel]float32)(v[at:])
}

// addCorrelation adds to every y[j] the product of w and the five x from j on.
func addCorrelation(y, x []float32, w *[kernel]float32) {
	w0, w1, w2, w3, w4 := w[0], w[1], w[2], w[3], w[4]
	for j := range y {
		s := (*[kernel]float32)(x[j:])
		y[j] += w0*s[0] + w1*s[1] + w2*s[2] + w3*s[3] + w4*s[4]
	}
}

// addWindowGradient adds to dw the gradient of addCorrelation by w, given the
// gradient g by y. Most of g is zero behind a pooling layer.
func addWindowGradient(dw *[kernel]float32, x, g []float32) {
	for j, d := range g {
		if d == 0 {
			continue
		}
		s := (*[kernel]float32)(x[j:])
		dw[0] += d * s[0]
		dw[1] += d * s[1]
		dw[2] += d * s[2]
		dw[3] += d * s[3]
		dw[4] += d * s[4]
	}
}

// addInputGradient adds to dx the gradient of addCorrelation by x.
func addInputGradient(dx, g []float32, w *[kernel]float32) {
	for j, d := range g {
		if d == 0 {
			continue
		}
		s := (*[kernel]float32)(dx[j:])
		s[0] += d * w[0]
		s[1] += d * w[1]
		s[2] += d * w[2]
		s[3] += d * w[3]
		s[4] += d * w[4]
	}
}

// drawWeights fills w with normally distributed values whose variance, 2 over
// the number of inputs, keeps activations behind a ReLU at the same scale.
func drawWeights(w []float32, inputs int, rng *rand.Rand) {
	deviation := math.Sqrt(2 / float64(inputs))
	for i := range w {
		w[i] = float32(rng.NormFloat64() * deviation)
	}
}
