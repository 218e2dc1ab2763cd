package shepherd_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/sqlite"
)

// bound has the fixture's ledger and core go by a policy, and starts the core.
func (p *fixture) bound(policy ledger.Policy) {
	p.t.Helper()
	if err := p.ledger.Close(); err != nil {
		p.t.Fatal(err)
	}
	l, err := sqlite.Open(p.t.Context(), sqlite.Config{Path: p.dir + "/ledger.db", Log: p.config.Log, Policy: policy})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	p.ledger, p.config.Ledger, p.config.Policy = l, l, policy
	p.start()
}

// A job that waits for a limit says so, and starts when the limit allows it, on
// whatever sheep.
func TestLimitOfModels(t *testing.T) {
	rule, err := job.ParseRule("big*")
	if err != nil {
		t.Fatal(err)
	}
	p := newFixture(t, "dolly", "shaun")
	begun, open := p.gated()
	p.bound(ledger.Policy{Models: []ledger.ModelLimit{{Models: rule, MaxRunning: 1}}})
	p.submit("wait-1", "big", "1", to("dolly"))
	p.began(begun, "wait-1")
	p.submit("wait-2", "bigger", "2", to("shaun"))
	p.submit("small", "m", "3")
	p.await("small", job.Done)
	e, err := p.core.Explain(t.Context(), "wait-2", "")
	if err != nil || !strings.Contains(e.Summary, "`big*`") {
		t.Errorf("the job that waits: %+v, %v", e, err)
	}
	open()
	p.began(begun, "wait-2")
	p.await("wait-1", job.Done)
	p.await("wait-2", job.Done)
}

// Beyond a tenant's bound none of its jobs is taken, and others' are.
func TestQueueBoundOfTenant(t *testing.T) {
	p := newFixture(t)
	p.config.Policy = ledger.Policy{Tenants: []ledger.TenantLimit{{Tenant: "wool", MaxQueued: 1}}}
	p.start()
	later := func(tenant string) func(*job.Request) {
		return func(r *job.Request) { r.Tenant, r.NotBefore = tenant, time.Now().Add(time.Hour) }
	}
	p.submit("one", "m", "1", later("wool"))
	r := job.Request{ID: "two", Model: job.Model{Name: "m"}, Payload: []byte("2"), Tenant: "wool"}
	var full *job.QueueFull
	if err := p.core.Submit(t.Context(), r); !errors.As(err, &full) || full.Limit != 1 || full.Tenant != "wool" {
		t.Fatalf("a second job: %v", err)
	}
	if p.there("two") {
		t.Error("a job that was refused is in storage")
	}
	p.submit("two", "m", "2", later("meat"))
	p.submit("three", "m", "2", later(""))
	if err := p.core.Cancel(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	p.submit("four", "m", "4", later("wool"))
}

// Tenants take turns on one sheep, whoever submitted first.
func TestFairShare(t *testing.T) {
	p := newFixture(t)
	begun, open := p.gated()
	p.config.StageAhead = 0
	p.bound(ledger.Policy{HalfLife: time.Hour})
	of := func(tenant string) func(*job.Request) { return func(r *job.Request) { r.Tenant = tenant } }
	p.submit("wait-first", "m", "1", of("wool"))
	p.began(begun, "wait-first")
	for _, id := range []string{"wait-wool1", "wait-wool2"} {
		p.submit(id, "m", "1", of("wool"))
	}
	p.submit("wait-meat", "m", "1", of("meat"))
	e, err := p.core.Explain(t.Context(), "wait-wool1", "wool")
	if err != nil || !strings.Contains(strings.Join(e.Reasons, "\n"), "tenant `wool` has recently used") {
		t.Errorf("a job that waits: %+v, %v", e, err)
	}
	open()
	p.began(begun, "wait-meat")
	for _, id := range []string{"wait-wool1", "wait-wool2", "wait-meat"} {
		p.await(id, job.Done)
	}
}
