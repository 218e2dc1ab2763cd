package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/shimmed"
	"github.com/iterait/shepherd/shim"
)

// runnerPort is the TCP port on which a runner listens in its container.
const runnerPort = 9999

// containers is the part of a container sheep that differs from other sheep types.
type containers struct {
	sheep   string
	options Options
	cfg     Config
	host    *host
	devices *devices
	log     *slog.Logger
	dataDir string
	lives   string // directory with a directory for each life

	began time.Time // when this daemon began to have the sheep

	mu    sync.Mutex
	image image.Image // of the model loaded last; its Model says which
	swept bool        // sweep has succeeded late enough, and nothing has been left behind since
}

// settleTime is how long containerd may take for what a daemon that was killed has asked
// for: until then a sweep can miss it.
const settleTime = time.Minute

var _ shimmed.Type = (*containers)(nil)

func (c *containers) snapshotter() string {
	return cmp.Or(c.options.Snapshotter, c.cfg.Snapshotter)
}

// Load pulls and unpacks the model's image, as far as the pull policy and what is
// on the machine require it.
func (c *containers) Load(ctx context.Context, m job.Model, observe runtime.Observer) error {
	img, err := c.load(ctx, m, observe)
	if err != nil {
		return loadError(ctx, m, err)
	}
	c.mu.Lock()
	c.image = img
	swept := c.swept
	c.mu.Unlock()
	c.host.setLoaded(c.sheep, m)
	if swept {
		return nil
	}
	// An earlier daemon may have been killed before it removed its containers, and
	// this one may have been unable to reach containerd.
	if err := c.host.sweep(ctx, c.cfg.Node, c.sheep, c.alive); err != nil {
		c.log.Warn("Containers of earlier runners could not be removed; the next load of a model tries again", "error", err)
		return nil
	}
	c.setSwept(time.Since(c.began) > settleTime)
	return nil
}

func (c *containers) setSwept(swept bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.swept = swept
}

// keeps reports whether the last run's container is kept.
func (c *containers) keeps() bool {
	return c.options.AutoremoveContainers != nil && !*c.options.AutoremoveContainers
}

// store returns the image store with this sheep's pull policy and snapshotter.
func (c *containers) store(ctx context.Context) (*image.Store, error) {
	policy, err := image.ParsePolicy(c.options.PullPolicy)
	if err != nil {
		return nil, err
	}
	return c.host.store(ctx, storeKey{c.snapshotter(), policy})
}

func (c *containers) load(ctx context.Context, m job.Model, observe runtime.Observer) (image.Image, error) {
	store, err := c.store(ctx)
	if err != nil {
		return image.Image{}, err
	}
	return store.Ensure(ctx, m, func(p image.Progress) {
		stage := runtime.Pulling
		if p.Phase == image.Unpacking {
			stage = runtime.Unpacking
		}
		observe(runtime.Event{Stage: stage, Text: p.String(), Done: p.Done, Total: p.Total, Rate: p.Rate})
	})
}

// Prefetch pulls the model's image, as Load would, unless the images that may not
// be removed take the whole budget. See runtime.Prefetcher.
func (c *containers) Prefetch(ctx context.Context, m job.Model, observe runtime.Observer) error {
	store, err := c.store(ctx)
	if err != nil {
		return loadError(ctx, m, err)
	}
	full, err := store.Full(ctx)
	if !full && err == nil {
		_, err = c.load(ctx, m, observe)
	}
	if err != nil {
		return loadError(ctx, m, err)
	}
	return nil
}

// loadError is Load's error when the model's image cannot be pulled or unpacked.
func loadError(ctx context.Context, m job.Model, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &runtime.LoadError{Message: fmt.Sprintf("Cannot load model `%s:%s`, %v", m.Name, m.Version, err), Class: classOf(err)}
}

// classOf returns the class of err, by which the core decides whether the job fails
// or is tried again.
func classOf(err error) error {
	for _, class := range []error{
		errdefs.ErrUnavailable, errdefs.ErrResourceExhausted, errdefs.ErrNotFound, errdefs.ErrPermissionDenied,
		errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition,
	} {
		if errors.Is(err, class) {
			return class
		}
	}
	return errdefs.ErrUnknown
}

// stopSignal reads an image's STOPSIGNAL: a number, or a name with or without SIG.
// It is 0 for an empty one, and for one that is not a signal, with an error.
func stopSignal(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	sig, err := signal.ParseSignal(s)
	if err != nil || sig <= 0 || sig > 64 {
		return 0, fmt.Errorf("%.100q is not a signal", s)
	}
	return int(sig), nil
}

// Prepare fills in the spec's port and container. See shimmed.Type.
func (c *containers) Prepare(spec *shim.Spec) error {
	c.mu.Lock()
	wanted := c.image.Config.Config.StopSignal
	c.mu.Unlock()
	stop, err := stopSignal(wanted)
	if err != nil {
		c.log.Warn("The image's STOPSIGNAL is not a signal; SIGTERM is sent instead", "signal", wanted, "model", spec.Model.String())
	}
	spec.Port = runnerPort
	spec.Container = &shim.Container{
		ID:          containerID(c.sheep, spec.Life),
		Snapshotter: c.snapshotter(),
		OwnNetwork:  oci.Network(c.options.Network) != oci.NetworkHost,
		CNI:         oci.Network(c.options.Network) == oci.NetworkCNI,
		StopSignal:  stop,
	}
	return nil
}
