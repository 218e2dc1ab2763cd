package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/iterait/shepherd/image/containerderr"
)

// puller fetches and unpacks images.
type puller struct {
	*remote
	*disk
	leases   *pullLeases
	budget   *budget
	parallel int // layers unpacked at once
	log      *slog.Logger
}

// resolve asks the registry for the descriptor of r. If cached credentials are refused
// it reads them anew and tries once more, so that a rotated password does not require a
// restart.
func (s *remote) resolve(ctx context.Context, r ref, policy retryPolicy) (ocispec.Descriptor, error) {
	for attempt := 1; ; attempt++ {
		used := s.hasAuthorizer(r.name)
		desc, err := s.resolveOnce(ctx, r, policy)
		if err == nil || !s.authorizationFailed(err) {
			return desc, err
		}
		s.dropAuthorizers(r.name)
		if !used || attempt > 1 {
			return desc, err
		}
	}
}

func (s *remote) resolveOnce(ctx context.Context, r ref, policy retryPolicy) (ocispec.Descriptor, error) {
	resolver, done, err := s.resolver(ctx, r.name, policy)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer done()
	_, desc, err := resolver.Resolve(ctx, r.String())
	return desc, err
}

// pull fetches and unpacks target and creates the image r from it. It retries errors
// that may pass.
func (s *puller) pull(ctx context.Context, r ref, target ocispec.Descriptor, report func(Progress)) (err error) {
	ctx, release, err := s.leases.lease(ctx, r)
	if err != nil {
		return err
	}
	var tries struct{ broken, corrupt, full, containerd, stale, refused int }
	defer func() { release(err, tries.containerd+tries.full > 0) }()

	t := newTracker()
	t.enter(Pulling)
	watched, unwatch := context.WithCancel(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		t.watch(watched, r.String(), report)
	}()
	defer func() {
		unwatch()
		<-watching
		if err == nil {
			report(t.progress(r.String()))
		}
	}()

	s.log.InfoContext(ctx, "Pulling "+r.String(), "image", r.String()) // the original's message
	started := time.Now()
	parallel := true
	for {
		before := t.received()
		err := s.pullOnce(ctx, r, target, t, parallel)
		switch {
		case err == nil:
			s.log.InfoContext(ctx, "image pulled", "image", r.String(), "digest", target.Digest.String(),
				"fetched", t.received(), "seconds", time.Since(started).Seconds())
			return nil
		case ctx.Err() != nil:
			return err
		case containerderr.WrongCommit(err):
			// A layer was damaged on the way. Its partial download would be resumed,
			// so it is removed.
			s.abort(ctx, t)
			if tries.corrupt++; tries.corrupt > 1 {
				return err
			}
		case containerderr.DiskFull(err) && tries.full == 0:
			tries.full++
			if freed, terr := s.budget.trim(ctx, 0, r.String()); terr != nil || freed == 0 {
				return err
			}
		case s.authorizationFailed(err):
			// The token or credentials were accepted when the pull began: they have
			// expired or were rotated, so they are read anew.
			if t.received() > before {
				tries.refused = 0
			}
			if tries.refused++; tries.refused > 1 {
				return err
			}
			s.dropAuthorizers(r.name)
		case errors.Is(err, io.ErrUnexpectedEOF), s.storageRefused(err):
			if t.received() > before {
				tries.broken = 0
			}
			if tries.broken++; tries.broken > 3 {
				return err
			}
			p := retryTransport{retryPolicy: s.retries}
			select {
			case <-time.After(p.pause(tries.broken)):
			case <-ctx.Done():
				return err
			}
		case errors.Is(err, errNotUnpacked) && parallel:
			parallel = false // unpacking layers one by one returns the cause if it fails
		case containerderr.SnapshotInTheWay(err) && tries.stale < 3:
			// The failed call has removed the directory, so it can be repeated.
			tries.stale++
		case containerderr.Unreachable(err) && tries.containerd < 3:
			tries.containerd++
			if !s.awaitContainerd(ctx) {
				return err
			}
		default:
			return err
		}
		s.log.WarnContext(ctx, "the pull is retried after an error", "image", r.String(), "error", err)
	}
}

// errNotUnpacked is the error of a pull that reported success although layers are not
// unpacked: when containerd's client unpacks layers in parallel and a snapshot cannot be
// created, it stops without an error.
var errNotUnpacked = errors.New("containerd did not unpack all layers")

