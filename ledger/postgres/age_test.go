package postgres

import (
	"testing"
	"time"
)

// TestAge has the server's clock jump: the ledger's age goes on from where it was, by two
// minutes at most for a jump forward, so that nothing is removed early, and it never goes
// back, so that a run that ends later is not taken for an older one.
func TestAge(t *testing.T) {
	l := openQuiet(t, quiet(newDatabase(t), ""))
	age := func() time.Duration {
		t.Helper()
		var now time.Time
		var age int64
		if _, err := l.queryOne(t.Context(), queryMoment, nil, &now, &age); err != nil {
			t.Fatal(err)
		}
		return time.Duration(age) * time.Microsecond
	}
	began := age()
	last := began
	grows := func(what string, most time.Duration) {
		t.Helper()
		now := age()
		if now < last || now > began+most {
			t.Errorf("%s the age is %s, was %s, began at %s", what, now, last, began)
		}
		last = now
	}
	jump := func(by string) {
		t.Helper()
		if _, err := l.exec(t.Context(), `UPDATE shepherd.ledger SET wall = wall - interval '`+by+`'`, nil); err != nil {
			t.Fatal(err)
		}
	}
	sweep := func() {
		t.Helper()
		if err := l.maintenance.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const slow = time.Minute // of this test
	grows("at first", slow)
	for range 5 {
		sweep()
		grows("after a sweep", slow)
	}
	jump("10 days")
	grows("after a jump", 2*time.Minute+slow)
	sweep()
	grows("after a jump and a sweep", 2*time.Minute+slow)
	sweep()
	grows("after another sweep", 2*time.Minute+slow)
	jump("-10 days")
	sweep()
	if back := last - age(); back > 2*time.Minute+slow {
		t.Errorf("after a jump back the age is %s less", back)
	}
	last = age()
	sweep()
	grows("after a jump back and a sweep", 2*time.Minute+slow)
}
