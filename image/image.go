// Package image turns the name and version of a model into an image that
// containerd has unpacked: it resolves the reference, authenticates, pulls and
// reports the progress, and removes images to keep the disk usage within a budget.
//
//	Ensure ─► local? ─► policy ─► resolve ─► pull (layers ‖ unpack) ─► Image
//	                      │                                             ▲
//	                      └── up to date, or registry unreachable ──────┘
//
// The reference is REGISTRY/NAME:VERSION. Images, their layers and snapshots are
// stored in containerd, in the client's namespace; this package has no storage of its
// own. A pull holds a lease, which protects unfinished downloads from containerd's
// garbage collection; a pull that failed is resumed.
//
// A Store consists of remote, the client of the registry (hosts.go), disk, the images
// in containerd (image.go, usage.go), puller, which pulls from remote to disk
// (pull.go), pullLeases (leases.go), and budget, which removes images (usage.go).
package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	containerdlog "github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/iterait/shepherd/image/containerderr"
	"github.com/iterait/shepherd/image/endpoint"
	"github.com/iterait/shepherd/job"
)

// Policy says when the registry is asked for an image.
type Policy string

// The policies.
const (
	// Always resolves the tag each time. Layers that exist locally are not fetched
	// again. If the registry cannot be reached, the local image is used and a
	// warning is logged.
	Always Policy = "always"
	// IfMissing asks only for images that do not exist locally.
	IfMissing Policy = "if-missing"
	// Never asks for none: images are imported by other means.
	Never Policy = "never"
)

// ParsePolicy reads a policy's name; the empty one means Always.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case "":
		return Always, nil
	case Always, IfMissing, Never:
		return p, nil
	}
	return "", fmt.Errorf("pull_policy %q is none of always, if-missing and never", s)
}

// Registry configures the registry that images are pulled from.
type Registry struct {
	// URL is http://HOST[:PORT][/PATH] or https://…; without a scheme it is
	// plain HTTP.
	URL string
	// Username is sent with Password, or with the content of PasswordFile without
	// its line end.
	Username, Password, PasswordFile string
	// DockerConfig is the path of a docker config.json with credentials. It is used
	// if Username is empty.
	DockerConfig string
	// CAFile is the path of PEM certificates of authorities to trust in addition to
	// the system's.
	CAFile string
	// HostsDir has a directory for each registry with a hosts.toml file or
	// certificates: mirrors, authorities, client certificates. If empty, the
	// directories of containerd and Docker are used; see defaultHostsDirs.
	HostsDir string
}

// Config configures a Store.
type Config struct {
	// Client is the connection to containerd, with a default namespace. The Store
	// does not close it.
	Client   *containerd.Client
	Registry Registry
	// Snapshotter is the containerd snapshotter that unpacks; empty is "overlayfs".
	Snapshotter string
	// Policy; empty is Always.
	Policy Policy
	// Downloads is how many layers are fetched at once, over all images; 0 is 6.
	Downloads int
	// Budget is how many bytes the images in containerd's namespace may take, layers
	// and unpacked files together; 0 is no limit. Only images that shepherd pulled are
	// removed to keep to it.
	Budget int64
	// Needed lists the models that queued jobs and sheep need. Their images are not
	// removed to keep to the budget; if Needed fails, no image is. Nil means none.
	Needed func(context.Context) ([]job.Model, error)
	// Trust lists the digests that models' images must have. Nil trusts every image.
	Trust job.Trust
	// Observe is called with each response of the registry; it may be nil.
	Observe Observer
	// Log receives progress, and errors that are returned to no caller.
	Log *slog.Logger
}

// Store manages the images of one registry in one containerd. Its methods may be
// used from many goroutines.
type Store struct {
	*remote
	*disk
	puller  *puller
	budget  *budget
	policy  Policy
	trust   job.Trust
	log     *slog.Logger
	quiet   *containerdlog.Entry
	flights flights

	closing chan struct{} // closed by Close
	closed  sync.Once
	work    sync.WaitGroup // background work that outlives the call that started it
}

// disk is the local side of a Store: the images in containerd.
type disk struct {
	client      *containerd.Client
	snapshotter string
	endpoint    endpoint.Endpoint // its images are those of models
	log         *slog.Logger
}

// Image is an image that is in containerd and unpacked.
type Image struct {
	Model     job.Model
	Reference string
	// Target is the manifest or index that the reference points to.
	Target ocispec.Descriptor
	// Config is the image's own configuration. It comes from the registry and is not
	// validated.
	Config ocispec.Image
	// ChainID is the key of the image's snapshot in the configured snapshotter, the
	// parent of containers' snapshots.
	ChainID digest.Digest
	// Containerd is the image in containerd's client.
	Containerd containerd.Image
}

