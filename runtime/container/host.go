package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/oci"
)

// host is the connection to this machine's containerd and the image stores in it.
// All container sheep share it.
type host struct {
	cfg      Config
	networks networks
	machine  func() machine // probed when first needed

	mu     sync.Mutex
	client *containerd.Client // nil until first used
	stores map[storeKey]*image.Store
	loaded map[string]job.Model // by sheep
	closed bool
	// accounts caches results of containers.account.
	accounts map[accountKey]oci.Account
}

// storeKey is the part of a store's configuration in which sheep may differ.
type storeKey struct {
	snapshotter string
	policy      image.Policy
}

func newHost(cfg Config) *host {
	return &host{
		cfg: cfg, networks: networks{cfg.CNIConfDir, cfg.CNIPluginDirs},
		machine: sync.OnceValue(func() machine { return probeMachine(cfg.Log) }),
		stores:  make(map[storeKey]*image.Store), accounts: make(map[accountKey]oci.Account), loaded: make(map[string]job.Model),
	}
}

// connect returns the connection to containerd, and makes it on the first call. Its
// error is one line that tells the operator what to do.
func (h *host) connect(ctx context.Context) (*containerd.Client, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.connectLocked(ctx)
}

// connectLocked is connect for callers that hold h.mu.
func (h *host) connectLocked(ctx context.Context) (*containerd.Client, error) {
	switch {
	case h.closed:
		return nil, fmt.Errorf("the daemon is stopping: %w", errdefs.ErrUnavailable)
	case h.client != nil:
		return h.client, nil
	}
	client, err := image.Connect(ctx, h.cfg.Address, h.cfg.Namespace, h.cfg.ObserveContainerd)
	if err != nil {
		return nil, err
	}
	h.client = client
	return client, nil
}

// store returns the image store for key, and makes it on the first call.
func (h *host) store(ctx context.Context, key storeKey) (*image.Store, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.stores[key]; s != nil {
		return s, nil
	}
	client, err := h.connectLocked(ctx)
	if err != nil {
		return nil, err
	}
	s, err := image.New(image.Config{
		Client: client, Registry: h.cfg.Registry, Snapshotter: key.snapshotter, Policy: key.policy,
		Budget: h.cfg.ImageBudget, Needed: h.needed, Trust: h.cfg.Trust, Observe: h.cfg.ObserveRegistry, Log: h.cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	h.stores[key] = s
	return s, nil
}

// setLoaded records which model a sheep has loaded, so that its image is needed.
func (h *host) setLoaded(sheep string, m job.Model) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.loaded[sheep] = m
}

// needed lists the models whose images must not be removed to free space.
func (h *host) needed(ctx context.Context) ([]job.Model, error) {
	var list []job.Model
	if h.cfg.Needed != nil {
		var err error
		if list, err = h.cfg.Needed(ctx); err != nil {
			return nil, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.AppendSeq(list, maps.Values(h.loaded)), nil
}

func (h *host) close() error {
	h.mu.Lock()
	stores, client := h.stores, h.client
	h.stores, h.client, h.closed = nil, nil, true
	h.mu.Unlock()
	var errs []error
	for _, s := range stores { // without h.mu: a store waits for work that may call needed
		errs = append(errs, s.Close())
	}
	if client != nil {
		errs = append(errs, client.Close())
	}
	return errors.Join(errs...)
}
