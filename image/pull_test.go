package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

const mib = 1 << 20

// TestPullNoLayers pulls an image that is a configuration alone.
func TestPullNoLayers(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	h.registry.Push(t, "team/bare:v1", testenv.Image(t, v1.Config{Entrypoint: []string{"/run"}}))
	img := h.ensure(s, job.Model{Name: "team/bare", Version: "v1"})
	if !slices.Equal(img.Config.Config.Entrypoint, []string{"/run"}) {
		t.Errorf("image %+v", img)
	}
}

// TestPull is the ordinary course on either daemon: pull, again without
// fetching, a new tag that shares layers, the list, removal.
func TestPull(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *testenv.Containerd{
		"Debian's": testenv.StartContainerd, "2.x": testenv.StartContainerd2,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHomeOn(t, start(t), testenv.RegistryConfig{})
			s := h.store(nil)
			shared := h.layers(3, mib, 1)
			v1Image := testenv.Image(t, v1.Config{Env: []string{"A=1"}, Entrypoint: []string{"/run"}}, shared...)
			h.registry.Push(t, "team/digits:v1", v1Image)

			var reports []Progress
			m := job.Model{Name: "team/digits", Version: "v1"}
			img, err := s.Ensure(t.Context(), m, func(p Progress) { reports = append(reports, p) })
			if err != nil {
				t.Fatal(err)
			}
			if got, want := img.Target.Digest.String(), digestOf(t, v1Image); got != want {
				t.Errorf("target %s, want %s", got, want)
			}
			if img.Model != m || img.Reference != h.registry.Host+"/team/digits:v1" || !slices.Equal(img.Config.Config.Entrypoint, []string{"/run"}) {
				t.Errorf("image %+v", img)
			}
			if _, err := h.client.SnapshotService("overlayfs").Stat(t.Context(), img.ChainID.String()); err != nil {
				t.Errorf("the image's snapshot: %v", err)
			}
			last := reports[len(reports)-1]
			if last.Done != last.Total || last.Total < 3*mib || last.LayersDone != 3 || last.Layers != 3 {
				t.Errorf("last progress %+v", last)
			}
			if n := testenv.BlobBytes(h.registry.Requests(), ""); n < 3*mib {
				t.Errorf("%d bytes of blobs were sent", n)
			}

			// Again: the tag is asked for, nothing is fetched.
			h.ensure(s, m)
			again := h.registry.Requests()
			if len(again) != 1 || again[0].Method != http.MethodHead {
				t.Errorf("the second time asked %v", again)
			}

			// The tag moves to an image that shares all layers but one.
			own := testenv.RandomLayer(t, "data/own", 2*mib, 99)
			moved := testenv.Image(t, v1.Config{}, append(slices.Clone(shared[:2]), own)...)
			h.registry.Push(t, "team/digits:v1", moved)
			if got := h.ensure(s, m).Target.Digest.String(); got != digestOf(t, moved) {
				t.Errorf("after the tag moved: %s", got)
			}
			requests := h.registry.Requests()
			for _, l := range shared {
				if n := testenv.BlobBytes(requests, digestOf(t, l)); n > 0 {
					t.Errorf("%d bytes of a layer that was here were fetched again", n)
				}
			}
			if n := testenv.BlobBytes(requests, digestOf(t, own)); n < 2*mib {
				t.Errorf("%d bytes of the new layer were fetched", n)
			}

			list, err := s.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(list) != 1 || list[0].Model != m || !list[0].Pulled || list[0].InUse || list[0].Size < 8*mib || time.Since(list[0].LastUsed) > time.Hour {
				t.Errorf("list %+v", list)
			}
			if err := s.Remove(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			if err := s.Remove(t.Context(), m); !errdefs.IsNotFound(err) {
				t.Errorf("second removal: %v", err)
			}
			if out := h.daemon.Ctr(t, namespace, "content", "ls", "-q"); out != "" {
				t.Errorf("content stays after the removal: %s", out)
			}
		})
	}
}

