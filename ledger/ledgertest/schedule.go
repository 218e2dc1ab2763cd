package ledgertest

import (
	"fmt"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func (s suite) testOrder(t *testing.T) {
	f := s.open(t, Options{})
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
	f.claim(prefer("a", red), "high")        // priority before the preferred model
	f.claim(prefer("c", blue), "blue")       // preferred model before age, and not for another sheep
	f.claim(prefer("a", blue), "blue, mine") // preferred model, mine or anyone's
	f.claim(prefer("a", job.Model{Name: "red", Version: "2"}), "red v2")
	f.claim(prefer("a", blue), "old") // none of its model left: age
	f.claim(slot("a"), "young")
	f.claim(slot("a"), "low")
	f.claimNothing(slot("a"))
	f.claim(slot("b"), "high, theirs")
}

// testExcept leaves out the jobs that a sheep cannot run, but for those that are
// addressed to it.
func (s suite) testExcept(t *testing.T) {
	f := s.open(t, Options{})
	green := job.Model{Name: "green"}
	except := func(name string, models ...job.Model) ledger.Slot {
		return ledger.Slot{Node: "node", Sheep: name, Except: models}
	}
	for i := range 20 {
		f.create(fmt.Sprint("red", i), priority(9-i%3))
	}
	f.create("blue, low", model(blue))
	f.create("blue", model(blue), priority(1))
	f.create("green, low", model(green), priority(-1))
	f.create("green", model(green), priority(1))
	f.create("red v2", model(job.Model{Name: "red", Version: "2"}), priority(1))
	f.create("red, mine", sheep("a"), priority(-9))

	f.claim(except("b", red), "blue")
	both := except("b", red, blue)
	both.Prefer = job.Model{Name: "red", Version: "2"}
	f.claim(both, "red v2")
	both.Prefer = red // one that it cannot run
	f.claim(both, "green")
	f.claim(except("b", red, green), "blue, low")
	f.claimNothing(except("b", red, green))
	f.claim(except("b", red), "green, low")
	f.claimNothing(except("b", red, blue, green))
	only := except("b", red)
	only.Only = "red3"
	f.claim(only, "red3")
	mine := except("a", red)
	mine.Prefer = red
	f.claim(mine, "red, mine")
	f.claimNothing(mine)
	f.claim(slot("a"), "red0")
}

func (s suite) testOnly(t *testing.T) {
	f := s.open(t, Options{})
	only := func(name, id string) ledger.Slot {
		return ledger.Slot{Node: "node", Sheep: name, Only: job.ID(id)}
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
	f := s.open(t, Options{})
	mine := ledger.Slot{Node: "node", Sheep: "a", Addressed: true}
	f.create("any", priority(9))
	f.create("theirs", priority(9), sheep("b"))
	f.claimNothing(mine)
	f.create("mine", sheep("a"))
	f.create("mine, blue", sheep("a"), model(blue))
	mine.Prefer = blue
	f.claim(mine, "mine, blue")
	f.claim(mine, "mine")
	f.claimNothing(mine)
	f.claim(slot("a"), "any")
}

// testAddresses has a sheep claim by several addresses.
func (s suite) testAddresses(t *testing.T) {
	f := s.open(t, Options{})
	mine := ledger.Slot{Node: "node", Sheep: "a", Own: []string{"node/a"}, Open: []string{"@gpu=a100"}}
	f.create("of a label", sheep("@gpu=a100"))
	f.create("of a label, blue", sheep("@gpu=a100"), model(blue), priority(1))
	f.create("of another label", sheep("@gpu=h100"), priority(9))
	f.create("of my node", sheep("node/a"), model(blue), priority(-1))
	f.create("of another node", sheep("other/a"), priority(9))
	f.create("last", priority(-2))

	f.claim(prefer("b", blue), "last") // it has none of these addresses
	addressed := mine
	addressed.Addressed = true
	only := addressed
	only.Only = "of a label"
	f.claimNothing(only)
	without := mine
	without.Except = []job.Model{blue}
	f.claim(without, "of a label")
	f.claim(without, "of my node") // its own, whatever its model
	f.claimNothing(without)
	f.claimNothing(addressed)
	f.claim(mine, "of a label, blue")
	f.claimNothing(mine)
}

// testOldPlace puts jobs back and sees them come again in their order.
func (s suite) testOldPlace(t *testing.T) {
	f := s.open(t, Options{})
	var claims []ledger.Claim
	for i := range 5 {
		f.create(fmt.Sprint("job", i))
	}
	for i := range 4 {
		claims = append(claims, f.claim(ledger.Slot{Node: "node", Sheep: "a", Ahead: i%2 == 0}, fmt.Sprint("job", i)))
	}
	for _, i := range []int{2, 0, 3} {
		f.release(claims[i], ledger.Return{Cause: job.CauseHandedBack, Spent: i%2 == 0})
		if back := f.get(fmt.Sprint("job", i)); back.Seq != claims[i].Seq || !back.EnqueuedAt.Equal(claims[i].EnqueuedAt) {
			t.Fatalf("put back at place %d, was at %d", back.Seq, claims[i].Seq)
		}
	}
	for _, i := range []int{0, 2, 3, 4} {
		f.claim(slot("a"), fmt.Sprint("job", i))
	}
}