// New makes a Store. It sends no request; whether the registry can be reached shows
// when an image is requested.
func New(cfg Config) (*Store, error) {
	if cfg.Client == nil {
		return nil, errors.New("image: no containerd client")
	}
	policy, err := ParsePolicy(string(cfg.Policy))
	if err != nil {
		return nil, err
	}
	if cfg.Downloads <= 0 {
		cfg.Downloads = 6
	}
	if cfg.Observe == nil {
		cfg.Observe = ignoreObservation
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	rem, err := newRemote(cfg.Registry, cfg.Downloads, cfg.Observe, cfg.Log)
	if err != nil {
		return nil, err
	}
	dsk := &disk{client: cfg.Client, snapshotter: cmp.Or(cfg.Snapshotter, "overlayfs"), endpoint: rem.endpoint, log: cfg.Log}
	s := &Store{
		remote: rem, disk: dsk, policy: policy, trust: cfg.Trust, log: cfg.Log, quiet: quietLogger(),
		flights: flights{byKey: map[string]*flight{}},
		closing: make(chan struct{}),
	}
	s.budget = &budget{disk: dsk, limit: cfg.Budget, needed: cfg.Needed, flights: &s.flights}
	leases := &pullLeases{
		client: cfg.Client, log: cfg.Log, opened: time.Now(), ended: map[string]bool{},
		mayPass: func(err error) bool { return errdefs.IsUnavailable(rem.explanation(err)) },
	}
	s.puller = &puller{remote: rem, disk: dsk, leases: leases, budget: s.budget, parallel: cfg.Downloads, log: cfg.Log}
	return s, nil
}

// quietLogger returns a logger that discards everything, for containerd's client
// library: it would log errors that it also returns to standard error.
func quietLogger() *containerdlog.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.PanicLevel)
	return logrus.NewEntry(l)
}

// Close cancels pulls that are under way and waits until they have ended. It may be
// called twice.
func (s *Store) Close() error {
	s.flights.close()
	s.closed.Do(func() { close(s.closing) })
	s.work.Wait()
	s.transport.CloseIdleConnections()
	return nil
}

// Validate returns an error if m cannot name an image in this registry. It sends no
// request.
func (s *Store) Validate(m job.Model) error {
	_, err := referenceOf(s.remote.endpoint, m)
	return err
}

// Reference returns the full name of m's image.
func (s *Store) Reference(m job.Model) (string, error) {
	r, err := referenceOf(s.remote.endpoint, m)
	return r.String(), err
}

// Ensure pulls and unpacks the image of m, as far as the policy and what exists
// locally require it, and returns it. Concurrent calls for one image share a pull,
// which continues while one of them waits. observe is called with the progress at
// most five times a second, and not after Ensure has returned; it may be nil.
//
// The error's text says what is wrong and what to do. Its class is ErrUnavailable
// where a later attempt may succeed, else ErrNotFound (no such image),
// ErrPermissionDenied (credentials), ErrInvalidArgument (m cannot name an image),
// ErrResourceExhausted (disk full) or ErrFailedPrecondition (for example, an image that
// Config.Trust does not trust).
func (s *Store) Ensure(ctx context.Context, m job.Model, observe func(Progress)) (Image, error) {
	r, err := referenceOf(s.remote.endpoint, m)
	if err != nil {
		return Image{}, failf(errdefs.ErrInvalidArgument, "%v", err)
	}
	if observe == nil {
		observe = func(Progress) {}
	}
	if r.pin, err = s.trust.Check(m); err != nil {
		return Image{}, failf(errdefs.ErrFailedPrecondition, "%v", err)
	}
	img, err := s.flights.do(ctx, r.String(), observe, func(ctx context.Context, report func(Progress)) (Image, error) {
		ctx = containerdlog.WithLogger(ctx, s.quiet)
		img, err := s.ensure(ctx, r, report)
		return img, s.explain(ctx, r, err)
	})
	img.Model = m
	return img, err
}

// Local returns the image of m if it is on this machine, unpacked if it was not, and
// does not ask the registry. The error is of class ErrNotFound if the image is not on
// this machine, else as Ensure's.
func (s *Store) Local(ctx context.Context, m job.Model) (Image, error) {
	r, err := referenceOf(s.remote.endpoint, m)
	if err != nil {
		return Image{}, failf(errdefs.ErrInvalidArgument, "%v", err)
	}
	img, exists, err := s.local(containerdlog.WithLogger(ctx, s.quiet), r)
	if err == nil && !exists {
		err = failf(errdefs.ErrNotFound, "it is not on this machine")
	}
	img.Model = m
	return img, s.explain(ctx, r, err)
}