func TestDigestsAndPlatforms(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	plain := testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...)
	h.registry.Push(t, "plain:v1", plain)
	digest := digestOf(t, plain)
	for _, version := range []string{digest, "v1@" + digest} {
		img := h.ensure(s, job.Model{Name: "plain", Version: version})
		if img.Target.Digest.String() != digest {
			t.Errorf("%s gives %s", version, img.Target.Digest)
		}
		h.registry.Requests()
		h.ensure(s, job.Model{Name: "plain", Version: version})
		if requests := h.registry.Requests(); len(requests) != 0 {
			t.Errorf("a digest that is here was asked for: %v", requests)
		}
	}

	foreign := testenv.Image(t, v1.Config{}, h.layers(1, 1000, 2)...)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: plain, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: plain, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	h.registry.Push(t, "multi:v1", index)
	img := h.ensure(s, job.Model{Name: "multi", Version: "v1"})
	if img.Target.Digest.String() != digestOf(t, index) || len(img.Config.RootFS.DiffIDs) != 1 {
		t.Errorf("multi-platform image %+v", img)
	}
	if n := testenv.BlobBytes(h.registry.Requests(), ""); n > 4000 {
		t.Errorf("%d bytes fetched: other platforms' layers, too", n)
	}

	h.registry.Push(t, "foreign:v1", mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}}))
	_, err := s.Ensure(t.Context(), job.Model{Name: "foreign", Version: "v1"}, nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no variant for this machine (linux/") {
		t.Errorf("an image for another platform: %v", err)
	}
}

func TestPolicies(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	m := job.Model{Name: "model", Version: "v1"}
	never := h.store(func(c *Config) { c.Policy = Never })
	missing := h.store(func(c *Config) { c.Policy = IfMissing })
	always := h.store(nil)
	first := testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...)
	second := testenv.Image(t, v1.Config{}, h.layers(1, 1000, 2)...)
	h.registry.Push(t, "model:v1", first)

	if _, err := never.Ensure(t.Context(), m, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "pull_policy is never") {
		t.Errorf("never, without the image: %v", err)
	}
	if requests := h.registry.Requests(); len(requests) > 0 {
		t.Errorf("never asked the registry: %v", requests)
	}
	h.ensure(missing, m)
	h.registry.Push(t, "model:v1", second)
	h.registry.Requests()
	for _, s := range []*Store{missing, never} {
		if got := h.ensure(s, m).Target.Digest.String(); got != digestOf(t, first) {
			t.Errorf("%s gives %s", s.policy, got)
		}
	}
	if requests := h.registry.Requests(); len(requests) > 0 {
		t.Errorf("a present image was asked for: %v", requests)
	}
	if got := h.ensure(always, m).Target.Digest.String(); got != digestOf(t, second) {
		t.Errorf("always gives %s", got)
	}
}

func TestLocalImageServesWhileTheRegistryIsAway(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	m := job.Model{Name: "model", Version: "v1"}
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...))
	want := h.ensure(s, m).Target.Digest
	for name, fault := range map[string]testenv.RegistryFault{
		"broken connections": {CutAfter: -1},
		"503":                {Status: http.StatusServiceUnavailable},
		"429":                {Status: http.StatusTooManyRequests},
	} {
		h.registry.SetFault(func(*http.Request) *testenv.RegistryFault { return &fault })
		before := len(h.log.find("the local one is used"))
		if got := h.ensure(s, m).Target.Digest; got != want {
			t.Errorf("%s: %s", name, got)
		}
		if lines := h.log.find("the local one is used"); len(lines) != before+1 || !strings.HasPrefix(lines[before], "WARN") {
			t.Errorf("%s: warnings %q", name, lines)
		}
		_, err := s.Ensure(t.Context(), job.Model{Name: "other", Version: "v1"}, nil)
		next := "check registry.url"
		if fault.Status == http.StatusTooManyRequests {
			next = "it limits how often it is asked"
		}
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "attempts)") || !strings.Contains(err.Error(), next) {
			t.Errorf("%s, without a local image: %v", name, err)
		}
	}
	// An answer is an answer: what the registry no longer has does not serve.
	h.registry.SetFault(func(*http.Request) *testenv.RegistryFault { return &testenv.RegistryFault{Status: http.StatusNotFound} })
	if _, err := s.Ensure(t.Context(), m, nil); !errdefs.IsNotFound(err) {
		t.Errorf("removed from the registry: %v", err)
	}
}

