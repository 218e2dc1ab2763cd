package nn

// MaxPool keeps the maximum of every 2×2 square, which halves rows and columns. An odd last row or column is dropped.
type MaxPool struct {
	in, out Shape
	from    []int // per output: the index of its input
	y, grad []float32
}

// NewMaxPool returns a pooling of an activation of shape in.
func NewMaxPool(in Shape) *MaxPool {
	out := Shape{Channels: in.Channels, Height: in.Height / 2, Width: in.Width / 2}
	return &MaxPool{
		in: in, out: out,
		from: make([]int, out.Len()),
		y:    make([]float32, out.Len()),
		grad: make([]float32, in.Len()),
	}
}

// Out returns the shape of the output.
func (p *MaxPool) Out() Shape { return p.out }

// Params returns nil: pooling has no weights.
func (p *MaxPool) Params() []*Param { return nil }

// Replica implements Layer.
func (p *MaxPool) Replica() Layer { return NewMaxPool(p.in) }

// Forward implements Layer.
func (p *MaxPool) Forward(in []float32) []float32 {
	to := 0
	for c := range p.out.Channels {
		for y := range p.out.Height {
			at := (c*p.in.Height + 2*y) * p.in.Width
			for range p.out.Width {
				best := at
				for _, i := range [...]int{at + 1, at + p.in.Width, at + p.in.Width + 1} {
					if in[i] > in[best] {
						best = i
					}
				}
				p.from[to], p.y[to] = best, in[best]
				to++
				at += 2
			}
		}
	}
	return p.y
}

// Backward implements Layer.
func (p *MaxPool) Backward(grad []float32) []float32 {
	clear(p.grad)
	for i, g := range grad {
		p.grad[p.from[i]] = g
	}
	return p.grad
}

// ReLU replaces negative values by zero. After a MaxPool it gives the same result as before
// it, for a quarter of the work.
type ReLU struct {
	y, grad []float32
}

// NewReLU returns a rectifier of n values.
func NewReLU(n int) *ReLU {
	return &ReLU{y: make([]float32, n), grad: make([]float32, n)}
}

// Params returns nil: a rectifier has no weights.
func (r *ReLU) Params() []*Param { return nil }

// Replica implements Layer.
func (r *ReLU) Replica() Layer { return NewReLU(len(r.y)) }

// Forward implements Layer.
func (r *ReLU) Forward(in []float32) []float32 {
	for i, v := range in {
		r.y[i] = max(v, 0)
	}
	return r.y
}

// Backward implements Layer.
func (r *ReLU) Backward(grad []float32) []float32 {
	for i, y := range r.y {
		if y > 0 {
			r.grad[i] = grad[i]
		} else {
			r.grad[i] = 0
		}
	}
	return r.grad
}
