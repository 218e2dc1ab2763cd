package daemon

import (
	"context"
	"io"
	"log/slog"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/shepherd"
)

// OpenModels gives access to the models of a machine whose daemon is not running: it
// holds the lock on the state directory until close is called. Warnings go to logTo.
// The error is *LockedError where a daemon is running.
func OpenModels(ctx context.Context, cfg *config.Config, logTo io.Writer) (_ *shepherd.Models, close func(), err error) {
	var closing closers
	defer func() {
		if err != nil {
			closing.close()
		}
	}()
	lock, err := lockState(cfg.StateDir)
	if err != nil {
		return nil, nil, err
	}
	closing.add(func() { lock.Close() })
	log := slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: slog.LevelWarn}))
	node, err := nodeName(cfg)
	if err != nil {
		return nil, nil, err
	}
	l, err := openLedger(ctx, cfg, log, &closing)
	if err != nil {
		return nil, nil, err
	}
	members, _, err := createSheep(newEnvironment(cfg, node, l, nil, nil, log), &closing)
	if err != nil {
		return nil, nil, err
	}
	return shepherd.NewModels(l, members, log), closing.close, nil
}
