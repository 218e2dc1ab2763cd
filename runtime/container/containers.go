package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/shimmed"
	"github.com/iterait/shepherd/shim"
)

// runnerPort is where a runner listens in its container.
const runnerPort = 9999

// containers is what is particular to a container sheep.
type containers struct {
	sheep   string
	options Options
	cfg     Config
	host    *host
	devices *devices
	log     *slog.Logger
	dataDir string
	lives   string // folder of the folders of lives

	mu    sync.Mutex
	image image.Image // of the model loaded last; its Model says which
	swept bool        // nothing is known to be left of earlier runners
}

var _ shimmed.Type = (*containers)(nil)

func (c *containers) snapshotter() string {
	return cmp.Or(c.options.Snapshotter, c.cfg.Snapshotter)
}

// Load makes the model's image be here, unpacked.
func (c *containers) Load(ctx context.Context, m job.Model, observe runtime.Observer) error {
	img, err := c.load(ctx, m, observe)
	if err != nil {
		return loadError(ctx, m, err)
	}
	c.mu.Lock()
	c.image = img
	swept := c.swept
	c.mu.Unlock()
	c.host.load(c.sheep, m)
	if swept {
		return nil
	}
	// What an earlier daemon did not come to, or this one without containerd.
	if err := c.host.sweep(ctx, c.cfg.Node, c.sheep, c.alive); err != nil {
		c.log.Warn("Containers of earlier runners could not be removed; it is tried again with the next model", "error", err)
		return nil
	}
	c.setSwept(true)
	return nil
}

func (c *containers) setSwept(swept bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.swept = swept
}

// keeps says that the last container is kept.
func (c *containers) keeps() bool {
	return c.options.AutoremoveContainers != nil && !*c.options.AutoremoveContainers
}

// store is the images as this sheep pulls and unpacks them.
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

// Prefetch pulls the model's image, as Load would, unless the images that stay take
// all of the budget. See runtime.Prefetcher.
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

// loadError is what Load returns where the model's image cannot be had.
func loadError(ctx context.Context, m job.Model, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &runtime.LoadError{Message: fmt.Sprintf("Cannot load model `%s:%s`, %v", m.Name, m.Version, err), Class: classOf(err)}
}

// classOf is the class of an error that ends a job or has it tried again.
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
// An empty one, and one that is none, is 0.
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

// Prepare says that the runner is a container.
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
