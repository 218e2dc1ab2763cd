package shepherd_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

func TestTrust(t *testing.T) {
	claims.Hold(t, "M4")
	p := newFixture(t)
	for _, text := range []string{"m:v1", "pinned@sha256:" + strings.Repeat("0", 64)} {
		rule, err := job.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		p.config.Trust = append(p.config.Trust, rule)
	}
	p.start()
	submit := func(id job.ID, name, version string) error {
		return p.core.Submit(t.Context(), job.Request{ID: id, Model: job.Model{Name: name, Version: version}, Payload: []byte("x")})
	}
	if err := submit("good", "m", "v1"); err != nil {
		t.Fatal(err)
	}
	if status, err := p.core.Wait(t.Context(), "good"); err != nil || status.State != job.Done {
		t.Fatalf("%+v, %v", status, err)
	}
	for name, want := range map[string]string{"m": "not among those", "pinned": "only container sheep know"} {
		var untrusted *job.Untrusted
		if err := submit("bad-"+job.ID(name), name, "v2"); !errors.As(err, &untrusted) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		var unknown *job.UnknownJob
		if _, err := p.core.Job(t.Context(), "bad-"+job.ID(name)); !errors.As(err, &unknown) {
			t.Errorf("%s left something: %v", name, err)
		}
	}
}

// A job may have been accepted by rules that are no more: the sheep does not take
// it, not even with the model that it has loaded.
func TestTrustThatWasTakenAway(t *testing.T) {
	claims.Hold(t, "M4")
	p := newFixture(t)
	m := job.Model{Name: "m", Version: "v1"}
	if _, err := p.ledger.Create(t.Context(), job.Record{ID: "late", Model: m}); err != nil {
		t.Fatal(err)
	}
	if err := p.store.Init(t.Context(), "late", []byte("x")); err != nil {
		t.Fatal(err)
	}
	p.config.Trust = job.Trust{}
	p.start()
	status, err := p.core.Wait(t.Context(), "late")
	if err != nil || status.State != job.Failed || !strings.Contains(status.Failure.Message, "not among those") {
		t.Errorf("%+v, %v", status.Failure, err)
	}
}
