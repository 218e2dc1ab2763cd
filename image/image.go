// Package image turns the name and version of a model into an image that
// containerd has unpacked: it resolves the reference, authenticates, pulls with
// progress, and keeps what lies on the disk within a budget.
//
//	Ensure ─► local? ─► policy ─► resolve ─► pull (layers ‖ unpack) ─► Image
//	                      │                                             ▲
//	                      └── here already, or the registry is away ────┘
//
// The reference is REGISTRY/NAME:VERSION. Images, their layers and snapshots
// live in containerd, in the client's namespace; nothing is kept beside it. A
// pull holds a lease, so that containerd's garbage collection spares what is
// half done; what a broken pull has fetched is kept and resumed.
//
// A Store is made of remote, the registry and its hosts (hosts.go), disk, what
// containerd has (image.go, usage.go), puller, which brings images from one to the
// other (pull.go), pullLeases, and budget, which removes them again (usage.go).
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

// Policy says when the registry is asked.
type Policy string

// The policies.
const (
	// Always asks what the tag means each time; layers that are here are not
	// fetched again, and when the registry cannot be reached the local image
	// serves, with a warning.
	Always Policy = "always"
	// IfMissing asks only for images that are not here.
	IfMissing Policy = "if-missing"
	// Never asks nothing: images are brought by other means.
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

// Registry says where images come from.
type Registry struct {
	// URL is http://HOST[:PORT][/PATH] or https://…; without a scheme it is
	// plain HTTP.
	URL string
	// Username goes with Password or with the first line of PasswordFile.
	Username, Password, PasswordFile string
	// DockerConfig is a docker config.json to look for credentials in, where
	// there is no Username.
	DockerConfig string
	// CAFile holds certificates, in PEM form, of authorities to trust beside the
	// system's.
	CAFile string
	// HostsDir has directories of hosts.toml files, or of certificates, for
	// registries: mirrors, authorities, client certificates. Empty is where
	// containerd and Docker have them; see defaultHostsDirs.
	HostsDir string
}

// Config is what a Store is made of.
type Config struct {
	// Client is the connection to containerd, with a default namespace. It stays
	// the caller's.
	Client   *containerd.Client
	Registry Registry
	// Snapshotter unpacks; "overlayfs" where empty.
	Snapshotter string
	// Policy is Always where empty.
	Policy Policy
	// Downloads is how many layers are fetched at once, of all images together;
	// 6 where 0.
	Downloads int
	// Budget is how many bytes the images pulled by shepherd may take, layers and
	// unpacked files together; 0 means any number.
	Budget int64
	// Needed lists the models that queued jobs and sheep need. Their images are
	// not removed for the budget, and nothing is when it fails. Nil means none.
	Needed func(context.Context) ([]job.Model, error)
	// Trust says which digests models must have. Nil trusts every image.
	Trust job.Trust
	// Observe is told of the registry's answers; nobody where nil.
	Observe Observer
	// Log is told what has no caller to be returned to.
	Log *slog.Logger
}

// Store is the images of one registry in one containerd. Its methods may be
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
	work    sync.WaitGroup // what goes on after the call that began it
}

// disk is the images that are here: containerd's.
type disk struct {
	client      *containerd.Client
	snapshotter string
	endpoint    endpoint.Endpoint // whose images have models' names
	log         *slog.Logger
}

// Image is an image that is here and unpacked.
type Image struct {
	Model     job.Model
	Reference string
	// Target is what the reference means: a manifest or an index.
	Target ocispec.Descriptor
	// Config is the image's own configuration. It comes from outside and is not
	// checked.
	Config ocispec.Image
	// ChainID is the snapshot, in the configured snapshotter, that a container's
	// own is made on top of.
	ChainID digest.Digest
	// Containerd is the image as containerd's client knows it.
	Containerd containerd.Image
}

// New makes a Store. It asks nobody anything: that the registry is there is
// seen when an image is asked for.
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
		cfg.Observe = unobserved
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	from, err := newRemote(cfg.Registry, cfg.Downloads, cfg.Observe, cfg.Log)
	if err != nil {
		return nil, err
	}
	here := &disk{client: cfg.Client, snapshotter: cmp.Or(cfg.Snapshotter, "overlayfs"), endpoint: from.endpoint, log: cfg.Log}
	s := &Store{
		remote: from, disk: here, policy: policy, trust: cfg.Trust, log: cfg.Log, quiet: quiet(),
		flights: flights{byKey: map[string]*flight{}},
		closing: make(chan struct{}),
	}
	s.budget = &budget{disk: here, limit: cfg.Budget, needed: cfg.Needed, busy: s.flights.keys}
	leases := &pullLeases{
		client: cfg.Client, log: cfg.Log, opened: time.Now(), ended: map[string]bool{},
		passes: func(err error) bool { return errdefs.IsUnavailable(from.explanation(err)) },
	}
	s.puller = &puller{remote: from, disk: here, leases: leases, budget: s.budget, parallel: cfg.Downloads, log: cfg.Log}
	return s, nil
}

// quiet is the logger given to containerd's client library, which would write
// to standard error in a format of its own what is returned to us anyway.
func quiet() *containerdlog.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.PanicLevel)
	return logrus.NewEntry(l)
}

