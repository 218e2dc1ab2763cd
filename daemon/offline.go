package daemon

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/ledger/archive"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/shepherd"
)

// offline has the state directory and the ledger of a daemon that does not run.
type offline struct {
	config  *config.Config
	log     *slog.Logger
	node    string
	ledger  *sqlite.Ledger
	closing closers
}

// openOffline locks the state directory and opens the ledger until close is called.
// The error is *LockedError where a daemon is running. Warnings go to logTo. How far
// states are in storage is kept, so that the next daemon sees what is changed.
func openOffline(ctx context.Context, cfg *config.Config, logTo io.Writer) (_ *offline, err error) {
	o := &offline{config: cfg, log: slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	defer func() {
		if err != nil {
			o.closing.close()
		}
	}()
	lock, err := lockState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	o.closing.add(func() { lock.Close() })
	if o.node, err = nodeName(cfg); err != nil {
		return nil, err
	}
	if o.ledger, err = openSQLite(ctx, cfg, o.log, &o.closing); err != nil {
		return nil, err
	}
	return o, shepherd.FollowFromNow(ctx, o.ledger, o.node)
}

// Import enters the records of an archive in the ledger of a daemon that does not
// run, and returns how many. The errors are those of archive.Restore, and
// *LockedError.
func Import(ctx context.Context, cfg *config.Config, from io.ReadSeeker, logTo io.Writer) (int, error) {
	o, err := openOffline(ctx, cfg, logTo)
	if err != nil {
		return 0, err
	}
	defer func() { o.closing.close() }()
	return archive.Restore(ctx, from, o.ledger)
}

// Rebuild enters jobs that have not ended in the ledger of a daemon that does not
// run, from what storage knows of them; see shepherd.Rebuild. report is called for
// each job.
func Rebuild(ctx context.Context, cfg *config.Config, dryRun bool, report func(shepherd.Rebuilt), logTo io.Writer) (shepherd.RebuildCounts, error) {
	o, err := openOffline(ctx, cfg, logTo)
	if err != nil {
		return shepherd.RebuildCounts{}, err
	}
	defer func() { o.closing.close() }()
	store, err := openStorage(cfg, func(string, time.Duration, error) {}, o.log, &o.closing)
	if err != nil {
		return shepherd.RebuildCounts{}, err
	}
	return shepherd.Rebuild(ctx, shepherd.RebuildConfig{Ledger: o.ledger, Store: store, DryRun: dryRun, Report: report})
}
