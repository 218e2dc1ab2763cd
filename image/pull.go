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
	parallel int // layers at once
	log      *slog.Logger
}

// resolve asks what r means. Credentials that were refused are read again and
// tried once more: a rotated password must not need a restart.
func (s *remote) resolve(ctx context.Context, r ref, patience retries) (ocispec.Descriptor, error) {
	for attempt := 1; ; attempt++ {
		used := s.hasAuthorizer(r.name)
		desc, err := s.resolveOnce(ctx, r, patience)
		if err == nil || !s.authorizationFailed(err) {
			return desc, err
		}
		s.dropAuthorizers(r.name)
		if !used || attempt > 1 {
			return desc, err
		}
	}
}

func (s *remote) resolveOnce(ctx context.Context, r ref, patience retries) (ocispec.Descriptor, error) {
	resolver, done, err := s.resolver(ctx, r.name, patience)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer done()
	_, desc, err := resolver.Resolve(ctx, r.String())
	return desc, err
}

// pull fetches and unpacks what target names, and makes it the image r.
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

	s.log.InfoContext(ctx, "Pulling "+r.String(), "image", r.String()) // the original's words
	started := time.Now()
	parallel := true
	for {
		before := t.moved()
		err := s.pullOnce(ctx, r, target, t, parallel)
		switch {
		case err == nil:
			s.log.InfoContext(ctx, "image pulled", "image", r.String(), "digest", target.Digest.String(),
				"fetched", t.moved(), "seconds", time.Since(started).Seconds())
			return nil
		case ctx.Err() != nil:
			return err
		case containerderr.WrongCommit(err):
			// Something between here and the registry damaged a layer. What is
			// written of it would be resumed, so it is removed.
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
			// A token or credentials that were good when the pull began: read
			// again, they may be so again.
			if t.moved() > before {
				tries.refused = 0
			}
			if tries.refused++; tries.refused > 1 {
				return err
			}
			s.dropAuthorizers(r.name)
		case errors.Is(err, io.ErrUnexpectedEOF), s.storageRefused(err):
			if t.moved() > before {
				tries.broken = 0
			}
			if tries.broken++; tries.broken > 3 {
				return err
			}
			p := persistent{retries: s.retries}
			select {
			case <-time.After(p.pause(tries.broken)):
			case <-ctx.Done():
				return err
			}
		case errors.Is(err, errNotUnpacked) && parallel:
			parallel = false // where it fails again, it says why
		case containerderr.SnapshotInTheWay(err) && tries.stale < 3:
			// A containerd that was killed left the directory of a snapshot that its
			// records do not know. The call that fails of it has removed it.
			tries.stale++
		case containerderr.Away(err) && tries.containerd < 3:
			tries.containerd++
			if !s.await(ctx) {
				return err
			}
		default:
			return err
		}
		s.log.WarnContext(ctx, "the pull goes on after an error", "image", r.String(), "error", err)
	}
}

// errNotUnpacked is the error of a pull that has ended without one and left layers out:
// containerd's client takes a snapshot that cannot be made for the end of the layers
// where it unpacks them side by side.
var errNotUnpacked = errors.New("containerd did not unpack all layers")

func (s *puller) pullOnce(ctx context.Context, r ref, target ocispec.Descriptor, t *tracker, parallel bool) error {
	resolver, done, err := s.resolver(ctx, r.name, s.retries)
	if err != nil {
		return err
	}
	defer done()
	opts := []containerd.RemoteOpt{
		containerd.WithResolver(&following{Resolver: resolver, name: r.String(), target: target, tracker: t}),
		containerd.WithImageHandlerWrapper(func(h images.Handler) images.Handler { return s.follow(h, t) }),
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
		// Layers can be unpacked side by side.
		opts = append(opts, containerd.WithUnpackOpts([]containerd.UnpackOpt{containerd.WithUnpackLimiter(semaphore.NewWeighted(int64(s.parallel)))}))
	}
	pulled, err := s.client.Pull(ctx, r.String(), opts...)
	if err != nil {
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

// abort throws half-written layers away.
func (s *puller) abort(ctx context.Context, t *tracker) {
	for _, l := range t.getLayers() {
		if err := s.client.ContentStore().Abort(ctx, remotes.MakeRefKey(ctx, l)); err != nil && !errdefs.IsNotFound(err) {
			s.log.WarnContext(ctx, "a half-written layer cannot be thrown away", "layer", l.Digest.String(), "error", err)
		}
	}
}

// follow tells the tracker what a pull handles, and refuses what is no image for
// this machine before its layers are fetched.
func (s *puller) follow(h images.Handler, t *tracker) images.Handler {
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

// skipUnpacked tells the tracker which layers are unpacked already: they are
// not fetched, and nothing else would be heard of them. It matters to the
// progress only, so that what fails here fails later or not at all.
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

// following is a resolver that knows the answer already and whose fetchers
// tell the tracker what they read.
type following struct {
	remotes.Resolver
	name    string
	target  ocispec.Descriptor
	tracker *tracker
}

func (f *following) Resolve(context.Context, string) (string, ocispec.Descriptor, error) {
	return f.name, f.target, nil
}

func (f *following) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	inner, err := f.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		// A manifest may name other places to fetch a layer from. It comes from
		// outside and would have us send requests wherever it likes.
		desc.URLs = nil
		rc, err := inner.Fetch(ctx, desc)
		if err != nil || !images.IsLayerType(desc.MediaType) {
			return rc, err
		}
		return &followed{ReadCloser: rc, digest: desc.Digest, tracker: f.tracker}, nil
	}), nil
}

// followed is a layer being fetched. Seek is how a resumed fetch begins where
// the last one broke.
type followed struct {
	io.ReadCloser
	digest  digest.Digest
	tracker *tracker
}

func (f *followed) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	f.tracker.read(f.digest, int64(n))
	return n, err
}

func (f *followed) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := f.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.New("the fetcher cannot begin in the middle")
	}
	at, err := seeker.Seek(offset, whence)
	if err == nil {
		f.tracker.seek(f.digest, at)
	}
	return at, err
}
