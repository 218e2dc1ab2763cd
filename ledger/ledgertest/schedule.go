package ledgertest

import (
	"fmt"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func (s suite) testOrder(t *testing.T) {
	f := s.open(t, Options{MaxOvertakes: 100})
	f.create("low", priority(-1))
	f.create("old")
	f.create("young")
	f.create("blue", model(blue))
	f.create("blue, mine", model(blue), sheep("a"))
	f.create("red v2", model(job.Model{Name: "red", Version: "2"}))
	f.create("high, theirs", priority(2), sheep("b"))
	f.create("high, mine", priority(1), sheep("a"))
	f.create("high", priority(1), model(blue))

	f.claim(slot("a"), "high, mine")         // older of the highest that a may run
	f.claim(loaded("a", red), "high")        // priority before loaded models
	f.claim(loaded("c", blue), "blue")       // loaded model before age, and not for another sheep
	f.claim(loaded("a", blue), "blue, mine") // loaded model, mine or anyone's
	f.claim(loaded("a", job.Model{Name: "red", Version: "2"}), "red v2")
	f.claim(loaded("a", blue), "old") // none of its model left: age
	f.claim(slot("a"), "young")
	f.claim(slot("a"), "low")
	f.claimNothing(slot("a"))
	f.claim(slot("b"), "high, theirs")
}

func (s suite) testOnly(t *testing.T) {
	f := s.open(t, Options{})
	only := func(name, id string) ledger.Slot {
		return ledger.Slot{Node: "n", Sheep: name, Only: job.ID(id)}
	}
	f.create("first", priority(5))
	f.create("second")
	f.create("mine", sheep("a"))
	f.claimNothing(only("b", "mine")) // addressed to another
	f.claim(only("a", "mine"), "mine")
	f.claimNothing(only("a", "mine")) // held
	addressed := only("a", "second")
	addressed.Addressed = true
	f.claimNothing(addressed) // addressed to nobody
	c := f.claim(only("a", "second"), "second")
	f.finish(c)
	f.claimNothing(only("a", "second")) // ended
	f.claim(slot("a"), "first")
}

func (s suite) testAddressed(t *testing.T) {
	f := s.open(t, Options{MaxOvertakes: 3})
	mine := ledger.Slot{Node: "n", Sheep: "a", Addressed: true}
	f.create("any", priority(9))
	f.create("theirs", priority(9), sheep("b"))
	f.claimNothing(mine)
	f.create("mine", sheep("a"))
	f.create("mine, blue", sheep("a"), model(blue))
	mine.Loaded = blue
	f.claim(mine, "mine, blue")
	f.claim(mine, "mine")
	f.claimNothing(mine)
	f.claim(slot("a"), "any")
}

// testOvertaking counts out who may be overtaken by whom, and by whom not.
func (s suite) testOvertaking(t *testing.T) {
	blues := func(f *fixture, from, to int, with ...func(*job.Record)) {
		for i := from; i <= to; i++ {
			f.create(fmt.Sprint("blue", i), append(with, model(blue))...)
		}
	}
	t.Run("bound", func(t *testing.T) {
		for bound := range 4 {
			f := s.open(t, Options{MaxOvertakes: bound})
			f.create("old")
			blues(f, 1, 5)
			for i := 1; i <= bound; i++ {
				f.claim(loaded(fmt.Sprint("sheep", i), blue), fmt.Sprint("blue", i))
			}
			f.claim(loaded("b", blue), "old")
			f.claim(loaded("b", blue), fmt.Sprint("blue", bound+1))
		}
	})
	t.Run("who could not have run it", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 1})
		f.create("old", sheep("a"))
		blues(f, 1, 5)
		f.claim(loaded("b", blue), "blue1")
		f.claim(loaded("c", blue), "blue2")
		f.claim(loaded("a", blue), "blue3") // the first that counts
		f.claim(loaded("b", blue), "blue4")
		f.claim(loaded("a", blue), "old")
	})
	t.Run("slots for addressed jobs", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 1})
		f.create("old")
		f.create("mine", sheep("a"))
		blues(f, 1, 2, sheep("a"))
		mine := loaded("a", blue)
		mine.Addressed = true
		f.claim(mine, "blue1")             // overtakes mine, but not old, which it could not have run
		f.claim(loaded("a", blue), "mine") // and this overtakes old
		f.claim(loaded("a", blue), "old")
	})
	t.Run("other priorities", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 1})
		f.create("old")
		blues(f, 1, 3, priority(1))
		for i := 1; i <= 3; i++ {
			f.claim(loaded("a", blue), fmt.Sprint("blue", i))
		}
		blues(f, 4, 5)
		f.claim(loaded("a", blue), "blue4")
		f.claim(loaded("a", blue), "old")
	})
	t.Run("a younger one at its bound", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 2})
		f.create("mine", sheep("a"))
		f.create("any")
		blues(f, 1, 4)
		f.claim(loaded("b", blue), "blue1")
		f.claim(loaded("b", blue), "blue2")
		f.claim(loaded("a", blue), "any") // though mine is older, and not at its bound
		f.claim(loaded("a", blue), "blue3")
		f.claim(loaded("a", blue), "mine")
	})
	t.Run("asked for by name", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 1})
		f.create("old")
		blues(f, 1, 3)
		f.claim(ledger.Slot{Node: "n", Sheep: "a", Only: "blue1"}, "blue1")
		f.claim(loaded("a", blue), "blue2")
		f.claim(loaded("a", blue), "old")
	})
	t.Run("reopened", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 2})
		f.create("old")
		blues(f, 1, 3)
		f.claim(loaded("a", blue), "blue1")
		f.reopen()
		f.claim(loaded("a", blue), "blue2")
		f.crash()
		f.claim(loaded("a", blue), "old")
	})
	t.Run("put back", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 2})
		f.create("old")
		f.create("other")
		blues(f, 1, 5)
		f.claim(loaded("a", blue), "blue1") // one for old and for other
		c := f.claim(slot("a"), "old")
		f.claim(loaded("a", blue), "blue2") // old is held: only other's second
		f.claim(loaded("a", blue), "other")
		f.release(c, true)
		f.claim(loaded("a", blue), "blue3") // old's second
		f.claim(loaded("a", blue), "old")
		f.claim(loaded("a", blue), "blue4")
	})
	t.Run("by one put back", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 2})
		f.create("old")
		f.create("blue1", model(blue))
		for range 2 { // the same job twice is twice
			f.release(f.claim(loaded("a", blue), "blue1"), true)
		}
		f.claim(loaded("a", blue), "old")
	})
	t.Run("by one cancelled", func(t *testing.T) {
		f := s.open(t, Options{MaxOvertakes: 1})
		f.create("old")
		blues(f, 1, 2)
		f.claim(loaded("a", blue), "blue1")
		f.cancel("blue1")
		f.claim(loaded("a", blue), "old")
	})
}

// testOldPlace puts jobs back and sees them come again in their order.
func (s suite) testOldPlace(t *testing.T) {
	f := s.open(t, Options{})
	var claims []ledger.Claim
	for i := range 5 {
		f.create(fmt.Sprint("job", i))
	}
	for i := range 4 {
		claims = append(claims, f.claim(ledger.Slot{Node: "n", Sheep: "a", Ahead: i%2 == 0}, fmt.Sprint("job", i)))
	}
	for _, i := range []int{2, 0, 3} {
		f.release(claims[i], i%2 == 0)
		if back := f.get(fmt.Sprint("job", i)); back.Seq != claims[i].Seq || !back.EnqueuedAt.Equal(claims[i].EnqueuedAt) {
			t.Fatalf("put back at place %d, was at %d", back.Seq, claims[i].Seq)
		}
	}
	for _, i := range []int{0, 2, 3, 4} {
		f.claim(slot("a"), fmt.Sprint("job", i))
	}
}
