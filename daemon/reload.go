package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/systemd"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
)

// ReloadResult lists what a reload has changed.
type ReloadResult struct {
	Added    []string `json:"added"`
	Changed  []string `json:"changed"`
	Removed  []string `json:"removed"`
	InEffect []string `json:"in_effect"` // keys
	Restart  []string `json:"restart"`   // keys that take effect after a restart
}

// String formats the result for people.
func (r ReloadResult) String() string {
	var b strings.Builder
	for _, what := range []struct {
		says  string
		names []string
	}{
		{"sheep added", r.Added}, {"sheep changed", r.Changed}, {"sheep removed", r.Removed},
		{"now in effect", r.InEffect}, {"needs a restart of the daemon", r.Restart},
	} {
		if len(what.names) > 0 {
			fmt.Fprintf(&b, "%s: %s\n", what.says, strings.Join(what.names, ", "))
		}
	}
	if b.Len() == 0 {
		return "nothing has changed\n"
	}
	return b.String()
}

// liveKeys returns the keys that a reload applies, besides all of sheep.
func liveKeys() []string {
	return []string{
		"drain_timeout", "on_exit", "logging.level", "api.tokens", "api.rate_limit", "api.rate_burst",
		"api.cors_origins", "api.hosts", "api.tls.clients",
		"api.trusted_proxies", "api.trusted_proxies.addresses", "api.trusted_proxies.user_header", "api.trusted_proxies.scopes", "api.trusted_proxies.users",
	}
}

// reloader reads the configuration again and applies all of it or, with an error, nothing.
type reloader struct {
	read      func() (*config.Config, error)
	env       *environment
	drivers   map[string]runtime.Driver
	listeners *listeners
	core      *shepherd.Shepherd
	level     *slog.LevelVar
	log       *slog.Logger

	started *config.Config // has the values in effect of keys that need a restart

	reloading sync.Mutex // held during a reload

	mu      sync.Mutex
	current *config.Config
	members []shepherd.Member // made from current, in its order
}

// now returns the configuration in effect.
func (r *reloader) now() *config.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// reload reads and applies the configuration. With an error nothing has changed.
func (r *reloader) reload(ctx context.Context) (ReloadResult, error) {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	result, err := r.apply(ctx)
	if err != nil {
		r.log.Error("Cannot apply the configuration; nothing has changed", "error", err)
		return ReloadResult{}, err
	}
	r.log.Info("Configuration reloaded", "result", strings.ReplaceAll(strings.TrimSpace(result.String()), "\n", "; "))
	return result, nil
}

func (r *reloader) apply(ctx context.Context) (result ReloadResult, err error) {
	next, err := r.read()
	if err != nil {
		return ReloadResult{}, err
	}
	undo := closers{}
	defer func() {
		if err != nil {
			undo.close()
		}
	}()
	current := r.now()
	regranted, err := r.reallot(ctx, next, &undo)
	if err != nil {
		return ReloadResult{}, err
	}
	var members []shepherd.Member
	for _, s := range next.Sheep {
		was := slices.IndexFunc(current.Sheep, func(old config.Sheep) bool { return old.Name == s.Name })
		if was >= 0 && current.Sheep[was].Same(s) && !regranted(s.Name) {
			members = append(members, r.members[was])
			continue
		}
		m, err := newMember(r.env, r.drivers, s)
		if err != nil {
			return ReloadResult{}, fmt.Errorf("sheep %s: %w", s.Name, err)
		}
		undo.add(func() { releaseDevices(m) })
		members = append(members, m)
		if was >= 0 {
			result.Changed = append(result.Changed, s.Name)
		} else {
			result.Added = append(result.Added, s.Name)
		}
	}
	for _, old := range current.Sheep {
		if !slices.ContainsFunc(next.Sheep, func(s config.Sheep) bool { return s.Name == old.Name }) {
			result.Removed = append(result.Removed, old.Name)
		}
	}
	if err := r.listeners.setAccess(r.rules(next)); err != nil {
		return ReloadResult{}, err
	}
	undo.add(func() { _ = r.listeners.setAccess(r.rules(current)) })
	r.env.setPreloads(next)
	undo.add(func() { r.env.setPreloads(current) })
	for _, key := range current.Changes(next) {
		if slices.Contains(liveKeys(), key) {
			result.InEffect = append(result.InEffect, key)
		}
	}
	for _, key := range r.started.Changes(next) {
		if !slices.Contains(liveKeys(), key) {
			result.Restart = append(result.Restart, key)
		}
	}
	if err := r.core.Apply(ctx, members, next.DrainTimeout); err != nil {
		return ReloadResult{}, err
	}
	for _, m := range r.members {
		if !slices.ContainsFunc(members, func(kept shepherd.Member) bool { return kept.Sheep == m.Sheep }) {
			releaseDevices(m)
		}
	}
	for _, warning := range r.listeners.serves(r.rules(next)).Warnings() {
		if !slices.Contains(r.listeners.serves(r.rules(current)).Warnings(), warning) {
			r.log.Warn(warning)
		}
	}
	logConfigWarnings(next, r.log)
	r.level.Set(next.Logging.SlogLevel())
	r.mu.Lock()
	r.current, r.members = next, members
	r.mu.Unlock()
	return result, nil
}

// rules returns the access rules of a configuration as far as a reload can change them.
func (r *reloader) rules(c *config.Config) config.API {
	rules := r.started.API
	rules.Tokens, rules.RateLimit, rules.RateBurst = c.API.Tokens, c.API.RateLimit, c.API.RateBurst
	rules.CORSOrigins, rules.Hosts, rules.TrustedProxies = c.API.CORSOrigins, c.API.Hosts, c.API.TrustedProxies
	if rules.TLS != nil && c.API.TLS != nil {
		tls := *rules.TLS
		tls.Clients = c.API.TLS.Clients
		rules.TLS = &tls
	}
	return rules
}

// reallot assigns GPUs to the sheep again. regranted reports whether a sheep gets other GPUs
// than before.
func (r *reloader) reallot(ctx context.Context, next *config.Config, undo *closers) (regranted func(sheep string) bool, err error) {
	g := r.env.gpus
	before, restore := g.allGrants(), g.undo()
	if err := g.allot(ctx, next.Requests()); err != nil {
		return nil, err
	}
	undo.add(restore)
	for _, request := range next.Requests() {
		if request.Devices.Asks(gpu.NVIDIA) {
			g.start()
			break
		}
	}
	after := g.allGrants()
	return func(sheep string) bool {
		had, has := before[sheep], after[sheep]
		return len(had) > 0 && len(has) > 0 && !slices.EqualFunc(had, has, func(a, b gpu.Grant) bool { return a.Device == b.Device })
	}, nil
}

// releaseDevices ends the GPU lease of a removed sheep.
func releaseDevices(m shepherd.Member) {
	if lease, ok := m.Devices.(interface{ Close() }); ok {
		lease.Close()
	}
}

// run reloads on every signal until ctx ends.
func (r *reloader) run(ctx context.Context, signals <-chan os.Signal, manager *systemd.Manager) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			_ = manager.Reloading()
			_, _ = r.reload(ctx) // reload logs the result
			_ = manager.Ready()
		}
	}
}
