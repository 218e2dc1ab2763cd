package ledgertest

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// rule parses a pattern of models.
func rule(t *testing.T, text string) job.Rule {
	t.Helper()
	r, err := job.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testModelLimits limits the held jobs of some models, on all nodes together.
func (s suite) testModelLimits(t *testing.T) {
	f := s.open(t, Options{Policy: ledger.Policy{Models: []ledger.ModelLimit{
		{Models: rule(t, "red"), MaxRunning: 2}, {Models: rule(t, "re*"), MaxRunning: 3},
	}}})
	red2 := job.Model{Name: "red", Version: "2"}
	reed := job.Model{Name: "reed"}
	f.create("red, first", priority(1))
	f.create("red, v2", model(red2))
	f.create("red, last")
	f.create("reed", model(reed))
	f.create("reed, mine", model(reed), sheep("a"))
	f.create("blue", model(blue), priority(-1))

	first := f.claim(slot("a"), "red, first")
	second := f.claim(ahead("b"), "red, v2") // claims ahead and claims of other nodes count
	only := slot("c")
	only.Only = "red, last"
	f.claimNothing(only)
	third := f.claim(ledger.Slot{Node: "other", Sheep: "a"}, "reed")
	f.claim(prefer("a", red), "blue")
	f.claimNothing(slot("a")) // jobs addressed to it are limited, too
	f.finish(third)
	f.claim(ledger.Slot{Node: "node", Sheep: "a", Addressed: true}, "reed, mine")
	f.claimNothing(slot("a"))
	f.release(second, unspent)
	f.claim(slot("c"), "red, v2")
	f.finish(first)
	f.claim(slot("c"), "red, last")
}

// testTenantLimits limits the held jobs of each tenant, and not jobs without tenant.
func (s suite) testTenantLimits(t *testing.T) {
	f := s.open(t, Options{Policy: ledger.Policy{Tenants: []ledger.TenantLimit{
		{Tenant: "wool", MaxRunning: 2}, {Tenant: "free"}, {Tenant: ledger.AnyTenant, MaxRunning: 1},
	}}})
	for i := range 3 {
		for _, name := range []string{"wool", "meat", "milk", "free", ""} {
			f.create(fmt.Sprint(name, i), tenant(name), priority(-i))
		}
	}
	var claims []ledger.Claim
	for _, want := range []string{"wool0", "meat0", "milk0", "free0", "0", "wool1", "free1", "1", "free2", "2"} {
		claims = append(claims, f.claim(slot("a"), want))
	}
	f.claimNothing(slot("a"))
	f.finish(claims[1])
	f.claim(slot("a"), "meat1")
	f.claimNothing(slot("a"))
	f.cancel("wool0") // it is still held
	f.claimNothing(slot("a"))
	f.finish(claims[0])
	f.claim(slot("a"), "wool2")

	load, err := f.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]int{}
	for _, h := range load.Held {
		if held[h.Tenant] += h.Jobs; h.Model != red || h.Time < 0 {
			t.Errorf("held are %+v", h)
		}
	}
	if want := map[string]int{"wool": 2, "meat": 1, "milk": 1, "free": 3, "": 3}; !maps.Equal(held, want) {
		t.Errorf("held are %v, want %v", held, want)
	}
}

// testLimitsOfClaimsAtOnce: while the sheep of two nodes claim and finish jobs, the number
// of held jobs never exceeds the limits, and all jobs are claimed.
func (s suite) testLimitsOfClaimsAtOnce(t *testing.T) {
	const most, mostOfTenant, jobs = 3, 2, 40
	f := s.open(t, Options{Policy: ledger.Policy{
		Models: []ledger.ModelLimit{{Models: rule(t, "red"), MaxRunning: most}}, Tenants: []ledger.TenantLimit{{Tenant: "wool", MaxRunning: mostOfTenant}},
	}})
	another := f.harness.Another(t, f.Ledger)
	defer another.Close()
	for i := range jobs {
		f.create(fmt.Sprint("job", i), tenant([]string{"wool", "meat"}[i%2]))
	}
	var left, held, heldOfTenant atomic.Int64
	left.Store(jobs)
	var sheep sync.WaitGroup
	for i := range 8 {
		l, slot := f.Ledger, ledger.Slot{Node: "node", Sheep: fmt.Sprint("sheep", i)}
		if i%2 == 1 {
			l, slot.Node = another, "other"
		}
		sheep.Go(func() {
			for left.Load() > 0 && !t.Failed() {
				c, err := l.Claim(t.Context(), slot)
				if err != nil {
					t.Errorf("Claim: %v", err)
					return
				}
				if c == nil {
					continue
				}
				if n := held.Add(1); n > most {
					t.Errorf("%d jobs of the model are held, at most %d may be", n, most)
				}
				if c.Tenant == "wool" {
					if n := heldOfTenant.Add(1); n > mostOfTenant {
						t.Errorf("%d jobs of the tenant are held, at most %d may be", n, mostOfTenant)
					}
					heldOfTenant.Add(-1) // before the ledger is told
				}
				held.Add(-1)
				if _, err := l.Finish(t.Context(), c.ID, c.Token, done); err != nil {
					t.Errorf("Finish: %v", err)
				}
				left.Add(-1)
			}
		})
	}
	sheep.Wait()
}

