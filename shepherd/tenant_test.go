package shepherd_test

import (
	"errors"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

// TestTenantsShareIDs: ids are everyone's, jobs are not.
func TestTenantsShareIDs(t *testing.T) {
	claims.Hold(t, "C10")
	p := newFixture(t)
	p.start()
	m := job.Model{Name: "m", Version: "v1"}
	submit := func(id job.ID, tenant string, payload []byte) error {
		return p.core.Submit(t.Context(), job.Request{ID: id, Model: m, Tenant: tenant, Payload: payload})
	}
	run := func(id job.ID, tenant string, payload []byte) {
		t.Helper()
		if err := submit(id, tenant, payload); err != nil {
			t.Fatal(err)
		}
		if status, err := p.core.Wait(t.Context(), id); err != nil || status.State != job.Done {
			t.Fatalf("%+v, %v", status, err)
		}
	}
	unknown := func(err error) bool {
		var e *job.UnknownJob
		return errors.As(err, &e)
	}
	run("shared", "wool", []byte("in"))
	if owner, err := p.core.Owner(t.Context(), "shared"); err != nil || owner != "wool" {
		t.Errorf("owned by %q, %v", owner, err)
	}
	if err := submit("shared", "meat", []byte("in")); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("over another's job: %v", err)
	}
	if err := submit("shared", "meat", nil); !unknown(err) {
		t.Errorf("another's job, to run again: %v", err)
	}
	run("shared", "wool", nil)
	run("shared", "", nil)
	if owner, err := p.core.Owner(t.Context(), "shared"); err != nil || owner != "wool" {
		t.Errorf("after a run by nobody in particular: owned by %q, %v", owner, err)
	}

	// A place with inputs that no job had is whose job it becomes.
	if err := p.store.Init(t.Context(), "inputs", []byte("in")); err != nil {
		t.Fatal(err)
	}
	run("inputs", "meat", nil)

	// Whose job it was is forgotten with the record; then it is no tenant's.
	if err := p.store.Init(t.Context(), "old", []byte("in")); err != nil {
		t.Fatal(err)
	}
	if err := p.store.SetStatus(t.Context(), "old", job.Status{State: job.Done, Model: m, EnqueuedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if owner, err := p.core.Owner(t.Context(), "old"); err != nil || owner != "" {
		t.Errorf("an expired job: %q, %v", owner, err)
	}
	if err := submit("old", "meat", nil); !unknown(err) {
		t.Errorf("a tenant, over an expired job: %v", err)
	}
	run("old", "", nil)
}
