package container

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/iterait/shepherd/shim"
)

// Each call of containerd has a time of its own: a snapshotter that copies for ten
// minutes takes nothing from the runtime's.
func TestCallsHaveTheirOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limit := range []time.Duration{snapshotTime, createTime, createTime, callTime} {
			call, cancel := uninterrupted(t.Context(), limit)
			time.Sleep(limit - time.Second)
			synctest.Wait()
			if call.Err() != nil {
				t.Errorf("a call for %s ended early: %v", limit, call.Err())
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if err := tooSlow(call, call.Err()); !errors.Is(err, errTooSlow) {
				t.Errorf("a call for %s ended with %v", limit, err)
			}
			cancel()
		}
	})
}

// A call that nobody waits for any more goes on for a moment.
func TestAbandonedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, giveUp := context.WithCancel(t.Context())
		call, cancel := uninterrupted(ctx, createTime)
		defer cancel()
		giveUp()
		time.Sleep(abandonTime - time.Second)
		synctest.Wait()
		if call.Err() != nil {
			t.Error("it was broken off")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if err := tooSlow(call, call.Err()); !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}

// Containers' groups are in a slice: systemd makes them where it manages cgroup v2 and
// the runtime can ask it to.
func TestCgroupPath(t *testing.T) {
	for _, c := range []struct {
		systemd, byRuntime bool
		want               string
	}{
		{true, true, "shepherd.slice:shepherd:x1"},
		{true, false, "/shepherd.slice/" + shim.GroupName("x1")},
		{false, true, "/shepherd.slice/" + shim.GroupName("x1")},
	} {
		if got := cgroupPath(machine{systemd: c.systemd}, c.byRuntime, "x1"); got != c.want {
			t.Errorf("systemd %t, runtime %t: got %q, want %q", c.systemd, c.byRuntime, got, c.want)
		}
	}
	for runtime, want := range map[string]bool{"": true, "runc": true, "nvidia": true, "crun": true, "gvisor": false, "io.containerd.kata.v2": false} {
		if got := (&Options{Runtime: runtime}).hasRuncOptions(); got != want {
			t.Errorf("runtime %q: got %t", runtime, got)
		}
	}
}

// A directory that a killed containerd left is removed by the call that fails of it: the
// call is made again, but not for ever, and not after another error.
func TestMakeSnapshot(t *testing.T) {
	inTheWay := errors.New("failed to rename: rename new-1 2: file exists")
	other := errors.New("no space left on device")
	for _, test := range []struct {
		errs  []error
		calls int
		want  error
	}{
		{[]error{nil}, 1, nil},
		{[]error{inTheWay, nil}, 2, nil},
		{[]error{inTheWay, other}, 2, other},
		{[]error{other}, 1, other},
		{[]error{inTheWay, inTheWay, inTheWay, nil}, 3, inTheWay},
	} {
		calls := 0
		_, err := makeSnapshot(func() ([]mount.Mount, error) {
			calls++
			return nil, test.errs[calls-1]
		})
		if calls != test.calls || !errors.Is(err, test.want) {
			t.Errorf("%v: %v after %d calls, want %v after %d", test.errs, err, calls, test.want, test.calls)
		}
	}
}
