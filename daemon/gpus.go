package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/cdi"
	"github.com/iterait/shepherd/gpu/keeper"
	"github.com/iterait/shepherd/internal/durable"
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
	kept   string // the file with the GPUs granted by count

	allotting sync.Mutex     // held by allot
	inventory *gpu.Inventory // the last one; nil for none

	mu       sync.Mutex
	requests []gpu.Request
	grants   map[string][]gpu.Grant
	counted  map[string][]string     // the names of the GPUs granted by count last, by sheep
	pending  map[string]*gpu.Problem // requests that may be met later
	leases   map[string]*keeper.Lease
}

// openGPUs assigns GPUs to the sheep, and starts monitoring them if a sheep requests any.
func openGPUs(ctx context.Context, cfg *config.Config, log *slog.Logger, stop *closers) (*gpus, error) {
	g := &gpus{helper: gpu.NewHelper(gpu.HelperConfig{}), log: log, leases: make(map[string]*keeper.Lease), kept: filepath.Join(cfg.StateDir, "gpus.json")}
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
	g.counted = g.readCounted()
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
// cannot be met yet is retried by grantsOf. A GPU that the machine lacks is an error only if
// the request for it is new at a reload: otherwise it may have failed, and the sheep with other
// GPUs have to work. Sheep keep the GPUs that they were granted by
// count, also over a restart of the daemon: their runners may have outlived it.
func (g *gpus) allot(ctx context.Context, requests []gpu.Request) error {
	if err := g.allotAll(ctx, requests, func(string) []gpu.Grant { return nil }); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, sheep := range slices.Sorted(maps.Keys(g.pending)) {
		g.log.Error("A sheep cannot have its devices and takes no jobs until it has them", "sheep", sheep, "error", g.pending[sheep].Text)
	}
	return nil
}

// waits reports whether a sheep waits for what it cannot have now. The alternative is that the
// daemon does not start, or that the reload fails.
func (g *gpus) waits(requests []gpu.Request, p *gpu.Problem) bool {
	if started := g.grants != nil; p.Later || !p.Absent || !started {
		return p.Later || p.Absent
	}
	of := func(requests []gpu.Request) gpu.Devices {
		i := slices.IndexFunc(requests, func(r gpu.Request) bool { return r.Sheep == p.Sheep })
		if i < 0 {
			return gpu.Devices{}
		}
		return requests[i].Devices
	}
	before, now := of(g.requests), of(requests)
	return before.Count == now.Count && slices.Equal(before.List, now.List)
}

// allotPending assigns GPUs to the sheep that wait for theirs. Other sheep keep their GPUs,
// which their leases have, even one that is lost.
func (g *gpus) allotPending(ctx context.Context, requests []gpu.Request) error {
	return g.allotAll(ctx, requests, func(sheep string) []gpu.Grant {
		g.mu.Lock()
		defer g.mu.Unlock()
		unknown := func(grant gpu.Grant) bool { return grant.Device.Kind == gpu.NVIDIA && grant.GPU == nil }
		if grants := g.grants[sheep]; g.pending[sheep] == nil && !slices.ContainsFunc(grants, unknown) {
			return grants
		}
		return nil
	})
}

func (g *gpus) allotAll(ctx context.Context, requests []gpu.Request, fixed func(sheep string) []gpu.Grant) error {
	g.allotting.Lock()
	defer g.allotting.Unlock()
	m, err := g.machine(ctx, requests)
	if err != nil {
		return err
	}
	counted := make(map[string][]string)
	g.mu.Lock()
	maps.Copy(counted, g.counted)
	g.mu.Unlock()
	requests = slices.Clone(requests)
	for i, r := range requests {
		requests[i].Had, requests[i].Fixed = counted[r.Sheep], fixed(r.Sheep)
	}
	grants, problems := gpu.Allot(requests, m)
	pending := make(map[string]*gpu.Problem)
	var wrong []error
	for _, p := range problems {
		if g.waits(requests, p) {
			pending[p.Sheep] = p
		} else {
			wrong = append(wrong, p)
		}
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	for _, r := range requests {
		if r.Devices.Count == 0 {
			delete(counted, r.Sheep)
		} else if granted := grants[r.Sheep]; len(granted) > 0 {
			counted[r.Sheep] = nil
			for _, grant := range granted {
				counted[r.Sheep] = append(counted[r.Sheep], grant.Device.Name)
			}
		}
	}
	maps.DeleteFunc(counted, func(sheep string, _ []string) bool {
		return !slices.ContainsFunc(requests, func(r gpu.Request) bool { return r.Sheep == sheep })
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keep(counted)
	for sheep := range g.pending { // these have a lease without devices
		if lease := g.leases[sheep]; lease != nil && pending[sheep] == nil {
			lease.Assign(grants[sheep])
		}
	}
	g.requests, g.grants, g.pending = requests, grants, pending
	return nil
}

// undo returns a function that restores the present assignment and leases.
func (g *gpus) undo() func() {
	g.mu.Lock()
	defer g.mu.Unlock()
	requests, grants, counted, pending, leases := g.requests, g.grants, g.counted, g.pending, maps.Clone(g.leases)
	return func() {
		g.allotting.Lock()
		defer g.allotting.Unlock()
		g.mu.Lock()
		defer g.mu.Unlock()
		g.keep(counted)
		g.requests, g.grants, g.pending, g.leases = requests, grants, pending, leases
	}
}

// machine returns the machine's devices as far as the requests need them. While the driver
// does not answer, its GPUs are taken to be those of before.
func (g *gpus) machine(ctx context.Context, requests []gpu.Request) (m gpu.Machine, err error) {
	if slices.ContainsFunc(requests, func(r gpu.Request) bool { return r.Devices.Asks(gpu.NVIDIA) }) {
		inv, err := g.helper.Inventory(ctx)
		switch {
		case err == nil:
			g.inventory = inv
		case ctx.Err() != nil:
			return m, err
		case g.inventory != nil:
			g.log.Warn("Cannot list the GPUs of this machine; they are taken to be the same as before", "error", err)
		default:
			g.log.Warn("Cannot list the GPUs of this machine; sheep get the devices they name", "error", err)
		}
		m.Inventory = g.inventory
	}
	if slices.ContainsFunc(requests, func(r gpu.Request) bool { return !r.Devices.Empty() }) {
		if m.CDI, err = cdi.New(g.specs).Devices(); err != nil {
			m.CDITrouble = err.Error()
			g.log.Warn("Cannot use the CDI specs", "error", err)
		}
	}
	return m, nil
}

// readCounted reads the names of the GPUs that were granted by count last.
func (g *gpus) readCounted() (counted map[string][]string) {
	text, err := os.ReadFile(g.kept)
	if err == nil {
		err = json.Unmarshal(text, &counted)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.log.Warn("Cannot read which GPUs were given to sheep by count; they may get others", "error", err)
		return nil
	}
	return counted
}

// keep sets counted, and persists it if it has changed. The caller holds g.mu.
func (g *gpus) keep(counted map[string][]string) {
	if maps.EqualFunc(counted, g.counted, slices.Equal) {
		return
	}
	g.counted = counted
	text, err := json.Marshal(counted)
	if err == nil {
		err = durable.WriteFile(g.kept, append(text, '\n'), 0o600)
	}
	if err != nil {
		g.log.Warn("Cannot record which GPUs were given to sheep by count; after a restart of the daemon they may get others", "error", err)
	}
}

// grantsOf returns a sheep's current GPUs. The error has a class of errdefs.
func (g *gpus) grantsOf(ctx context.Context, sheep string) ([]gpu.Grant, error) {
	g.mu.Lock()
	grants, problem, requests := g.grants[sheep], g.pending[sheep], g.requests
	g.mu.Unlock()
	if problem == nil {
		return grants, nil
	}
	if err := g.allotPending(ctx, requests); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if problem := g.pending[sheep]; problem != nil {
		return nil, fmt.Errorf("%w: %w", problem, errdefs.ErrUnavailable)
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