// Close ends what is under way and waits for it. It may be called twice.
func (s *Store) Close() error {
	s.flights.close()
	s.closed.Do(func() { close(s.closing) })
	s.work.Wait()
	s.transport.CloseIdleConnections()
	return nil
}

// Validate says whether m can be the name of an image in this registry, for
// refusing a job before it is queued.
func (s *Store) Validate(m job.Model) error {
	_, err := referenceOf(s.remote.endpoint, m)
	return err
}

// Reference is the full name of m's image.
func (s *Store) Reference(m job.Model) (string, error) {
	r, err := referenceOf(s.remote.endpoint, m)
	return r.String(), err
}

// Ensure makes the image of m be here, unpacked, and returns it. Calls for one
// image at the same time are one pull; it goes on for as long as one of them
// waits. observe is told the progress, at most five times a second, and not
// after Ensure has returned; it may be nil.
//
// The error says in its text what is wrong and what to do, and is of class
// ErrUnavailable when trying again later may help, else of ErrNotFound (no such
// image), ErrPermissionDenied (credentials), ErrInvalidArgument (m cannot name
// an image), ErrResourceExhausted (disk full) or ErrFailedPrecondition, which it
// is for an image that Config.Trust does not trust, too.
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

// Local returns the image of m as it is on this machine, unpacked, without
// asking the registry. The error is of class ErrNotFound where it is not here,
// else as with Ensure.
func (s *Store) Local(ctx context.Context, m job.Model) (Image, error) {
	r, err := referenceOf(s.remote.endpoint, m)
	if err != nil {
		return Image{}, failf(errdefs.ErrInvalidArgument, "%v", err)
	}
	img, here, err := s.local(containerdlog.WithLogger(ctx, s.quiet), r)
	if err == nil && !here {
		err = failf(errdefs.ErrNotFound, "it is not on this machine")
	}
	img.Model = m
	return img, s.explain(ctx, r, err)
}

func (s *Store) ensure(ctx context.Context, r ref, report func(Progress)) (Image, error) {
	local, here, err := s.local(ctx, r)
	if errdefs.IsUnavailable(err) && s.await(ctx) {
		local, here, err = s.local(ctx, r)
	}
	if err != nil {
		return Image{}, err
	}
	switch {
	case !here && s.policy == Never:
		return Image{}, failf(errdefs.ErrNotFound, "it is not here and pull_policy is never; bring it with ctr images import, or set another pull_policy")
	case here && (s.policy != Always || r.digest != ""): // what a digest means does not change
		s.puller.leases.dropEndedPulls(ctx, r)
		return s.trusted(ctx, r, local)
	}

	patience := s.retries
	if here {
		patience = brief.within(patience)
	}
	target, err := s.resolve(ctx, r, patience)
	switch {
	case err != nil && here && ctx.Err() == nil && unreachable(err):
		s.log.WarnContext(ctx, "the registry cannot be asked whether the image is still the newest; the local one serves",
			"image", r.String(), "error", s.explanation(err).message)
		return s.trusted(ctx, r, local)
	case err != nil:
		return Image{}, err
	case r.pin != "" && target.Digest.String() != r.pin: // before any of it is fetched
		return Image{}, distrust(r, target.Digest)
	case here && local.Target.Digest == target.Digest:
		s.puller.leases.dropEndedPulls(ctx, r)
		return s.trusted(ctx, r, local)
	}
	if err := checkTarget(target); err != nil {
		return Image{}, err
	}
	if err := s.puller.pull(ctx, r, target, report); err != nil {
		return Image{}, err
	}
	img, here, err := s.local(ctx, r)
	if err == nil && !here {
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

// trusted returns an image that is here, unless its digest is another than the
// one that is trusted.
func (s *Store) trusted(ctx context.Context, r ref, local Image) (Image, error) {
	if r.pin != "" && local.Target.Digest.String() != r.pin {
		return Image{}, distrust(r, local.Target.Digest)
	}
	return local, s.touch(ctx, local)
}

func distrust(r ref, found digest.Digest) error {
	return failf(errdefs.ErrFailedPrecondition, "it is %s and not %s, which models.allow trusts: push the trusted image again, or trust this one", found, r.pin)
}

// restartTime is how long a restart of containerd may take without anyone
// being told of it.
const restartTime = 10 * time.Second

// await waits for containerd to be back and says whether it is.
func (s *disk) await(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	serving, err := s.client.IsServing(ctx)
	return err == nil && serving
}

// local looks an image up and unpacks it where only its layers are here. One
// that is not complete counts as not here.
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
		for range 3 { // a directory in the way is removed by the call that fails of it
			if err = found.Unpack(ctx, s.snapshotter); !containerderr.SnapshotInTheWay(err) {
				break
			}
		}
	}
	if errdefs.IsNotFound(err) {
		return Image{}, false, nil // some of its content is gone
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

// maxDocument bounds the manifests and configurations that are read into
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

// The labels of images. Those that shepherd pulled may be removed for the
// budget; others are an administrator's.
const (
	labelPulled   = "io.shepherd.image.pulled"
	labelLastUsed = "io.shepherd.image.last-used" // RFC 3339, UTC
)

// touch notes that an image was used.
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
