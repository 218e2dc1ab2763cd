package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/container"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/tracing"
)

// observation is what is told of what the daemon does.
type observation struct {
	figures  *metrics.Metrics
	observer shepherd.Observer
	tracer   shepherd.Tracer // nil: clients' own traces are handed on
}

// observe begins to count and, where the environment asks for it, to trace.
func observe(ctx context.Context, version, commit string, log *slog.Logger, stop *closers) (*observation, error) {
	o := &observation{figures: metrics.New(version, commit)}
	o.observer = o.figures
	switch err := tracing.Wanted(); {
	case errors.Is(err, tracing.ErrOff):
		return o, nil
	case err != nil:
		log.Warn("There are no traces", "error", err)
		return o, nil
	}
	traces, err := tracing.New(ctx, tracing.Config{Version: version, Log: log})
	if err != nil {
		return nil, err
	}
	stop.add(func() {
		if err := traces.Close(); err != nil {
			log.Warn("Some spans are lost", "error", err)
		}
	})
	o.observer, o.tracer = shepherd.Observers{o.figures, traces}, traces
	return o, nil
}

// expose has the metrics show what is looked up.
func (o *observation) expose(cfg *config.Config, core *shepherd.Shepherd, records ledger.Ledger, lent *gpus, types map[string]runtime.Driver) {
	sources := metrics.Sources{
		Core: core, Ledger: records,
		Folders: map[string]string{"data_root": cfg.DataRoot, "state_dir": cfg.StateDir},
	}
	if cfg.Storage.Embedded() {
		sources.Folders["storage"] = cfg.Storage.Path
	}
	for _, t := range types {
		if c, ok := t.(*container.Driver); ok {
			sources.Images = c.ImageUsage
		}
	}
	o.figures.Expose(sources)
	o.figures.GPUs(lent.keeper.Known)
}
