package image

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const namespace = "shepherd"

// hasty is a patience for tests: failures come soon. A test that stands still for a while, with
// its registry, is no stalled connection.
var hasty = retryPolicy{attempts: 4, first: time.Millisecond, maxPause: 20 * time.Millisecond, stall: time.Minute}

// home is a containerd, a registry and what connects them.
type home struct {
	*testing.T
	daemon   *testenv.Containerd
	registry *testenv.Registry
	client   *containerd.Client
	log      *records
}

func newHome(t *testing.T, cfg testenv.RegistryConfig) *home {
	t.Helper()
	return newHomeOn(t, testenv.StartContainerd(t), cfg)
}

func newHomeOn(t *testing.T, daemon *testenv.Containerd, cfg testenv.RegistryConfig) *home {
	t.Helper()
	h := &home{T: t, daemon: daemon, registry: testenv.StartRegistry(t, cfg), log: &records{}}
	client, err := Connect(t.Context(), daemon.Address, namespace, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.client = client
	t.Cleanup(func() {
		if left := daemon.Leftovers(t, namespace); len(left) > 0 && !t.Failed() {
			t.Errorf("left over: %s", strings.Join(left, ", "))
		}
		client.Close()
	})
	return h
}

// store makes a Store that change may configure further.
func (h *home) store(change func(*Config)) *Store {
	h.Helper()
	cfg := Config{Client: h.client, Registry: Registry{URL: h.registry.URL}, Log: slog.New(h.log)}
	if h.registry.CAFile != "" {
		cfg.Registry.CAFile = h.registry.CAFile
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		h.Fatal(err)
	}
	s.retries = hasty
	h.Cleanup(func() { s.Close() })
	return s
}

// ensure fails the test where the image does not come.
func (h *home) ensure(s *Store, m job.Model) Image {
	h.Helper()
	img, err := s.Ensure(h.Context(), m, nil)
	if err != nil {
		h.Fatal(err)
	}
	return img
}

// layers are n random layers of size bytes.
func (h *home) layers(n, size int, seed uint64) []v1.Layer {
	h.Helper()
	var layers []v1.Layer
	for i := range n {
		layers = append(layers, testenv.RandomLayer(h, "data/"+string(rune('a'+i)), size, seed+uint64(i)))
	}
	return layers
}

func digestOf(t testing.TB, x interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := x.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// records keeps log records for tests to look at.
type records struct {
	mu    sync.Mutex
	lines []string
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *records) WithGroup(string) slog.Handler            { return r }
func (r *records) Handle(_ context.Context, rec slog.Record) error {
	line := rec.Level.String() + " " + rec.Message
	rec.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	return nil
}

// find returns the lines that contain s.
func (r *records) find(s string) (found []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.Contains(l, s) {
			found = append(found, l)
		}
	}
	return found
}
