package main

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

// gpus are the machine's GPUs as the daemon has them: the program that asks the
// driver, which sheep has which, and who lends them.
type gpus struct {
	helper *gpu.Helper
	specs  cdi.Config
	keeper *keeper.Keeper
	start  func() // begins to watch the GPUs, once
	log    *slog.Logger

	mu       sync.Mutex
	requests []gpu.Request
	grants   map[string][]gpu.Grant
	later    map[string]*gpu.Problem // what may solve itself
	leases   map[string]*keeper.Lease
}

// openGPUs finds out which GPUs each sheep has. It starts to watch them when a
// sheep asks for some.
func openGPUs(ctx context.Context, cfg *config.Config, log *slog.Logger, stop *closers) (*gpus, error) {
	g := &gpus{helper: gpu.NewHelper(gpu.HelperConfig{}), log: log, leases: make(map[string]*keeper.Lease)}
	g.keeper = keeper.New(keeper.Config{
		Source: g.helper, Interval: cfg.GPU.Interval, Retest: cfg.GPU.Retest, Turn: cfg.GPU.Turn,
		MemoryWait: cfg.GPU.MemoryWait, Xids: xidRules(cfg.GPU.Xids), Log: log,
	})
	g.specs = cdi.Config{Dirs: cfg.GPU.CDIDirs, Own: filepath.Join(cfg.StateDir, "cdi"), Generate: g.helper.CDI}
	stop.add(g.keeper.Close)
	g.start = sync.OnceFunc(g.keeper.Start)
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

// granted is which GPUs each sheep has. It is not to be changed.
func (g *gpus) granted() map[string][]gpu.Grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grants
}

// allot decides which GPUs the sheep have. What they ask for and can never have
// is an error; what is not known now is asked for again by of.
func (g *gpus) allot(ctx context.Context, requests []gpu.Request) error {
	var m gpu.Machine
	for _, r := range requests {
		if r.Devices.Asks(gpu.NVIDIA) {
			inv, err := g.helper.Inventory(ctx)
			if err != nil {
				if ctx.Err() != nil {
					return err
				}
				g.log.Warn("It is not known which GPUs there are; sheep get those that they name", "error", err)
			}
			m.Inventory = inv
			break
		}
	}
	if slices.ContainsFunc(requests, func(r gpu.Request) bool { return !r.Devices.Empty() }) {
		var err error
		if m.CDI, err = cdi.New(g.specs).Devices(); err != nil {
			g.log.Warn("CDI specs cannot be read", "error", err)
		}
	}
	grants, problems := gpu.Allot(requests, m)
	later := make(map[string]*gpu.Problem)
	var wrong []error
	for _, p := range problems {
		if p.Later {
			later[p.Sheep] = p
		} else {
			wrong = append(wrong, p)
		}
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests, g.grants, g.later = requests, grants, later
	return nil
}

// of are a sheep's GPUs at present. The error has a class of errdefs.
func (g *gpus) of(ctx context.Context, sheep string) ([]gpu.Grant, error) {
	g.mu.Lock()
	grants, problem, requests := g.grants[sheep], g.later[sheep], g.requests
	g.mu.Unlock()
	if problem == nil {
		return grants, nil
	}
	if err := g.allot(ctx, requests); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if problem := g.later[sheep]; problem != nil {
		return nil, fmt.Errorf("%w: %w", problem, errdefs.ErrUnavailable)
	}
	if lease := g.leases[sheep]; lease != nil {
		lease.Assign(g.grants[sheep])
	}
	return g.grants[sheep], nil
}

// lend is the sheep's share of the GPUs; nil where it asks for none.
func (g *gpus) lend(s config.Sheep) shepherd.Devices {
	if s.Devices.Empty() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	lease := g.keeper.Lend(keeper.Share{Sheep: s.Name, Devices: g.grants[s.Name], Shared: s.Shared, Memory: int64(s.GPUMemory)})
	g.leases[s.Name] = lease
	return lease
}

// xidRules is what is done about Xids: as usual, but for what the configuration
// says.
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
