package postgres

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestRingInTurn has a node leave time for those that have rung lately, and for no others.
func TestRingInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBell(nil, slog.New(slog.DiscardHandler))
		if got := b.pause(); got != ringEvery {
			t.Errorf("a node that is alone rings every %v", got)
		}
		for _, node := range []string{"a", "b", "a"} {
			b.hear(node)
		}
		if got := b.pause(); got != 3*ringEvery {
			t.Errorf("beside two others a node rings every %v", got)
		}
		for i := range 100 {
			b.hear(fmt.Sprint("node", i))
		}
		if got := b.pause(); got != ringLatest {
			t.Errorf("beside many others a node rings every %v", got)
		}
		time.Sleep(ringLatest + time.Millisecond)
		if got := b.pause(); got != ringEvery {
			t.Errorf("after the others were quiet a node rings every %v", got)
		}
	})
}
