package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/iterait/shepherd/ledger/lifecycle"
)

// pulse renews leases, and polls for changes whose notification was lost and for work of the
// maintenance. It has a goroutine of its own: one piece of that work may take longer than a
// lease lasts. And it has a connection of its own: calls that take long may have all others.
type pulse struct {
	m    *maintenance
	pool *pgxpool.Pool // opens one connection; another where that is dead

	// Only the goroutine touches these.
	renewed   time.Time // when leases were renewed last
	lastEvent int64     // the last number of an event that was seen
	outage    outage
}

// pulseTime bounds one pulse: within a lease there is time for another.
func (c Config) pulseTime() time.Duration { return min(statementTime, c.Lease/3) }

func (p *pulse) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		p.outage.report(p.m.l, p.beat(ctx), "Cannot renew leases or look for changes in the ledger; retrying", "The ledger's database answers again")
		timer.Reset(max(time.Until(began.Add(p.m.l.cfg.Poll)), time.Millisecond))
	}
}

// beat makes one pulse. If the server does not answer, the idle connections are closed:
// after a failover, or behind a firewall that has forgotten them, all of them may be dead,
// and to wait for each would take longer than a lease lasts.
func (p *pulse) beat(ctx context.Context) error {
	err := within(ctx, p.m.l.cfg.pulseTime(), p.query)
	if errors.Is(err, errdefs.ErrUnavailable) {
		p.pool.Reset()
		p.m.l.pool.Reset()
	}
	return err
}

// query renews leases that are due for it, and asks what there is to do.
func (p *pulse) query(ctx context.Context) error {
	l := p.m.l
	asked := time.Now()
	nodes, generations := l.leases.list()
	mine, renew := nodes, asked.Sub(p.renewed) >= l.cfg.renewEvery()
	if !renew {
		nodes, generations = []string{}, []int64{}
	}
	var moment lifecycle.Moment
	var renewed, lapsed, draining []string
	var last, rows int64
	var next *time.Time
	var blocked, unsettled bool
	args := pgx.NamedArgs{"names": nodes, "generations": generations, "lease": l.cfg.Lease.Microseconds()}
	into := []any{&moment.Now, &moment.Age, &renewed, &last, &next, &blocked, &unsettled, &lapsed, &draining, &rows}
	err := l.queryBy(ctx, p.pool, queryPulse, args, one(new(bool), into))
	if err != nil {
		return err
	}
	if renew {
		p.renewed = asked
		l.leases.renewed(asked, nodes, generations, renewed)
	}
	if l.leases.setDraining(draining) || last > p.lastEvent || l.eventLog.horizon.waiting() {
		p.lastEvent = last
		l.bell.ring()
	}
	l.clock.set(moment)
	if len(mine) == 0 {
		lapsed = nil // a ledger without a node takes nothing back
	}
	lapsed = slices.DeleteFunc(lapsed, func(node string) bool { return slices.Contains(mine, node) })
	p.m.found(moment.Now, next, blocked, unsettled, lapsed, rows > foldAbove)
	return nil
}