func TestResumesBrokenLayers(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	layer := testenv.RandomLayer(t, "data", 8*mib, 1)
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, layer))
	size, err := layer.Size()
	if err != nil {
		t.Fatal(err)
	}
	var cuts atomic.Int64
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		if strings.Contains(r.URL.Path, digestOf(t, layer)) && cuts.Add(1) <= 5 {
			return &testenv.RegistryFault{CutAfter: mib}
		}
		return nil
	})
	h.ensure(s, job.Model{Name: "model", Version: "v1"})
	requests := h.registry.Requests()
	// What was sent and lost with the connection's buffers may be sent again.
	if sent := testenv.BlobBytes(requests, digestOf(t, layer)); sent < size || sent > size+size/4 {
		t.Errorf("a layer of %d bytes over 5 broken connections took %d", size, sent)
	}
	if cuts.Load() != 6 {
		t.Errorf("%d requests for the layer", cuts.Load())
	}
}

// TestGoesOnLater breaks a pull off in the middle: by the registry, by the
// caller and by containerd's death. What was fetched is not fetched again.
func TestGoesOnLater(t *testing.T) {
	for _, how := range []string{"registry gone", "caller gone", "containerd restarted"} {
		t.Run(how, func(t *testing.T) {
			h := newHome(t, testenv.RegistryConfig{})
			s := h.store(nil)
			m := job.Model{Name: "model", Version: "v1"}
			layers := h.layers(2, 4*mib, 1)
			h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, layers...))
			whole, half := digestOf(t, layers[0]), digestOf(t, layers[1])

			// The first layer comes and the second one breaks in the middle.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			hung, release, wholeHere := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var halves atomic.Int64
			h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
				switch {
				case !strings.Contains(r.URL.Path, half):
					return nil
				case halves.Add(1) == 1:
					return &testenv.RegistryFault{Hold: wholeHere, CutAfter: 2 * mib}
				case how == "registry gone":
					return &testenv.RegistryFault{CutAfter: -1}
				case halves.Load() == 2:
					close(hung)
					return &testenv.RegistryFault{Hold: release}
				}
				return nil
			})
			ended := make(chan error, 1)
			go func() {
				_, err := s.Ensure(ctx, m, nil)
				ended <- err
			}()
			waitFor(t, func() bool {
				return strings.Contains(h.daemon.Ctr(t, namespace, "content", "ls", "-q"), whole)
			})
			close(wholeHere)
			if how != "registry gone" {
				<-hung
			}
			var err error
			switch how {
			case "registry gone":
				if err = <-ended; !errdefs.IsUnavailable(err) {
					t.Fatalf("the first pull ended with %v", err)
				}
				h.registry.SetFault(nil)
			case "caller gone":
				cancel()
				if err = <-ended; !errors.Is(err, context.Canceled) {
					t.Fatalf("the first pull ended with %v", err)
				}
			case "containerd restarted":
				// Nobody is told: the pull goes on when containerd is back.
				h.daemon.Kill(t)
				h.daemon.Start(t)
				close(release)
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}
			before := h.registry.Requests()
			h.ensure(s, m)
			requests := h.registry.Requests()
			if n := testenv.BlobBytes(requests, whole); n > 0 {
				t.Errorf("%d bytes of the layer that was whole were fetched again", n)
			}
			if n := testenv.BlobBytes(requests, half); n > 3*mib {
				t.Errorf("%d bytes of the layer that was half there were fetched", n)
			}
			if n := testenv.BlobBytes(before, whole); n > 4*mib+mib/4 {
				t.Errorf("%d bytes of the first layer were fetched in all", n)
			}
		})
	}
}

