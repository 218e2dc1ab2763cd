package daemon

import (
	"context"
	"log/slog"
	"reflect"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
)

// registry is a shared ledger as far as it knows its nodes.
type registry interface {
	Announce(ctx context.Context, node string, about postgres.About) error
}

// announcer tells a shared ledger of this node.
type announcer struct {
	registry registry
	node     string
	about    postgres.About // but for the sheep
	sheep    func(context.Context) []job.Sheep
	log      *slog.Logger

	last    *postgres.About // that was told; nil for none
	failing bool
}

// announceEvery is how often it is looked whether there is something to tell.
const announceEvery = 5 * time.Second

// run tells of the node, and of what changes, until ctx ends.
func (a *announcer) run(ctx context.Context) {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		a.announce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// announce tells what has changed since it was told last.
func (a *announcer) announce(ctx context.Context) {
	about := a.about
	for _, s := range a.sheep(ctx) {
		about.Sheep = append(about.Sheep, postgres.Sheep{Name: s.Name, Type: s.Type, Model: s.Model})
	}
	if a.last != nil && reflect.DeepEqual(about, *a.last) {
		return
	}
	switch err := a.registry.Announce(ctx, a.node, about); {
	case err == nil:
		a.last, a.failing = &about, false
	case ctx.Err() == nil && !a.failing:
		a.failing = true
		a.log.Warn("Other nodes cannot be told of this one; it is tried again", "error", err)
	}
}
