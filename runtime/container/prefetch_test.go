package container_test

import (
	"net/http"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// While a runner has one model, another's image is fetched; it is loaded then
// without asking the registry for any of it.
func TestPrefetch(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	h := w.up(t, "")
	next := job.Model{Name: "next", Version: "v1"}
	w.addModel(t, next, "")
	w.more = "pull_policy: if-missing\n"
	if err := h.Sheep.(runtime.Prefetcher).Prefetch(t.Context(), next, runtime.Discard); err != nil {
		t.Fatal(err)
	}
	h.Do("a", "")
	h.StopAndClose()
	w.registry.SetFault(func(*http.Request) *testenv.RegistryFault {
		return &testenv.RegistryFault{Status: http.StatusServiceUnavailable}
	})
	offline, err := w.driver(t).NewSheep("other", decode(w.config()))
	if err != nil {
		t.Fatal(err)
	}
	if err := offline.Load(t.Context(), next, runtime.Discard); err != nil {
		t.Errorf("what was fetched cannot be loaded without the registry: %v", err)
	}
	missing := job.Model{Name: "missing", Version: "v1"}
	if err := offline.(runtime.Prefetcher).Prefetch(t.Context(), missing, runtime.Discard); !errdefs.IsUnavailable(err) {
		t.Errorf("while the registry is away: %v", err)
	}
}