// TestSnapshotInTheWay has the directory lie there that a containerd leaves which is killed
// while it makes a snapshot.
func TestSnapshotInTheWay(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *testenv.Containerd{"1.6": testenv.StartContainerd, "2.3": testenv.StartContainerd2} {
		t.Run("containerd "+name, func(t *testing.T) {
			h := newHomeOn(t, start(t), testenv.RegistryConfig{})
			h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(2, 1000, 1)...))
			h.registry.Push(t, "fetched:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 7)...))
			h.daemon.Ctr(t, namespace, "content", "fetch", "--plain-http", strings.TrimPrefix(h.registry.URL, "http://")+"/fetched:v1") // and not unpacked
			snapshots := filepath.Join(h.daemon.Root, "io.containerd.snapshotter.v1.overlayfs/snapshots")
			for _, model := range []string{"model", "fetched"} {
				taken, _ := filepath.Glob(filepath.Join(snapshots, "[0-9]*"))
				left := filepath.Join(snapshots, fmt.Sprint(1+len(taken)), "fs/left") // of the next
				if err := os.MkdirAll(left, 0o755); err != nil {
					t.Fatal(err)
				}
				h.ensure(h.store(nil), job.Model{Name: model, Version: "v1"})
				if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("what was in the way of %s: %v", model, err)
				}
			}
		})
	}
}

// waitFor waits until a condition outside this process holds.
func waitFor(t testing.TB, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what was waited for does not come")
		}
	}
}

func TestRetriesWhatPasses(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(2, 1000, 1)...))
	s := h.store(nil)
	seen := map[string]int{}
	faults := []testenv.RegistryFault{
		{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}},
		{CutAfter: -1},
		{Status: http.StatusBadGateway},
	}
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		key := r.Method + r.URL.Path
		seen[key]++
		if seen[key] <= len(faults) {
			return &faults[seen[key]-1]
		}
		return nil
	})
	h.ensure(s, job.Model{Name: "model", Version: "v1"})
	for key, n := range seen {
		if n != len(faults)+1 {
			t.Errorf("%s was asked %d times", key, n)
		}
	}
}

func TestConcurrentPullsAreOne(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	m := job.Model{Name: "model", Version: "v1"}
	layer := testenv.RandomLayer(t, "data", mib, 1)
	size, _ := layer.Size()
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, layer))
	release, asked := make(chan struct{}), make(chan struct{}, 1)
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		if !strings.Contains(r.URL.Path, digestOf(t, layer)) {
			return nil
		}
		asked <- struct{}{}
		return &testenv.RegistryFault{Hold: release}
	})
	// The first caller begins the pull and goes away.
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := s.Ensure(ctx, m, nil)
		gone <- err
	}()
	<-asked
	var wg sync.WaitGroup
	var heard atomic.Int64
	for range 8 {
		wg.Go(func() {
			img, err := s.Ensure(t.Context(), m, func(Progress) { heard.Add(1) })
			if err != nil || img.Model != m {
				t.Errorf("%v %v", img, err)
			}
		})
	}
	waitFor(t, func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, f := range s.flights.byKey {
			return f.waiting == 9
		}
		return false
	})
	reason := errors.New("the job was cancelled")
	cancel(reason)
	if err := <-gone; !errors.Is(err, reason) {
		t.Errorf("who went away was told %v", err)
	}
	close(release)
	wg.Wait()
	if n := testenv.BlobBytes(h.registry.Requests(), digestOf(t, layer)); n != size {
		t.Errorf("%d bytes fetched of a layer of %d", n, size)
	}
	if heard.Load() < 8 {
		t.Errorf("%d reports for 8 callers", heard.Load())
	}
}