// testLimitsKept: held jobs count after the ledger was closed, or its process killed.
func (s suite) testLimitsKept(t *testing.T) {
	f := s.open(t, Options{Policy: ledger.Policy{Tenants: []ledger.TenantLimit{{Tenant: "wool", MaxRunning: 1}}}})
	f.create("first", tenant("wool"))
	f.create("second", tenant("wool"))
	f.create("nobody's", priority(-1))
	first := f.claim(slot("a"), "first")
	f.reopen()
	only := slot("a")
	only.Only = "second"
	f.claimNothing(only)
	f.crash()
	f.claim(slot("a"), "nobody's")
	f.claimNothing(slot("a"))
	f.finish(first)
	f.reopen()
	f.claim(slot("a"), "second")
}

// used is an outcome with a GPU time that is far longer than the test.
func used(hours int) ledger.Outcome {
	o := done
	o.Usage.GPUTime = time.Duration(hours) * time.Hour
	return o
}

// testShares: three tenants share the sheep by their weights, whichever came first.
func (s suite) testShares(t *testing.T) {
	f := s.open(t, Options{Policy: ledger.Policy{HalfLife: 10_000 * time.Hour, Tenants: []ledger.TenantLimit{{Tenant: "wool", Weight: 3}}}})
	const each = 24
	for _, name := range []string{"meat", "wool", "", "milk"} {
		for i := range each {
			f.create(fmt.Sprint(name, i), tenant(name))
		}
	}
	next := func(s ledger.Slot) *ledger.Claim {
		t.Helper()
		c, err := f.Claim(t.Context(), s)
		if err != nil || c == nil {
			t.Fatalf("Claim = %v, %v", c, err)
		}
		return c
	}
	// No tenant has used anything: the held jobs decide, then the use divided by the
	// weight.
	claims := map[string]*ledger.Claim{}
	for range 4 {
		c := next(slot("a"))
		claims[c.Tenant] = c
	}
	if len(claims) != 4 {
		t.Fatalf("the first claims are of %v", claims)
	}
	for _, c := range claims {
		f.finishAs(*c, used(1))
	}
	got := map[string]int{}
	for range 32 {
		c := next(slot("a"))
		got[c.Tenant]++
		f.finishAs(*c, used(1))
	}
	// Of 36 jobs of an hour wool has three sixths. The order of tenants with the same use
	// is not defined.
	if got["wool"] < 16 || got["wool"] > 18 || got["meat"] < 4 || got["milk"] < 4 || got[""] < 4 {
		t.Errorf("tenants had %v of 32 jobs", got)
	}
	// After a longer job milk has none of the next jobs.
	only := slot("a")
	only.Only = job.ID(fmt.Sprint("milk", each-1))
	f.finishAs(*next(only), used(100))
	for range 8 {
		if c := next(slot("a")); c.Tenant == "milk" {
			t.Errorf("the tenant that used most has %s", c.ID)
		} else {
			f.finishAs(*c, used(1))
		}
	}
	// Priority and the model that is loaded come first.
	f.create("milk, urgent", tenant("milk"), priority(1))
	f.create("milk, blue", tenant("milk"), model(blue))
	f.finishAs(*next(prefer("a", red)), used(1))
	if c, err := f.Get(t.Context(), "milk, urgent"); err != nil || c.State != job.Done {
		t.Errorf("the urgent job is %+v, %v", c, err)
	}
	f.finishAs(f.claim(prefer("a", blue), "milk, blue"), used(1))
	// A tenant alone gets all sheep.
	for {
		c, err := f.Claim(t.Context(), slot("a"))
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			break
		}
		f.finishAs(*c, used(1))
	}
	load, err := f.Load(t.Context())
	if err != nil || len(load.Held) != 0 {
		t.Fatalf("the load is %+v, %v", load, err)
	}
	hour := func(d time.Duration) int { return int(d.Round(time.Hour) / time.Hour) }
	if hour(load.Used["wool"]) != each || hour(load.Used["milk"]) != each+101 {
		t.Errorf("tenants have used %v", load.Used)
	}
}

