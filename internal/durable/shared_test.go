package durable

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Calls that come while a sync is under way wait for one that begins after them, and share it.
func TestSharedSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errFull := errors.New("no space")
		results := []error{nil, errFull, nil}
		var made, seen atomic.Int64 // names, and those that a sync that began found
		calls, release := 0, make(chan struct{})
		s := NewSharedSync(func() error {
			seen.Store(made.Load())
			calls++
			result := results[calls-1]
			<-release
			return result
		})
		var wg sync.WaitGroup
		call := func(want error) {
			mine := made.Add(1)
			wg.Go(func() {
				if err := s.Sync(); err != want {
					t.Errorf("call %d: %v, want %v", mine, err, want)
				}
				if seen.Load() < mine {
					t.Errorf("call %d returned after a sync that began before it", mine)
				}
			})
			synctest.Wait()
		}
		call(nil)
		for range 10 { // while the first is under way
			call(errFull)
		}
		if calls != 1 {
			t.Errorf("%d syncs are under way", calls)
		}
		release <- struct{}{}
		synctest.Wait()
		call(nil) // while the second is
		close(release)
		wg.Wait()
		if calls != 3 {
			t.Errorf("12 calls took %d syncs, want 3", calls)
		}
	})
}