func TestAbandonedPullEnds(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	layer := testenv.RandomLayer(t, "data", mib, 1)
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, layer))
	asked, ended := make(chan struct{}, 1), make(chan struct{})
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		if strings.Contains(r.URL.Path, digestOf(t, layer)) {
			asked <- struct{}{}
			go func() {
				<-r.Context().Done()
				close(ended)
			}()
			return &testenv.RegistryFault{Hold: make(chan struct{})}
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := s.Ensure(ctx, job.Model{Name: "model", Version: "v1"}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-ended
	s.Close()
	s.Close()
	if _, err := s.Ensure(t.Context(), job.Model{Name: "model", Version: "v1"}, nil); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
	// What it fetched is kept for a day by one lease.
	left, err := h.client.LeasesService().List(t.Context())
	if err != nil || len(left) != 1 || left[0].Labels[labelLease] != h.registry.Host+"/model:v1" || left[0].Labels["containerd.io/gc.expire"] == "" {
		t.Errorf("leases %v, %v", left, err)
	}
	for _, l := range left {
		if err := h.client.LeasesService().Delete(t.Context(), l, leases.SynchronousDelete); err != nil {
			t.Error(err)
		}
	}
}

// TestLeasesOfKilledPulls has a process killed when its pull had made the image,
// and before it deleted its lease: the next use of the image deletes it. What a
// broken pull of a newer image fetched is kept, and so is what another daemon pulls.
func TestLeasesOfKilledPulls(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, testenv.RandomLayer(t, "data", mib, 1)))
	m := job.Model{Name: "model", Version: "v1"}
	if _, err := h.store(nil).Ensure(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	manager := h.client.LeasesService()
	pulling := func(name string) {
		t.Helper()
		if _, err := manager.Create(t.Context(), leases.WithRandomID(), leases.WithExpiration(time.Hour),
			leases.WithLabels(map[string]string{labelLease: h.registry.Host + "/" + name})); err != nil {
			t.Fatal(err)
		}
	}
	pulling("model:v1")
	pulling("model:v2")
	check := func(when string, want ...string) {
		t.Helper()
		all, err := manager.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range all {
			got = append(got, strings.TrimPrefix(l.Labels[labelLease], h.registry.Host+"/"))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s there are leases of %q, want of %q", when, got, want)
		}
	}
	always := h.store(func(c *Config) { c.Policy = Always })
	h.registry.SetFault(func(*http.Request) *testenv.RegistryFault {
		return &testenv.RegistryFault{Status: http.StatusBadGateway}
	})
	if _, err := always.Ensure(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	check("while the registry cannot be asked", "model:v1", "model:v2")
	h.registry.SetFault(nil)
	if _, err := always.Ensure(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	check("with the newest image here", "model:v2")
	pulling("model:v1") // another daemon, at this moment
	if _, err := always.Ensure(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	check("while another daemon pulls", "model:v1", "model:v2")
	if _, err := h.store(nil).Ensure(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	check("after the other daemon was killed, too", "model:v2")
	h.registry.Push(t, "model:v2", testenv.Image(t, v1.Config{}, testenv.RandomLayer(t, "data", mib, 2)))
	m.Version = "v2"
	if _, err := h.store(nil).Ensure(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	check("after the next pull")
}

// TestGarbageCollection runs containerd's collector in the middle of a pull.
func TestGarbageCollectionDuringPull(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	layers := h.layers(3, mib, 1)
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, layers...))
	last := digestOf(t, layers[2])
	release := make(chan struct{})
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		if strings.Contains(r.URL.Path, last) {
			return &testenv.RegistryFault{Hold: release}
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		_, err := s.Ensure(t.Context(), job.Model{Name: "model", Version: "v1"}, nil)
		done <- err
	}()
	waitFor(t, func() bool {
		return strings.Contains(h.daemon.Ctr(t, namespace, "content", "ls", "-q"), digestOf(t, layers[1]))
	})
	other, err := h.client.LeasesService().Create(t.Context(), leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.client.LeasesService().Delete(t.Context(), other, leases.SynchronousDelete); err != nil { // collects garbage
		t.Fatal(err)
	}
	h.registry.Requests()
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	requests := h.registry.Requests()
	for _, l := range layers[:2] {
		if n := testenv.BlobBytes(requests, digestOf(t, l)); n > 0 {
			t.Errorf("%d bytes fetched again", n)
		}
	}
}

// TestDamagedLayer has bytes of a layer change on the way, once and for good.
func TestDamagedLayer(t *testing.T) {
	claims.Hold(t, "R2")
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	layer := testenv.RandomLayer(t, "data", mib, 1)
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, layer))
	size, _ := layer.Size()
	var times atomic.Int64
	h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
		if strings.Contains(r.URL.Path, digestOf(t, layer)) && times.Add(-1) >= 0 {
			return &testenv.RegistryFault{Body: make([]byte, size)}
		}
		return nil
	})
	m := job.Model{Name: "model", Version: "v1"}
	times.Store(100)
	_, err := s.Ensure(t.Context(), m, nil)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "push the image again") {
		t.Errorf("damaged for good: %v", err)
	}
	times.Store(1)
	h.ensure(s, m)
}

func TestHostileManifests(t *testing.T) {
	claims.Hold(t, "R2")
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	elsewhere := testenv.StartRegistry(t, testenv.RegistryConfig{})
	layer := testenv.RandomLayer(t, "data", 1000, 1)
	img, err := mutate.Append(testenv.Image(t, v1.Config{}), mutate.Addendum{Layer: layer, URLs: []string{elsewhere.URL + "/steal"}})
	if err != nil {
		t.Fatal(err)
	}
	h.registry.Push(t, "urls:v1", img)
	h.ensure(s, job.Model{Name: "urls", Version: "v1"})
	if requests := elsewhere.Requests(); len(requests) > 0 {
		t.Errorf("a manifest sent us to %v", requests)
	}

	huge := v1.Config{Env: []string{"A=" + strings.Repeat("a", maxDocument)}}
	h.registry.Push(t, "huge:v1", testenv.Image(t, huge, layer))
	if _, err := s.Ensure(t.Context(), job.Model{Name: "huge", Version: "v1"}, nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a huge configuration: %v", err)
	}
}

func TestProgressIsNotTooMuch(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	s := h.store(nil)
	layers := h.layers(2, 2*mib, 1)
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, layers...))
	h.registry.SetFault(func(*http.Request) *testenv.RegistryFault {
		return &testenv.RegistryFault{Pause: 15 * time.Millisecond}
	})
	var reports []Progress
	started := time.Now()
	if _, err := s.Ensure(t.Context(), job.Model{Name: "model", Version: "v1"}, func(p Progress) { reports = append(reports, p) }); err != nil {
		t.Fatal(err)
	}
	if most := int(time.Since(started)/reportInterval) + 3; len(reports) > most || len(reports) < 3 {
		t.Errorf("%d reports in %s", len(reports), time.Since(started))
	}
	for i := 1; i < len(reports); i++ {
		if reports[i].Done < reports[i-1].Done {
			t.Errorf("progress went back: %+v after %+v", reports[i], reports[i-1])
		}
	}
	var middle Progress // of the transfer: a busy machine may unpack for longer
	for _, p := range reports {
		if p.Phase == Pulling && p.Done > 0 && p.Rate > middle.Rate {
			middle = p
		}
	}
	if text := middle.String(); middle.Rate <= 0 || !strings.Contains(text, "% ") && !strings.Contains(text, "%,") || !strings.Contains(text, "/s, ") {
		t.Errorf("in the middle: %s", fmt.Sprint(middle))
	}
}