// testSharesKept: use counts after the ledger was closed, or its process killed.
func (s suite) testSharesKept(t *testing.T) {
	f := s.open(t, Options{Policy: ledger.Policy{HalfLife: 10_000 * time.Hour}})
	for i := range 3 {
		f.create(fmt.Sprint("wool", i), tenant("wool"))
	}
	f.create("meat", tenant("meat"))
	f.finishAs(f.claim(slot("a"), "wool0"), used(2))
	f.claim(slot("a"), "meat")
	c := f.claim(slot("b"), "wool1") // there is no other
	f.reopen()
	f.release(c, ledger.Return{Cause: job.CauseInterrupted, Spent: true, Usage: job.Usage{GPUTime: 3 * time.Hour}})
	f.create("meat, second", tenant("meat"))
	f.crash()
	f.claim(slot("b"), "meat, second")
	load, err := f.Load(t.Context())
	if used := load.Used["wool"].Round(time.Minute); err != nil || used != 5*time.Hour {
		t.Errorf("the load is %+v, %v", load, err)
	}
}

// limits is a policy that makes many of the jobs of testModel wait.
func limits(t *testing.T) ledger.Policy {
	t.Helper()
	return ledger.Policy{
		Models:  []ledger.ModelLimit{{Models: rule(t, "red:1"), MaxRunning: 1}, {Models: rule(t, "*"), MaxRunning: 3}},
		Tenants: []ledger.TenantLimit{{Tenant: "wool", MaxRunning: 1}, {Tenant: ledger.AnyTenant, MaxRunning: 2}},
	}
}

// atLimit reports whether the job waits because of a limit.
func (m *reference) atLimit(j *referenceJob) bool {
	held := func(counts func(*referenceJob) bool) (n int) {
		for _, other := range m.jobs {
			if other.token != 0 && counts(other) {
				n++
			}
		}
		return n
	}
	for _, limit := range m.policy.Models {
		if limit.Models.Matches(j.Model) && held(func(other *referenceJob) bool { return limit.Models.Matches(other.Model) }) >= limit.MaxRunning {
			return true
		}
	}
	for _, limit := range m.policy.Tenants {
		if j.Tenant != "" && (limit.Tenant == j.Tenant || limit.Tenant == ledger.AnyTenant) {
			return limit.MaxRunning > 0 && held(func(other *referenceJob) bool { return other.Tenant == j.Tenant }) >= limit.MaxRunning
		}
	}
	return false
}

// compareLoad compares the held and queued jobs of each tenant.
func (m *machine) compareLoad() {
	m.Helper()
	type kind struct {
		tenant string
		model  job.Model
	}
	held, queued := map[kind]int{}, map[string]int{"wool": 0, "meat": 0}
	for _, j := range m.reference.jobs {
		if j.token != 0 {
			held[kind{j.Tenant, j.Model}]++
		}
		if j.State == job.Queued && j.Tenant != "" {
			queued[j.Tenant]++
		}
	}
	load, err := m.Load(m.Context())
	if err != nil || len(load.Held) != len(held) {
		m.Fatalf("Load gave %+v, %v; want %v", load, err, held)
	}
	for _, h := range load.Held {
		if held[kind{h.Tenant, h.Model}] != h.Jobs {
			m.Fatalf("Load gave %+v; want %v", load, held)
		}
	}
	for tenant, want := range queued {
		if got, err := m.Queued(m.Context(), tenant, 100); err != nil || got != want {
			m.Fatalf("%d jobs of tenant %q are queued, %v; want %d", got, tenant, err, want)
		}
	}
}

// testQueued counts the queued jobs of a tenant, up to a number.
func (s suite) testQueued(t *testing.T) {
	f := s.open(t, Options{})
	for i := range 5 {
		f.create(fmt.Sprint("wool", i), tenant("wool"))
	}
	f.create("meat", tenant("meat"))
	f.create("delayed", tenant("meat"), func(r *job.Record) { r.NotBefore = timeIn(longTime) })
	f.create("nobody's")
	f.claim(slot("a"), "wool0")
	f.claim(ahead("a"), "wool1") // it is queued until it is started
	f.cancel("wool2")
	for _, c := range []struct {
		tenant     string
		most, want int
	}{{"wool", 100, 3}, {"wool", 3, 3}, {"wool", 2, 2}, {"meat", 10, 2}, {"none", 10, 0}, {"wool", 0, 0}} {
		if got, err := f.Queued(t.Context(), c.tenant, c.most); err != nil || got != c.want {
			t.Errorf("Queued(%q, %d) = %d, %v; want %d", c.tenant, c.most, got, err, c.want)
		}
	}
}
