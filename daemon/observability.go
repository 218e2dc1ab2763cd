package daemon

import (
	"context"
	"errors"
	"log/slog"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/container"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/tracing"
)

// telemetry holds the metrics and, if the environment enables it, tracing.
type telemetry struct {
	metrics  *metrics.Metrics
	observer shepherd.Observer
	tracer   shepherd.Tracer // nil: only clients' trace contexts are passed on
}

// newTelemetry sets up metrics and, if the environment enables it, tracing.
func newTelemetry(ctx context.Context, version, commit string, log *slog.Logger, stop *closers) (*telemetry, error) {
	t := &telemetry{metrics: metrics.New(version, commit)}
	t.observer = t.metrics
	switch err := tracing.Wanted(); {
	case errors.Is(err, tracing.ErrOff):
		return t, nil
	case err != nil:
		log.Warn("Tracing is disabled", "error", err)
		return t, nil
	}
	traces, err := tracing.New(ctx, tracing.Config{Version: version, Log: log})
	if err != nil {
		return nil, err
	}
	stop.add(func() {
		if err := traces.Close(); err != nil {
			log.Warn("Cannot send the last spans", "error", err)
		}
	})
	t.observer, t.tracer = shepherd.Observers{t.metrics, traces}, traces
	return t, nil
}

// expose registers the metrics that are read when they are scraped.
func (t *telemetry) expose(cfg *config.Config, node string, core *shepherd.Shepherd, l keptLedger, gpus *gpus, drivers map[string]runtime.Driver) {
	sources := metrics.Sources{
		Core: core, Ledger: l, Policy: policyOf(cfg),
		Folders: map[string]string{"data_root": cfg.DataRoot, "state_dir": cfg.StateDir},
	}
	if cfg.Webhooks.SecretFile != "" || len(cfg.Webhooks.Receivers) > 0 {
		sources.Webhooks = l
	}
	if cfg.Storage.Embedded() {
		sources.Folders["storage"] = cfg.Storage.Path
	}
	for _, driver := range drivers {
		if c, ok := driver.(*container.Driver); ok {
			sources.Images = c.ImageUsage
		}
	}
	t.metrics.Expose(sources)
	t.metrics.ExposeNodes(nodesOf(node, l))
	t.metrics.GPUs(gpus.keeper.Known)
}

// nodesOf returns the source of the metrics about nodes.
func nodesOf(self string, l keptLedger) metrics.Nodes {
	shared, ok := l.(registry)
	if !ok {
		return metrics.Nodes{Self: self}
	}
	return metrics.Nodes{Self: self, Late: shared.LateRenewals, All: func(ctx context.Context) ([]metrics.Node, error) {
		known, err := shared.Nodes(ctx)
		if err != nil {
			return nil, err
		}
		nodes := make([]metrics.Node, len(known))
		for i, n := range known {
			loaded := map[job.Model]bool{}
			for _, s := range n.About.Sheep {
				if n.Alive && !s.Model.IsZero() {
					loaded[s.Model] = true
				}
			}
			nodes[i] = metrics.Node{Name: n.Name, Up: n.Alive, Drained: n.Draining, Held: n.Held, Loaded: len(loaded), OnDisk: len(n.About.Models)}
		}
		return nodes, nil
	}}
}
