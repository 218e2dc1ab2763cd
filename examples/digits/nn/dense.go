package nn

import "math/rand/v2"

// Dense connects every input with every output.
type Dense struct {
	weight, bias *Param // weight: a row of inputs per output

	x       []float32 // last input
	y, grad []float32
}

// NewDense returns a layer with the given numbers of inputs and outputs and random weights
// from rng.
func NewDense(name string, inputs, outputs int, rng *rand.Rand) *Dense {
	d := &Dense{
		weight: newParam(name+".weight", outputs, inputs),
		bias:   newParam(name+".bias", outputs),
		y:      make([]float32, outputs),
		grad:   make([]float32, inputs),
	}
	drawWeights(d.weight.Value, inputs, rng)
	return d
}

// Params returns the weights, then the biases.
func (d *Dense) Params() []*Param { return []*Param{d.weight, d.bias} }

// Replica implements Layer.
func (d *Dense) Replica() Layer {
	return &Dense{
		weight: d.weight.replica(),
		bias:   d.bias.replica(),
		y:      make([]float32, len(d.y)),
		grad:   make([]float32, len(d.grad)),
	}
}

// Forward implements Layer.
func (d *Dense) Forward(in []float32) []float32 {
	d.x = in
	for o := range d.y {
		d.y[o] = d.bias.Value[o] + dot(d.row(d.weight.Value, o), in)
	}
	return d.y
}

// Backward implements Layer.
func (d *Dense) Backward(grad []float32) []float32 {
	clear(d.grad)
	for o, g := range grad {
		if g == 0 {
			continue
		}
		d.bias.Grad[o] += g
		addScaled(d.row(d.weight.Grad, o), g, d.x)
		addScaled(d.grad, g, d.row(d.weight.Value, o))
	}
	return d.grad
}

func (d *Dense) row(v []float32, o int) []float32 {
	n := len(d.grad)
	return v[o*n : (o+1)*n]
}

// dot returns the inner product, in four independent sums, which a processor can compute in
// parallel.
func dot(a, b []float32) float32 {
	var s [4]float32
	n := len(a) &^ 3
	for i := 0; i < n; i += 4 {
		p, q := (*[4]float32)(a[i:]), (*[4]float32)(b[i:])
		s[0] += p[0] * q[0]
		s[1] += p[1] * q[1]
		s[2] += p[2] * q[2]
		s[3] += p[3] * q[3]
	}
	for i := n; i < len(a); i++ {
		s[0] += a[i] * b[i]
	}
	return (s[0] + s[1]) + (s[2] + s[3])
}

// addScaled adds k times x to y.
func addScaled(y []float32, k float32, x []float32) {
	x = x[:len(y)]
	for i := range y {
		y[i] += k * x[i]
	}
}
