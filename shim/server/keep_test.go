package server

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shim"
)

// What a connected daemon knows anyway is written now and then, and at once when its
// connection ends; without a daemon every change is, within 20 ms.
func TestOutcomeIsWritten(t *testing.T) {
	folder := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var number atomic.Int64
		var connected atomic.Bool
		connected.Store(true)
		now := func() shim.Outcome { return shim.Outcome{Job: job.ID(fmt.Sprint(number.Load()))} }
		o := newOutcome(folder, "boot", now, connected.Load, nil)
		quit, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			o.keep(quit)
		}()
		change := func() {
			number.Add(1)
			o.changed()
			synctest.Wait()
		}
		written := func(want job.ID) {
			t.Helper()
			got, err := shim.ReadOutcome(folder)
			if err != nil || got.Job != want {
				t.Errorf("%q is written, want %q; %v", got.Job, want, err)
			}
		}
		change()
		written("1")
		change()
		change()
		written("1")
		time.Sleep(keepWhileConnected)
		synctest.Wait()
		written("3")
		change()
		written("3")
		connected.Store(false)
		o.unattended()
		synctest.Wait()
		written("4")
		change()
		time.Sleep(keepInterval)
		synctest.Wait()
		written("5")
		change() // within the pause after the last
		close(quit)
		<-ended
		written("6")
	})
}
