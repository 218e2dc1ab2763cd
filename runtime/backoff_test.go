package runtime

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	const quick, steady = time.Second, time.Minute
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for _, c := range []struct {
		name string
		up   []time.Duration
		want []time.Duration
	}{
		{"doubles up to the longest",
			[]time.Duration{quick, quick, quick, quick, quick, quick, quick},
			[]time.Duration{0, ms(250), ms(500), ms(1000), ms(2000), ms(3000), ms(3000)}},
		{"a steady runner starts again",
			[]time.Duration{quick, quick, quick, steady, quick},
			[]time.Duration{0, ms(250), ms(500), 0, ms(250)}},
		{"just short of steady is quick",
			[]time.Duration{steady - 1, steady - 1}, []time.Duration{0, ms(250)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := Backoff{First: ms(250), Longest: 3 * time.Second, Steady: steady}
			for i, up := range c.up {
				if got := b.Failed(up); got != c.want[i] {
					t.Errorf("failure %d after %v: wait %v, want %v", i+1, up, got, c.want[i])
				}
			}
		})
	}
}

func TestBackoffIsBoundedForever(t *testing.T) {
	b := DefaultBackoff()
	for range 10_000 {
		if wait := b.Failed(0); wait < 0 || wait > b.Longest {
			t.Fatalf("failure %d: wait %v, at most %v is allowed", b.InARow(), wait, b.Longest)
		}
	}
	b.Reset()
	if wait := b.Failed(0); wait != 0 || b.InARow() != 1 {
		t.Errorf("after Reset: wait %v after %d failures, want none after 1", wait, b.InARow())
	}
}