func (s *puller) pullOnce(ctx context.Context, r ref, target ocispec.Descriptor, t *tracker, parallel bool) error {
	resolver, done, err := s.resolver(ctx, r.name, s.retries)
	if err != nil {
		return err
	}
	defer done()
	opts := []containerd.RemoteOpt{
		containerd.WithResolver(&trackedResolver{Resolver: resolver, name: r.String(), target: target, tracker: t}),
		containerd.WithImageHandlerWrapper(func(h images.Handler) images.Handler { return s.trackedHandler(h, t) }),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(s.snapshotter),
		containerd.WithPullLabels(map[string]string{labelPulled: "true", labelLastUsed: now()}),
		containerd.WithDownloadLimiter(s.downloads),
	}
	capabilities, err := s.client.GetSnapshotterCapabilities(ctx, s.snapshotter)
	if err != nil {
		return s.noSnapshotter(err)
	}
	if parallel && slices.Contains(capabilities, "rebase") {
		// The snapshotter supports unpacking layers in parallel.
		opts = append(opts, containerd.WithUnpackOpts([]containerd.UnpackOpt{containerd.WithUnpackLimiter(semaphore.NewWeighted(int64(s.parallel)))}))
	}
	pulled, err := s.client.Pull(ctx, r.String(), opts...)
	if err != nil {
		return err
	}
	layers, err := pulled.RootFS(ctx)
	if err != nil || len(layers) == 0 { // then there is no snapshot
		return err
	}
	unpacked, err := pulled.IsUnpacked(ctx, s.snapshotter)
	if err == nil && !unpacked {
		err = errNotUnpacked
	}
	return err
}

func (s *puller) noSnapshotter(err error) error {
	if errdefs.IsUnavailable(err) {
		return err
	}
	return failf(errdefs.ErrFailedPrecondition, "containerd has no snapshotter %q (%v); set containerd.snapshotter to one that ctr plugins ls shows", s.snapshotter, err)
}

// abort discards partially downloaded layers.
func (s *puller) abort(ctx context.Context, t *tracker) {
	for _, l := range t.getLayers() {
		if err := s.client.ContentStore().Abort(ctx, remotes.MakeRefKey(ctx, l)); err != nil && !errdefs.IsNotFound(err) {
			s.log.WarnContext(ctx, "a partially downloaded layer cannot be discarded", "layer", l.Digest.String(), "error", err)
		}
	}
}

// trackedHandler wraps a pull's handler: it reports progress to the tracker, and fails
// before layers are fetched if the target is not an image for this machine.
func (s *puller) trackedHandler(h images.Handler, t *tracker) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		isLayer := images.IsLayerType(desc.MediaType)
		if !isLayer && desc.Size > maxDocument {
			return nil, failf(errdefs.ErrFailedPrecondition, "its %s has %d bytes, at most %d are read", desc.MediaType, desc.Size, maxDocument)
		}
		children, err := h.Handle(ctx, desc)
		switch {
		case err != nil && images.IsIndexType(desc.MediaType) && containerderr.NoPlatform(err):
			return nil, s.noPlatform(ctx, desc)
		case err != nil:
			return children, err
		case isLayer:
			t.finish(desc.Digest)
		case images.IsManifestType(desc.MediaType):
			if err := s.checkManifest(ctx, desc); err != nil {
				return nil, err
			}
			config, layers := splitLayers(children)
			if err := s.checkConfig(ctx, h, config); err != nil {
				return nil, err
			}
			t.setLayers(layers)
		case images.IsConfigType(desc.MediaType):
			s.skipUnpacked(ctx, desc, t)
		}
		return children, nil
	})
}

// skipUnpacked marks layers that are unpacked already as finished: they are not fetched,
// so nothing else reports them. Only the progress depends on it, so errors are ignored.
func (s *puller) skipUnpacked(ctx context.Context, desc ocispec.Descriptor, t *tracker) {
	data, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		return
	}
	var config ocispec.Image
	layers := t.getLayers()
	if json.Unmarshal(data, &config) != nil || len(config.RootFS.DiffIDs) != len(layers) {
		return
	}
	snapshotter := s.client.SnapshotService(s.snapshotter)
	for i, chain := range identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs)) {
		if _, err := snapshotter.Stat(ctx, chain.String()); err != nil {
			return
		}
		t.finish(layers[i].Digest)
	}
}

// trackedResolver is a resolver that returns a known target, and whose fetchers report
// to the tracker what they read.
type trackedResolver struct {
	remotes.Resolver
	name    string
	target  ocispec.Descriptor
	tracker *tracker
}

func (r *trackedResolver) Resolve(context.Context, string) (string, ocispec.Descriptor, error) {
	return r.name, r.target, nil
}

func (r *trackedResolver) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	inner, err := r.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		// A manifest may list other URLs of a layer. It is not trusted, and could
		// have the daemon send requests to any address.
		desc.URLs = nil
		rc, err := inner.Fetch(ctx, desc)
		if err != nil || !images.IsLayerType(desc.MediaType) {
			return rc, err
		}
		return &trackedLayer{ReadCloser: rc, digest: desc.Digest, tracker: r.tracker}, nil
	}), nil
}

// trackedLayer is a layer being fetched. A resumed fetch seeks to where the previous one
// stopped.
type trackedLayer struct {
	io.ReadCloser
	digest  digest.Digest
	tracker *tracker
}

func (l *trackedLayer) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	l.tracker.read(l.digest, int64(n))
	return n, err
}

func (l *trackedLayer) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := l.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.New("the fetcher cannot seek")
	}
	at, err := seeker.Seek(offset, whence)
	if err == nil {
		l.tracker.seek(l.digest, at)
	}
	return at, err
}
