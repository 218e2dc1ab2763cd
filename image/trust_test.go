package image

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// TestTrust moves a tag away from the digest that it is trusted with.
func TestTrust(t *testing.T) {
	claims.Hold(t, "M4")
	h := newHome(t, testenv.RegistryConfig{})
	trusted := testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...)
	other := testenv.Image(t, v1.Config{}, h.layers(1, 1000, 2)...)
	h.registry.Push(t, "digits:v1", trusted)
	h.registry.Push(t, "digits:v2", other)
	rule := func(text string) job.Rule {
		r, err := job.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	trust := job.Trust{rule("digits:v1@" + digestOf(t, trusted)), rule("ocr")}
	s := h.store(func(c *Config) { c.Trust = trust })
	m := job.Model{Name: "digits", Version: "v1"}
	if got := h.ensure(s, m).Target.Digest.String(); got != digestOf(t, trusted) {
		t.Errorf("got %s", got)
	}
	refused := func(s *Store, m job.Model, want string) {
		t.Helper()
		if _, err := s.Ensure(t.Context(), m, nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", m, err, want)
		}
	}
	refused(s, job.Model{Name: "digits", Version: "v2"}, "not among those")
	refused(s, job.Model{Name: "digits", Version: "v1@" + digestOf(t, other)}, "another digest")

	h.registry.Push(t, "digits:v1", other)
	h.registry.Requests()
	refused(s, m, "it is "+digestOf(t, other)+" and not "+digestOf(t, trusted))
	if n := testenv.BlobBytes(h.registry.Requests(), ""); n > 0 {
		t.Errorf("%d bytes of it were fetched", n)
	}
	// By its digest the trusted one can still be had.
	if got := h.ensure(s, job.Model{Name: "digits", Version: digestOf(t, trusted)}).Target.Digest.String(); got != digestOf(t, trusted) {
		t.Errorf("got %s", got)
	}

	// What is here and is not trusted is not used either, whether the registry is
	// asked or not.
	elsewhere := h.store(nil)
	h.ensure(elsewhere, m)
	for _, policy := range []Policy{Always, IfMissing, Never} {
		refused(h.store(func(c *Config) { c.Trust, c.Policy = trust, policy }), m, "which models.allow trusts")
	}
}
