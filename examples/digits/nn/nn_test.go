package nn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// smallNetwork returns a network with every kind of layer.
func smallNetwork(seed uint64) *Network {
	rng := rand.New(rand.NewPCG(seed, 0))
	conv1 := NewConv("conv1", Shape{1, 16, 16}, 2, true, rng)
	pool := NewMaxPool(conv1.Out())
	conv2 := NewConv("conv2", pool.Out(), 3, false, rng)
	n := conv2.Out().Len()
	return NewNetwork(3,
		conv1, pool, NewReLU(pool.Out().Len()),
		conv2, NewReLU(n),
		NewDense("dense1", n, 5, rng), NewReLU(5),
		NewDense("dense2", 5, 3, rng),
	)
}

// apart returns n values in random order of which no two, and none and zero,
// are nearer than 0.05, so that no small change switches a MaxPool or ReLU.
func apart(n int, rng *rand.Rand) []float32 {
	v := make([]float32, n)
	for i, k := range rng.Perm(n) {
		v[i] = 0.1*(float32(k)-float32(n/2)) + 0.05
	}
	return v
}

// TestLayerGradients compares every gradient a layer computes with the finite
// difference of a weighted sum of its outputs.
func TestLayerGradients(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	odd := Shape{Channels: 2, Height: 7, Width: 9}
	for _, tc := range []struct {
		name  string
		in    int
		layer Layer
	}{
		{"conv", odd.Len(), NewConv("conv", odd, 3, false, rng)},
		{"conv of one window", 25, NewConv("conv", Shape{1, 5, 5}, 1, false, rng)},
		{"pool", odd.Len(), NewMaxPool(odd)},
		{"relu", 11, NewReLU(11)},
		{"dense", 13, NewDense("dense", 13, 4, rng)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := apart(tc.in, rng)
			weights := make([]float32, len(tc.layer.Forward(in)))
			for i := range weights {
				weights[i] = float32(rng.NormFloat64())
			}
			loss := func() float64 {
				var sum float64
				for i, y := range tc.layer.Forward(in) {
					sum += float64(weights[i]) * float64(y)
				}
				return sum
			}
			loss()
			byInput := slices.Clone(tc.layer.Backward(weights))
			checkGradient(t, "input", loss, in, byInput, 0.02, 2e-3)
			for _, p := range tc.layer.Params() {
				checkGradient(t, p.Name, loss, p.Value, p.Grad, 0.02, 2e-3)
			}
		})
	}
}

// TestNetworkGradient does the same for the loss of a whole network.
func TestNetworkGradient(t *testing.T) {
	n := smallNetwork(3)
	rng := rand.New(rand.NewPCG(4, 4))
	in := make([]float32, 256)
	for i := range in {
		in[i] = rng.Float32()
	}
	const class = 1
	loss := func() float64 { return -math.Log(float64(n.Predict(in)[class])) }
	if got, want := n.Learn(in, class), loss(); got != want {
		t.Errorf("Learn returned loss %v, expected %v", got, want)
	}
	for _, p := range n.Params() {
		checkGradient(t, p.Name, loss, p.Value, p.Grad, 2e-3, 1e-2)
	}
}

// checkGradient changes one value after the other by step, both ways.
func checkGradient(t *testing.T, name string, loss func() float64, at, grad []float32, step float32, tolerance float64) {
	t.Helper()
	largest := 0.0
	for i, v := range at {
		at[i] = v + step
		up, above := loss(), at[i]
		at[i] = v - step
		down, below := loss(), at[i]
		at[i] = v
		numeric := (up - down) / float64(above-below)
		if diff := math.Abs(numeric - float64(grad[i])); diff > tolerance*(1+math.Abs(numeric)) {
			t.Errorf("%s[%d]: gradient %v, finite difference %v", name, i, grad[i], numeric)
		}
		largest = max(largest, math.Abs(numeric))
	}
	if largest == 0 {
		t.Errorf("%s: all gradients are zero, nothing was checked", name)
	}
}

func TestSoftmaxOfExtremeScores(t *testing.T) {
	for _, tc := range []struct{ scores, want []float32 }{
		{[]float32{0, 0}, []float32{0.5, 0.5}},
		{[]float32{1e30, 0}, []float32{1, 0}},
		{[]float32{-1e30, -1e30}, []float32{0.5, 0.5}},
	} {
		got := make([]float32, len(tc.scores))
		softmax(got, tc.scores)
		if !slices.Equal(got, tc.want) {
			t.Errorf("softmax(%v) = %v, expected %v", tc.scores, got, tc.want)
		}
	}
}

func TestReplicaSharesWeightsOnly(t *testing.T) {
	n := smallNetwork(1)
	r := n.Replica()
	in := apart(256, rand.New(rand.NewPCG(1, 1)))
	r.Learn(in, 0)
	for i, p := range n.Params() {
		q := r.Params()[i]
		if &p.Value[0] != &q.Value[0] {
			t.Errorf("%s is not shared", p.Name)
		}
		if slices.ContainsFunc(p.Grad, func(g float32) bool { return g != 0 }) {
			t.Errorf("learning of a replica changed the gradient of %s", p.Name)
		}
		if q.Name != p.Name || !slices.Equal(q.Shape, p.Shape) {
			t.Errorf("%s %v became %s %v", p.Name, p.Shape, q.Name, q.Shape)
		}
	}
	if got, want := fmt.Sprint(r.Predict(in)), fmt.Sprint(n.Predict(in)); got != want {
		t.Errorf("a replica predicts %s, its network %s", got, want)
	}
}

// By its definition, Adam's first step has the size of the learning rate, against the sign
// of the gradient, whatever the gradient's size.
func TestAdamFirstStep(t *testing.T) {
	p := &Param{Value: []float32{1, 1, 1}, Grad: []float32{1000, -0.001, 0}}
	NewAdam([]*Param{p}).Step(0.5)
	for i, want := range []float64{0.5, 1.5, 1} {
		if math.Abs(float64(p.Value[i])-want) > 1e-4 {
			t.Errorf("value %d is %v, expected %v", i, p.Value[i], want)
		}
	}
	if !slices.Equal(p.Grad, []float32{0, 0, 0}) {
		t.Errorf("gradients left at %v", p.Grad)
	}
}

func TestLearningLowersLoss(t *testing.T) {
	n := smallNetwork(5)
	optimiser := NewAdam(n.Params())
	rng := rand.New(rand.NewPCG(6, 6))
	images := make([][]float32, 3)
	for i := range images {
		images[i] = make([]float32, 256)
		for j := range images[i] {
			images[i][j] = rng.Float32()
		}
	}
	for range 200 {
		for class, in := range images {
			n.Learn(in, class)
		}
		optimiser.Step(0.01)
	}
	for class, in := range images {
		if p := n.Predict(in); Best(p) != class || p[class] < 0.95 {
			t.Errorf("image %d: probabilities %v after learning it", class, p)
		}
	}
}

func TestPassesDoNotAllocate(t *testing.T) {
	n := smallNetwork(1)
	in := make([]float32, 256)
	if a := testing.AllocsPerRun(10, func() { n.Learn(in, 2) }); a != 0 {
		t.Errorf("%v allocations per sample learnt", a)
	}
}
