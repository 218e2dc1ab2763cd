package main

import (
	"math"
	"math/rand/v2"

	"github.com/iterait/shepherd/examples/digits/data"
)

// The limits of the distortion of an image: it must stay the same digit.
const (
	maxTurn    = 0.22 // radians
	maxStretch = 0.15 // of each side
	maxShear   = 0.2  // columns per row
	maxShift   = 2.5  // pixels
)

// distort writes m to dst, slightly rotated, scaled, sheared and shifted at random.
func distort(dst *[data.Pixels]float32, m *data.Image, rng *rand.Rand) {
	within := func(limit float64) float64 { return limit * (2*rng.Float64() - 1) }
	sin, cos := math.Sincos(within(maxTurn))
	stretchX, stretchY := 1+within(maxStretch), 1+within(maxStretch)
	shear := within(maxShear)
	shiftX, shiftY := within(maxShift), within(maxShift)

	// For every pixel of dst, its position in m.
	const centre = float64(data.Side-1) / 2
	for y := range data.Side {
		for x := range data.Side {
			u, v := float64(x)-centre-shiftX, float64(y)-centre-shiftY
			u += shear * v
			u, v = stretchX*(cos*u-sin*v), stretchY*(sin*u+cos*v)
			dst[y*data.Side+x] = float32(between(m, u+centre, v+centre) / 255)
		}
	}
}

// between interpolates the brightness at a point between four pixels. Outside the image it
// is 0, the paper.
func between(m *data.Image, x, y float64) float64 {
	left, top := math.Floor(x), math.Floor(y)
	right, below := x-left, y-top // distance from the left and upper pixels
	at := func(x, y int) float64 {
		if x < 0 || y < 0 || x >= data.Side || y >= data.Side {
			return 0
		}
		return float64(m[y*data.Side+x])
	}
	i, j := int(left), int(top)
	return (1-below)*((1-right)*at(i, j)+right*at(i+1, j)) +
		below*((1-right)*at(i, j+1)+right*at(i+1, j+1))
}
