package lifecycle

import (
	"math"
	"time"
)

// Account is the GPU time that a tenant has used, as of an age of the ledger.
type Account struct {
	Used time.Duration
	Age  int64
}

// At returns the used time as it counts at a later age: it halves with each half-life.
func (a Account) At(age int64, halfLife time.Duration) time.Duration {
	passed := float64(max(age-a.Age, 0)) / float64(halfLife.Microseconds())
	return time.Duration(float64(a.Used) * math.Exp2(-passed))
}

// Add returns the account with more time used at an age.
func (a Account) Add(used time.Duration, age int64, halfLife time.Duration) Account {
	return Account{a.At(age, halfLife) + used, max(age, a.Age)}
}
