package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// errNoLease says that the lease of a node that joined has ended.
var errNoLease = fmt.Errorf("the node's lease has ended: %w", errdefs.ErrUnavailable)

// handedBack is the reason for releasing a claim whose caller had gone.
var handedBack = ledger.Return{Cause: job.CauseHandedBack, Reason: "the sheep did not wait for its claim"}

// The states of a call of Claim. The caller may abandon it until it is answered.
const (
	pending int32 = iota
	answered
	abandoned
)

// Claim implements ledger.Ledger. The claim is made in a separate goroutine, so that its
// outcome is known even if the caller's context ends.
func (l *Ledger) Claim(ctx context.Context, slot ledger.Slot) (*ledger.Claim, error) {
	doing := "claim a job for sheep " + slot.Sheep
	if err := ctx.Err(); err != nil {
		return nil, explain(l.server, doing, err)
	}
	if err := l.begin(); err != nil {
		return nil, explain(l.server, doing, err)
	}
	var state atomic.Int32
	var claim *ledger.Claim
	var err error
	done := make(chan struct{})
	go func() {
		defer l.calls.Done()
		claim, err = l.claim(context.WithoutCancel(ctx), slot, func() bool { return state.Load() == abandoned })
		if state.CompareAndSwap(pending, answered) {
			close(done)
		} else if claim != nil {
			l.handBack(context.WithoutCancel(ctx), claim)
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
		if state.CompareAndSwap(pending, abandoned) {
			return nil, explain(l.server, doing, ctx.Err())
		}
		<-done
	}
	if err != nil {
		return nil, explain(l.server, doing, err)
	}
	return claim, nil
}

// claim makes a claim, nil where there is no job for the slot. Before a retry, a try whose
// outcome is unknown is called off, or returned if it was made.
func (l *Ledger) claim(ctx context.Context, slot ledger.Slot, abandoned func() bool) (claim *ledger.Claim, err error) {
	key := "" // of the try whose outcome is not known
	err = l.retry(ctx, func(ctx context.Context) error {
		if key != "" {
			made, err := l.callOff(ctx, slot.Node, key)
			if err != nil || made != nil {
				claim = made
				return err
			}
			key = ""
		}
		if abandoned() {
			return context.Canceled
		}
		key = newKey()
		try := l.tryClaim
		if l.cfg.Policy.BoundsClaims() {
			try = l.tryBounded
		}
		made, err := try(ctx, slot, key)
		if err != nil {
			return err
		}
		key = ""
		switch {
		case made.row != nil:
			claim = &ledger.Claim{Record: made.row.Record, Token: made.row.Token}
			l.claims.put(made.row)
			l.changed(&made.row.Row)
		case !made.leased:
			return errNoLease
		case made.candidates > 0:
			return errBusy
		}
		return nil
	})
	if err != nil && key != "" {
		l.maintenance.settleClaim(slot.Node, key)
	}
	return claim, err
}

// claimed is the result of a claim statement.
type claimed struct {
	row        *row // nil where there is no job for the slot
	leased     bool // the node may claim
	candidates int  // jobs that the slot could have claimed
}

// tryClaim tries to make a claim under a key.
func (l *Ledger) tryClaim(ctx context.Context, slot ledger.Slot, key string) (claimed, error) {
	return l.runClaim(ctx, l.db, claimQuery(slot), slot, key, claimArgs(slot))
}

func (l *Ledger) runClaim(ctx context.Context, db querier, query string, slot ledger.Slot, key string, args pgx.NamedArgs) (c claimed, err error) {
	add(args, pgx.NamedArgs{"key": key, "generation": l.leases.generation(slot.Node)})
	send := l.often
	if slot.Only != "" {
		send = l.queryBy
	}
	err = send(ctx, db, query, args, func(rows pgx.Rows) (err error) {
		c.row, err = scanRow(rows, true, &c.leased, &c.candidates)
		return err
	})
	return c, err
}

// errBusy says that others have locked all jobs that the slot could claim, or have
// just claimed them.
var errBusy = fmt.Errorf("the jobs in the queue are being changed by others: %w", errConflict)

// claimArgs are the arguments of claimQuery but for the key.
func claimArgs(slot ledger.Slot) pgx.NamedArgs {
	names, versions := make([]string, len(slot.Except)), make([]string, len(slot.Except))
	for i, model := range slot.Except {
		names[i], versions[i] = text(model.Name), text(model.Version)
	}
	return pgx.NamedArgs{
		"node": text(slot.Node), "sheep": text(slot.Sheep), "only": text(slot.Only), "prefer_name": text(slot.Prefer.Name), "prefer_version": text(slot.Prefer.Version),
		"own": texts(slot.Owned()), "open": texts(slot.Opened()), "except_names": names, "except_versions": versions,
	}
}

// callOff prevents a claim from being made, or returns it if it was made already.
func (l *Ledger) callOff(ctx context.Context, node, key string) (*ledger.Claim, error) {
	n, err := l.exec(ctx, queryCallOff, pgx.NamedArgs{"key": key})
	if err != nil || n > 0 {
		return nil, err
	}
	var claim *ledger.Claim
	err = l.query(ctx, queryClaimed, pgx.NamedArgs{"key": key, "node": text(node)}, func(rows pgx.Rows) error {
		r, err := scanRow(rows, true)
		if r != nil {
			claim = &ledger.Claim{Record: r.Record, Token: r.Token}
			l.changed(&r.Row)
		}
		return err
	})
	return claim, err
}

// handBack releases a claim whose caller had gone. If that fails, maintenance tries again.
func (l *Ledger) handBack(ctx context.Context, claim *ledger.Claim) {
	key := newKey()
	err := l.retry(ctx, func(ctx context.Context) error {
		_, err := l.applyTo(ctx, claim.ID, key, l.release(claim.Token, handedBack))
		return err
	})
	if err != nil && !errors.Is(err, ledger.ErrFenced) {
		l.maintenance.handBack(claim)
	}
}
