//go:build race

package e2e

// race says that the tests run under the race detector.
const race = true
