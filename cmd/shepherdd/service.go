package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/logging"
	"github.com/iterait/shepherd/internal/systemd"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
)

// newLogger makes the daemon's log. The level may be changed later.
func newLogger(to io.Writer, format string, level slog.Leveler) (*slog.Logger, func(), error) {
	f, isFile := to.(*os.File)
	if format == "journal" || format == "auto" && isFile && systemd.Journaled(f) {
		log, journal, err := logging.NewJournal(logging.JournalConfig{Level: level, Identifier: "shepherdd"})
		if err != nil {
			return nil, nil, err
		}
		return log, func() { _ = journal.Close() }, nil
	}
	return logging.New(to, logging.Config{Level: level, JSON: format == "json"}), func() {}, nil
}

// reportEvery is how often the service manager is shown how things are.
const reportEvery = 5 * time.Second

// reporter tells the service manager how the daemon is: that it is ready, one
// line for people, and, for as long as the core is found to work, that it is
// alive. A core that is stuck is not fed for, and so killed and started again.
type reporter struct {
	manager *systemd.Manager
	core    *shepherd.Shepherd
	ledger  ledger.Ledger
	log     *slog.Logger
}

// run reports until ctx ends.
func (r *reporter) run(ctx context.Context) {
	if !r.manager.Notifies() {
		return
	}
	every, watchdog := reportEvery, r.manager.Watchdog()
	if watchdog > 0 {
		every = min(every, watchdog/4) // one that comes late is not the end
	}
	r.tell(r.manager.Ready())
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		checking, cancel := context.WithTimeout(ctx, max(watchdog/2, every))
		err := r.core.Alive(checking)
		if err == nil {
			r.tell(r.manager.Alive())
			r.tell(r.manager.Status(r.status(checking)))
		} else if ctx.Err() == nil {
			r.log.Error("The daemon does not work as it should; the service manager is not told that it is alive", "error", err)
			r.tell(r.manager.Status("Stuck: " + err.Error()))
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *reporter) tell(err error) {
	if err != nil {
		r.log.Warn("The service manager cannot be told how the daemon is", "error", err)
	}
}

// status is the line for people.
func (r *reporter) status(ctx context.Context) string {
	counts, err := r.ledger.Count(ctx)
	if err != nil {
		return "The ledger cannot be read: " + err.Error()
	}
	sheep := r.core.Sheep(ctx)
	up, busy := 0, 0
	for _, s := range sheep {
		if s.Running {
			up++
		}
		if s.Job != "" {
			busy++
		}
	}
	return fmt.Sprintf("%d jobs queued, %d running; %d sheep, %d up, %d at work", counts[job.Queued], counts[job.Processing], len(sheep), up, busy)
}

// reload is what came of reading the configuration again.
type reload struct {
	Added    []string `json:"added"`
	Changed  []string `json:"changed"`
	Removed  []string `json:"removed"`
	InEffect []string `json:"in_effect"` // keys
	Restart  []string `json:"restart"`   // keys that need one
}

// String says it in lines.
func (r reload) String() string {
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

// live are the keys that a reload puts into effect, beside all of sheep.
var live = []string{"drain_timeout", "on_exit", "logging.level", "api.tokens", "api.rate_limit", "api.rate_burst"}

// reloader reads the configuration again and puts it into effect, as a whole or
// not at all.
type reloader struct {
	read  func() (*config.Config, error)
	env   *environment
	types map[string]runtime.Driver
	doors *doors
	core  *shepherd.Shepherd
	level *slog.LevelVar
	log   *slog.Logger

	started *config.Config // what keys have that need a restart

	doing sync.Mutex // one at a time

	mu      sync.Mutex
	current *config.Config
	members []shepherd.Member // made from current, in its order
}

// now is the configuration that was read last.
func (r *reloader) now() *config.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// reload is called by a signal or an administrator. With an error nothing has
// changed.
func (r *reloader) reload(ctx context.Context) (reload, error) {
	r.doing.Lock()
	defer r.doing.Unlock()
	did, err := r.apply(ctx)
	if err != nil {
		r.log.Error("The configuration is not put into effect", "error", err)
		return reload{}, err
	}
	r.log.Info("Configuration read again", "result", strings.ReplaceAll(strings.TrimSpace(did.String()), "\n", "; "))
	return did, nil
}

func (r *reloader) apply(ctx context.Context) (did reload, err error) {
	next, err := r.read()
	if err != nil {
		return reload{}, err
	}
	undo := closers{}
	defer func() {
		if err != nil {
			undo.close()
		}
	}()
	current := r.now()
	shifted, err := r.reallot(ctx, current, next, &undo)
	if err != nil {
		return reload{}, err
	}
	var members []shepherd.Member
	for _, s := range next.Sheep {
		was := slices.IndexFunc(current.Sheep, func(old config.Sheep) bool { return old.Name == s.Name })
		if was >= 0 && current.Sheep[was].Same(s) && !shifted(s.Name) {
			members = append(members, r.members[was])
			continue
		}
		m, err := newMember(r.env, r.types, s)
		if err != nil {
			return reload{}, fmt.Errorf("sheep %s: %w", s.Name, err)
		}
		undo.add(func() { giveBack(m) })
		members = append(members, m)
		if was >= 0 {
			did.Changed = append(did.Changed, s.Name)
		} else {
			did.Added = append(did.Added, s.Name)
		}
	}
	for _, old := range current.Sheep {
		if !slices.ContainsFunc(next.Sheep, func(s config.Sheep) bool { return s.Name == old.Name }) {
			did.Removed = append(did.Removed, old.Name)
		}
	}
	if err := r.doors.admit(r.rules(next)); err != nil {
		return reload{}, err
	}
	undo.add(func() { _ = r.doors.admit(r.rules(current)) })
	for _, key := range current.Changes(next) {
		if slices.Contains(live, key) {
			did.InEffect = append(did.InEffect, key)
		}
	}
	for _, key := range r.started.Changes(next) {
		if !slices.Contains(live, key) {
			did.Restart = append(did.Restart, key)
		}
	}
	if err := r.core.Apply(ctx, members, next.DrainTimeout); err != nil {
		return reload{}, err
	}
	for _, m := range r.members {
		if !slices.ContainsFunc(members, func(kept shepherd.Member) bool { return kept.Sheep == m.Sheep }) {
			giveBack(m)
		}
	}
	if asked := r.rules(current).AsksClients(); asked && !r.rules(next).AsksClients() {
		r.log.Warn(r.doors.serves(next.API).OpenWarning())
	}
	r.level.Set(next.Logging.SlogLevel())
	r.mu.Lock()
	r.current, r.members = next, members
	r.mu.Unlock()
	return did, nil
}

// rules are who gets in by a configuration, as far as that can change while the
// daemon is up.
func (r *reloader) rules(c *config.Config) config.API {
	rules := r.started.API
	rules.Tokens, rules.RateLimit, rules.RateBurst = c.API.Tokens, c.API.RateLimit, c.API.RateBurst
	return rules
}

// reallot decides anew which GPUs the sheep have, and says of which they are
// others than before.
func (r *reloader) reallot(ctx context.Context, current, next *config.Config, undo *closers) (shifted func(sheep string) bool, err error) {
	g := r.env.gpus
	before := g.granted()
	if err := g.allot(ctx, next.Requests()); err != nil {
		return nil, err
	}
	undo.add(func() { _ = g.allot(context.WithoutCancel(ctx), current.Requests()) })
	for _, request := range next.Requests() {
		if request.Devices.Asks(gpu.NVIDIA) {
			g.start()
			break
		}
	}
	after := g.granted()
	return func(sheep string) bool {
		had, has := before[sheep], after[sheep]
		return len(had) > 0 && len(has) > 0 && !slices.EqualFunc(had, has, func(a, b gpu.Grant) bool { return a.Device == b.Device })
	}, nil
}

// giveBack gives up what was lent to a sheep that is no more.
func giveBack(m shepherd.Member) {
	if lease, ok := m.Devices.(interface{ Close() }); ok {
		lease.Close()
	}
}

// run reloads at every signal, until ctx ends.
func (r *reloader) run(ctx context.Context, signals <-chan os.Signal, manager *systemd.Manager) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			_ = manager.Reloading()
			_, _ = r.reload(ctx) // it has logged what came of it
			_ = manager.Ready()
		}
	}
}

// tell begins to report to the service manager, and to reload when it sends
// SIGHUP. Both end when what it returns is called.
func tell(r *reporter, configuration *reloader) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	hangups := make(chan os.Signal, 1)
	if r.manager.Notifies() {
		signal.Notify(hangups, syscall.SIGHUP)
	}
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx) })
	running.Go(func() { configuration.run(ctx, hangups, r.manager) })
	return func() {
		signal.Stop(hangups)
		cancel()
		running.Wait()
	}
}

// firstLine reads a secret from its file.
func firstLine(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", fmt.Errorf("the first line of %s is empty", file)
	}
	return line, nil
}
