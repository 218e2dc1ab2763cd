package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/iterait/shepherd/internal/systemd"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/shepherd"
)

// reportEvery is the time between two reports to the service manager.
const reportEvery = 5 * time.Second

// reporter notifies the service manager: that the daemon is ready, a status line, and the
// watchdog's keep-alive while the core makes progress. The service manager restarts a daemon
// whose core is stuck.
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
		every = min(every, watchdog/4) // leave room for a delayed report
	}
	r.logError(r.manager.Ready())
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		checking, cancel := context.WithTimeout(ctx, max(watchdog/2, every))
		err := r.core.Alive(checking)
		if err == nil {
			r.logError(r.manager.Alive())
			r.logError(r.manager.Status(r.status(checking)))
		} else if ctx.Err() == nil {
			r.log.Error("The daemon is stuck; the watchdog of the service manager is not notified", "error", err)
			r.logError(r.manager.Status("Stuck: " + err.Error()))
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *reporter) logError(err error) {
	if err != nil {
		r.log.Warn("Cannot notify the service manager", "error", err)
	}
}

// status returns the status line.
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

// startReporting starts the reports to the service manager, and reloads on its SIGHUP, until
// stop is called.
func startReporting(r *reporter, configuration *reloader) (stop func()) {
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
