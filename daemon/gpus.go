package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/cdi"
	"github.com/iterait/shepherd/gpu/keeper"
	"github.com/iterait/shepherd/shepherd"
)

// gpus are the machine's GPUs: the helper that queries the driver, the grants of each sheep,
// and the keeper that leases them.
type gpus struct {
	helper *gpu.Helper
	specs  cdi.Config
	keeper *keeper.Keeper
	start  func() // starts monitoring the GPUs, at most once
	log    *slog.Logger

	mu       sync.Mutex
	requests []gpu.Request
	grants   map[string][]gpu.Grant
	pending  map[string]*gpu.Problem // requests that may be met later
	leases   map[string]*keeper.Lease
}

// openGPUs assigns GPUs to the sheep, and starts monitoring them if a sheep requests any.
func openGPUs(ctx context.Context, cfg *config.Config, log *slog.Logger, stop *closers) (*gpus, error) {
	g := &gpus{helper: gpu.NewHelper(gpu.HelperConfig{}), log: log, leases: make(map[string]*keeper.Lease)}
	g.keeper = keeper.New(keeper.Config{
		Source: g.helper, Interval: cfg.GPU.Interval, Retest: cfg.GPU.Retest, Turn: cfg.GPU.Turn,
		MemoryWait: cfg.GPU.MemoryWait, Xids: xidRules(cfg.GPU.Xids), Log: log,
	})
	g.specs = cdi.Config{Dirs: cfg.GPU.CDIDirs, Own: filepath.Join(cfg.StateDir, "cdi"), Generate: g.helper.CDI}
	stop.add(g.keeper.Close)
	g.start = sync.OnceFunc(g.keeper.Start)
	for _, warning := range cfg.DeviceWarnings() {
		log.Warn(warning)
	}
	if err := g.allot(ctx, cfg.Requests()); err != nil {
		return nil, err
	}
	for _, r := range cfg.Requests() {
		if r.Devices.Asks(gpu.NVIDIA) {
			g.start()
			break
		}
	}
	return g, nil
}

// allGrants returns the GPUs of each sheep. The caller must not change the map.
func (g *gpus) allGrants() map[string][]gpu.Grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grants
}

// allot assigns GPUs to the sheep. A request that can never be met is an error; one that
// cannot be met yet is retried by grantsOf.
func (g *gpus) allot(ctx context.Context, requests []gpu.Request) error {
	var m gpu.Machine
	for _, r := range requests {
		if r.Devices.Asks(gpu.NVIDIA) {
			inv, err := g.helper.Inventory(ctx)
			if err != nil {
				if ctx.Err() != nil {
					return err
				}
				g.log.Warn("Cannot list the GPUs of this machine; sheep get the devices they name", "error", err)
			}
			m.Inventory = inv
			break
		}
	}
	if slices.ContainsFunc(requests, func(r gpu.Request) bool { return !r.Devices.Empty() }) {
		var err error
		if m.CDI, err = cdi.New(g.specs).Devices(); err != nil {
			m.CDITrouble = err.Error()
			g.log.Warn("Cannot use the CDI specs", "error", err)
		}
	}
	grants, problems := gpu.Allot(requests, m)
	pending := make(map[string]*gpu.Problem)
	var wrong []error
	for _, p := range problems {
		if p.Later {
			pending[p.Sheep] = p
		} else {
			wrong = append(wrong, p)
		}
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests, g.grants, g.pending = requests, grants, pending
	return nil
}

// grantsOf returns a sheep's current GPUs. The error has a class of errdefs.
func (g *gpus) grantsOf(ctx context.Context, sheep string) ([]gpu.Grant, error) {
	g.mu.Lock()
	grants, problem, requests := g.grants[sheep], g.pending[sheep], g.requests
	g.mu.Unlock()
	if problem == nil {
		return grants, nil
	}
	if err := g.allot(ctx, requests); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if problem := g.pending[sheep]; problem != nil {
		return nil, fmt.Errorf("%w: %w", problem, errdefs.ErrUnavailable)
	}
	if lease := g.leases[sheep]; lease != nil {
		lease.Assign(g.grants[sheep])
	}
	return g.grants[sheep], nil
}

// lease returns the sheep's lease on its GPUs; nil if it requests none.
func (g *gpus) lease(s config.Sheep) shepherd.Devices {
	if s.Devices.Empty() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	lease := g.keeper.Lend(keeper.Share{Sheep: s.Name, Devices: g.grants[s.Name], Shared: s.Shared, Memory: int64(s.GPUMemory)})
	g.leases[s.Name] = lease
	return lease
}

// xidRules returns the keeper's default rules for Xids with the configuration's overrides.
func xidRules(overrides map[string]config.Xid) map[uint64]keeper.XidRule {
	rules := keeper.DefaultXids()
	for code, x := range overrides {
		n, err := strconv.ParseUint(code, 10, 64)
		if err != nil {
			continue // the configuration was checked
		}
		rule := keeper.XidRule{Action: keeper.Action(x.Action), Text: x.Text}
		if rule.Text == "" {
			rule.Text = rules[n].Text
		}
		if rule.Text == "" {
			rule.Text = "as configured in gpu.xids"
		}
		rules[n] = rule
	}
	return rules
}
