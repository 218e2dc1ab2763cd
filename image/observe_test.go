package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// seen is what an Observer was told.
type seen struct {
	mu   sync.Mutex
	errs map[string][]error
}

func (s *seen) observe(op string, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.errs == nil {
		s.errs = map[string][]error{}
	}
	if took <= 0 {
		err = errors.Join(err, fmt.Errorf("took %v", took))
	}
	s.errs[op] = append(s.errs[op], err)
}

// only is whether op was told of, and each time with an error of the class.
func (s *seen) only(op string, class error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.errs[op]) > 0 && !slices.ContainsFunc(s.errs[op], func(err error) bool { return !errors.Is(err, class) })
}

func TestObserver(t *testing.T) {
	var registry, calls seen
	h := newHome(t, testenv.RegistryConfig{Username: "ada", Password: "secret", Token: true})
	client, err := Connect(t.Context(), h.daemon.Address, namespace, calls.observe)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...))
	s := h.store(func(c *Config) {
		c.Client, c.Observe = client, registry.observe
		c.Registry.Username, c.Registry.Password = "ada", "secret"
	})
	h.ensure(s, job.Model{Name: "model", Version: "v1"})
	registry.mu.Lock()
	first := registry.errs["manifest"][0]
	registry.mu.Unlock()
	if !errdefs.IsUnauthorized(first) {
		t.Errorf("the request without a token is told of as %v", first)
	}
	if !registry.only("token", nil) || !registry.only("blob", nil) || registry.only("other", nil) {
		t.Errorf("told of the registry: %v", registry.errs)
	}
	if _, err := client.GetImage(t.Context(), "no/such:image"); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	if !calls.only("Version/Version", nil) || !slices.ContainsFunc(calls.errs["Images/Get"], errdefs.IsNotFound) {
		t.Errorf("told of containerd: %v", calls.errs)
	}
}

// TestObservedAttempts answers a blob with a redirection to a server that fails,
// in every way: each attempt is told of as one for a blob.
func TestObservedAttempts(t *testing.T) {
	status := http.StatusOK
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL+"/cdn/x", http.StatusTemporaryRedirect))
	defer server.Close()
	for want, class := range map[int]error{
		http.StatusForbidden: errdefs.ErrPermissionDenied, http.StatusNotFound: errdefs.ErrNotFound,
		http.StatusTooManyRequests: errdefs.ErrUnavailable, http.StatusNotImplemented: errdefs.ErrUnavailable, http.StatusGone: errdefs.ErrInvalidArgument,
	} {
		status = want
		var told seen
		client := http.Client{Transport: &retryTransport{base: http.DefaultTransport, retryPolicy: hasty, observe: told.observe}}
		if resp, err := client.Get(server.URL + "/v2/model/blobs/sha256:1"); err == nil {
			resp.Body.Close()
		}
		if errs := told.errs["blob"]; len(told.errs) != 1 || len(errs) < 2 || errs[0] != nil || !errors.Is(errs[len(errs)-1], class) {
			t.Errorf("%d is told of as %v", want, told.errs)
		}
	}
	var told seen
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	elsewhere.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, elsewhere.URL+"/v2/model/manifests/v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&retryTransport{base: http.DefaultTransport, retryPolicy: hasty, observe: told.observe}).RoundTrip(req); err == nil {
		t.Fatal("a server that is away has answered")
	}
	if len(told.errs["manifest"]) != hasty.attempts || !told.only("manifest", errdefs.ErrUnavailable) {
		t.Errorf("told of %v", told.errs)
	}
}
