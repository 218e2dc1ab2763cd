package nn

import "math"

// Adam is the optimiser of Kingma and Ba, 2014, with the constants proposed there: it
// scales the step of each weight by the running mean and variance of its gradient.
type Adam struct {
	params   []*Param
	mean     [][]float32
	variance [][]float32
	steps    int
}

const (
	meanDecay     = 0.9
	varianceDecay = 0.999
	tiny          = 1e-8
)

// NewAdam returns an optimiser for these weights.
func NewAdam(params []*Param) *Adam {
	a := &Adam{params: params}
	for _, p := range params {
		a.mean = append(a.mean, make([]float32, len(p.Value)))
		a.variance = append(a.variance, make([]float32, len(p.Value)))
	}
	return a
}

// Step changes all weights once by the gradients in Grad, at the given learning rate, and
// clears the gradients.
func (a *Adam) Step(rate float64) {
	a.steps++
	// Both running values start at zero; this corrects the bias.
	unbiasedMean := 1 / (1 - math.Pow(meanDecay, float64(a.steps)))
	unbiasedVariance := 1 / (1 - math.Pow(varianceDecay, float64(a.steps)))
	for i, p := range a.params {
		mean, variance := a.mean[i], a.variance[i]
		for j, g := range p.Grad {
			mean[j] = meanDecay*mean[j] + (1-meanDecay)*g
			variance[j] = varianceDecay*variance[j] + (1-varianceDecay)*g*g
			step := rate * float64(mean[j]) * unbiasedMean / (math.Sqrt(float64(variance[j])*unbiasedVariance) + tiny)
			p.Value[j] -= float32(step)
		}
		clear(p.Grad)
	}
}
