package daemon

import (
	"context"
	"io"
	"log/slog"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/shepherd"
)

// OpenModels returns the models of a machine whose daemon is not running, until close is
// called. It holds no lock, so a daemon can start meanwhile. Warnings go to logTo.
func OpenModels(ctx context.Context, cfg *config.Config, logTo io.Writer) (_ *shepherd.Models, close func(), err error) {
	var closing closers
	defer func() {
		if err != nil {
			closing.close()
		}
	}()
	log := slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: slog.LevelWarn}))
	l := &briefLedger{open: func(ctx context.Context, closing *closers) (ledger.Ledger, error) {
		return openLedger(ctx, cfg, false, log, closing)
	}}
	members, _, err := createSheep(newEnvironment(cfg, keptNodeName(cfg), l, nil, nil, log), &closing)
	if err != nil {
		return nil, nil, err
	}
	return shepherd.NewModels(l, members, log), closing.close, nil
}

// briefLedger opens the ledger only for the duration of each List, because an open ledger is
// locked.
type briefLedger struct {
	ledger.Ledger // nil: only List is called
	open          func(context.Context, *closers) (ledger.Ledger, error)
}

// List opens the ledger and lists jobs.
func (b *briefLedger) List(ctx context.Context, f ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error) {
	var closing closers
	defer func() { closing.close() }()
	l, err := b.open(ctx, &closing)
	if err != nil {
		return nil, 0, err
	}
	return l.List(ctx, f, cursor, limit)
}
