package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/archive"
	"github.com/iterait/shepherd/shepherd"
)

// offline holds the locked state directory and the ledger of a daemon that is not running.
type offline struct {
	config  *config.Config
	log     *slog.Logger
	node    string
	ledger  keptLedger
	closing closers
}

// openOffline locks the state directory and opens the ledger until close is called. The
// error is *LockedError if the daemon is running, and *postgres.TakenError if another node
// that shares the ledger is. Warnings go to logTo. It sets the checkpoint of the states in
// storage, so that the next daemon writes the changes made meanwhile.
func openOffline(ctx context.Context, cfg *config.Config, logTo io.Writer) (_ *offline, err error) {
	o := newOffline(cfg, logTo)
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
	if err := o.open(ctx); err != nil {
		return nil, err
	}
	return o, shepherd.FollowFromNow(ctx, o.ledger, o.node)
}

func newOffline(cfg *config.Config, logTo io.Writer) *offline {
	return &offline{config: cfg, log: slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: slog.LevelWarn}))}
}

// open opens the ledger and excludes other nodes from it. The state directory is locked
// already.
func (o *offline) open(ctx context.Context) (err error) {
	if o.node, err = nodeName(o.config); err != nil {
		return err
	}
	if o.ledger, err = openLedger(ctx, o.config, true, o.log, &o.closing); err != nil {
		return err
	}
	lease, err := o.ledger.Join(ctx, o.node)
	if err != nil {
		return err
	}
	o.closing.add(func() {
		if err := lease.Release(context.WithoutCancel(ctx)); err != nil {
			o.log.Warn("Cannot give up this node's lease in the ledger", "error", err)
		}
	})
	return nil
}

// Migrate copies all records of one configuration's ledger to another's, which must be
// empty, and returns their number. The source is not changed. The error is *LockedError or
// *postgres.TakenError if a daemon runs with either ledger, or names the ledger and what to
// do.
func Migrate(ctx context.Context, from, to *config.Config, logTo io.Writer) (int, error) {
	if ledgerName(from) == ledgerName(to) {
		return 0, fmt.Errorf("both configurations have the same ledger, %s: name one with the new ledger: %w", ledgerName(to), errdefs.ErrInvalidArgument)
	}
	if !from.Ledger.Shared() {
		if _, err := os.Stat(from.Ledger.Path); err != nil {
			return 0, fmt.Errorf("open the ledger to move: %w", err)
		}
	}
	lock, err := lockState(from.StateDir)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	source, target := newOffline(from, logTo), newOffline(to, logTo)
	defer func() { source.closing.close() }()
	defer func() { target.closing.close() }()
	if to.StateDir != from.StateDir {
		lock, err := lockState(to.StateDir)
		if err != nil {
			return 0, err
		}
		defer lock.Close()
	}
	if err := source.open(ctx); err != nil {
		return 0, err
	}
	if err := target.open(ctx); err != nil {
		return 0, err
	}
	counts, err := target.ledger.Count(ctx)
	if err != nil {
		return 0, err
	}
	for _, n := range counts {
		if n > 0 {
			return 0, fmt.Errorf("the ledger %s has jobs already: %s, or have them exported and imported (shepherdd ledger export, import): %w",
				ledgerName(to), howToEmpty(to), errdefs.ErrFailedPrecondition)
		}
	}
	if err := shepherd.FollowFromNow(ctx, target.ledger, target.node); err != nil {
		return 0, err
	}
	moved, err := archive.Copy(ctx, target.ledger, source.ledger)
	if err != nil && moved > 0 {
		return moved, fmt.Errorf("%d jobs are in %s already: %s before you try again: %w", moved, ledgerName(to), howToEmpty(to), err)
	}
	return moved, err
}

// ledgerName names a ledger in messages, without a password.
func ledgerName(cfg *config.Config) string {
	if cfg.Ledger.Shared() {
		return cfg.Ledger.URL.String()
	}
	return cfg.Ledger.Path
}

func howToEmpty(cfg *config.Config) string {
	if cfg.Ledger.Shared() {
		return "drop its tables (DROP SCHEMA shepherd CASCADE)"
	}
	return "move the file and those beside it away"
}

// Import adds the records of an archive to the ledger of a daemon that is not running, and
// returns their number. The errors are those of archive.Restore and *LockedError.
func Import(ctx context.Context, cfg *config.Config, from io.ReadSeeker, logTo io.Writer) (int, error) {
	o, err := openOffline(ctx, cfg, logTo)
	if err != nil {
		return 0, err
	}
	defer func() { o.closing.close() }()
	return archive.Restore(ctx, from, o.ledger)
}

// Rebuild queues unfinished jobs that storage knows in the ledger of a daemon that is not
// running; see shepherd.Rebuild. report is called for each job. A dry run does not create a
// missing ledger.
func Rebuild(ctx context.Context, cfg *config.Config, dryRun bool, report func(shepherd.Rebuilt), logTo io.Writer) (shepherd.RebuildCounts, error) {
	o := newOffline(cfg, logTo)
	var entries shepherd.RebuildLedger = noLedger{}
	if !dryRun || cfg.Ledger.Shared() || exists(cfg.Ledger.Path) {
		opened, err := openOffline(ctx, cfg, logTo)
		if err != nil {
			return shepherd.RebuildCounts{}, err
		}
		o, entries = opened, opened.ledger
	}
	defer func() { o.closing.close() }()
	store, _, err := openStorage(cfg, func(string, time.Duration, error) {}, o.log, &o.closing)
	if err != nil {
		return shepherd.RebuildCounts{}, err
	}
	return shepherd.Rebuild(ctx, shepherd.RebuildConfig{Ledger: entries, Store: store, DryRun: dryRun, Report: report})
}

// exists reports whether anything exists at the path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// noLedger stands for a missing ledger in a dry run: it knows no job.
type noLedger struct{}

func (noLedger) Get(context.Context, job.ID) (job.Record, error) {
	return job.Record{}, ledger.ErrNotFound
}

func (noLedger) Create(_ context.Context, rec job.Record) (job.Record, error) {
	return rec, fmt.Errorf("create job %s in a dry run: %w", rec.ID, errdefs.ErrInternal)
}