func (s *Store) ensure(ctx context.Context, r ref, report func(Progress)) (Image, error) {
	local, exists, err := s.local(ctx, r)
	if errdefs.IsUnavailable(err) && s.awaitContainerd(ctx) {
		local, exists, err = s.local(ctx, r)
	}
	if err != nil {
		return Image{}, err
	}
	switch {
	case !exists && s.policy == Never:
		return Image{}, failf(errdefs.ErrNotFound, "it is not on this machine and pull_policy is never; import it with ctr images import, or set another pull_policy")
	case exists && (s.policy != Always || r.digest != ""): // a digest always refers to the same image
		s.puller.leases.dropEndedPulls(ctx, r)
		return s.trusted(ctx, r, local)
	}

	policy := s.retries
	if exists {
		policy = brief.within(policy)
	}
	target, err := s.resolve(ctx, r, policy)
	switch {
	case err != nil && exists && ctx.Err() == nil && unreachable(err):
		s.log.WarnContext(ctx, "the registry cannot be asked for a newer image; the local one is used",
			"image", r.String(), "error", s.explanation(err).message)
		return s.trusted(ctx, r, local)
	case err != nil:
		return Image{}, err
	case r.pin != "" && target.Digest.String() != r.pin: // checked before anything is fetched
		return Image{}, distrust(r, target.Digest)
	case exists && local.Target.Digest == target.Digest:
		s.puller.leases.dropEndedPulls(ctx, r)
		return s.trusted(ctx, r, local)
	}
	if err := checkTarget(target); err != nil {
		return Image{}, err
	}
	if err := s.puller.pull(ctx, r, target, report); err != nil {
		return Image{}, err
	}
	img, exists, err := s.local(ctx, r)
	if err == nil && !exists {
		err = failf(errdefs.ErrUnavailable, "it was removed while it was pulled; try again")
	}
	if err != nil {
		return Image{}, err
	}
	if r.pin != "" && img.Target.Digest.String() != r.pin {
		return Image{}, distrust(r, img.Target.Digest)
	}
	s.work.Go(func() { s.trimAfter(r) })
	return img, nil
}

// trusted returns a local image and records its use. It fails if the image's digest
// is not the trusted one.
func (s *Store) trusted(ctx context.Context, r ref, local Image) (Image, error) {
	if r.pin != "" && local.Target.Digest.String() != r.pin {
		return Image{}, distrust(r, local.Target.Digest)
	}
	return local, s.touch(ctx, local)
}

func distrust(r ref, found digest.Digest) error {
	return failf(errdefs.ErrFailedPrecondition, "it is %s and not %s, which models.allow trusts: push the trusted image again, or trust this one", found, r.pin)
}

// restartTime is how long a restart of containerd may take before callers get an
// error.
const restartTime = 10 * time.Second

// awaitContainerd waits until containerd serves again, for at most restartTime, and
// reports whether it does.
func (s *disk) awaitContainerd(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	serving, err := s.client.IsServing(ctx)
	return err == nil && serving
}

// local looks an image up in containerd, unpacks it if it is not unpacked, and reports
// whether it exists. An image with missing content counts as not existing.
func (s *disk) local(ctx context.Context, r ref) (Image, bool, error) {
	found, err := s.client.GetImage(ctx, r.String())
	if errdefs.IsNotFound(err) {
		return Image{}, false, nil
	}
	if err != nil {
		return Image{}, false, err
	}
	unpacked, err := found.IsUnpacked(ctx, s.snapshotter)
	if err == nil && !unpacked {
		for range 3 { // a call that fails because of a directory in the way removes it
			if err = found.Unpack(ctx, s.snapshotter); !containerderr.SnapshotInTheWay(err) {
				break
			}
		}
	}
	if errdefs.IsNotFound(err) {
		return Image{}, false, nil // some of its content is missing
	}
	if err != nil {
		return Image{}, false, err
	}
	img := Image{Reference: r.String(), Target: found.Target(), Containerd: found}
	if img.Config, err = readConfig(ctx, found); err != nil {
		return Image{}, false, err
	}
	img.ChainID = identity.ChainID(img.Config.RootFS.DiffIDs)
	return img, true, nil
}

// maxDocument is the largest manifest or configuration, in bytes, that is read into
// memory.
const maxDocument = 8 << 20

func readConfig(ctx context.Context, img containerd.Image) (ocispec.Image, error) {
	var config ocispec.Image
	desc, err := img.Config(ctx)
	if err != nil {
		return config, err
	}
	if desc.Size > maxDocument {
		return config, failf(errdefs.ErrFailedPrecondition, "its configuration has %d bytes, at most %d are read", desc.Size, maxDocument)
	}
	data, err := content.ReadBlob(ctx, img.ContentStore(), desc)
	if err != nil {
		return config, err
	}
	return parseConfig(data)
}

// The labels of images. Images with labelPulled may be removed to keep to the budget;
// others belong to an administrator.
const (
	labelPulled   = "io.shepherd.image.pulled"
	labelLastUsed = "io.shepherd.image.last-used" // RFC 3339, UTC
)

// touch records that an image was used now.
func (s *disk) touch(ctx context.Context, img Image) error {
	_, err := s.client.ImageService().Update(ctx, images.Image{
		Name:   img.Reference,
		Target: img.Target,
		Labels: map[string]string{labelLastUsed: now()},
	}, "labels."+labelLastUsed)
	if errdefs.IsNotFound(err) {
		return failf(errdefs.ErrUnavailable, "it was removed just now; try again")
	}
	return err
}

func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }
