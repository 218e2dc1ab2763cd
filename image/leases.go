package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// labelLease names, at a pull's lease, the reference that is pulled.
const labelLease = "io.shepherd.pull"

// leaseTime is how long what a broken pull has fetched is kept for the next
// one. It also ends the lease of a daemon that was killed and never came back.
const leaseTime = 24 * time.Hour

// pullLeases are the leases in containerd that pulls of this process hold.
type pullLeases struct {
	mu   sync.Mutex
	held map[string]bool // by id
}

func (p *pullLeases) add(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[id] = true
}

func (p *pullLeases) drop(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, id)
}

func (p *pullLeases) holds(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[id]
}

// lease makes ctx hold a new lease. When release is told of an error that may
// pass, the lease stays, for the next pull of r; those of earlier pulls go in
// any case, since what they held is held by this one as far as it is of use.
// After a pull that broke, or with sweep, what nothing holds any more is
// collected at once: a call that was cut off may have left a snapshot.
func (s *Store) lease(ctx context.Context, r ref) (_ context.Context, release func(outcome error, sweep bool), err error) {
	id := rand.Text()
	s.leases.add(id)
	held, err := s.cfg.Client.LeasesService().Create(ctx, leases.WithID(id), leases.WithExpiration(leaseTime),
		leases.WithLabels(map[string]string{labelLease: r.String()}))
	if err != nil {
		s.leases.drop(id)
		return ctx, nil, fmt.Errorf("take a lease: %w", err)
	}
	return leases.WithLease(ctx, held.ID), func(outcome error, sweep bool) {
		keep := outcome != nil && (ctx.Err() != nil || errdefs.IsUnavailable(s.explanation(outcome)))
		s.leases.drop(id)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		ended, err := s.endedPulls(ctx, r)
		if err != nil {
			ended = []leases.Lease{held}
		}
		for _, l := range ended {
			if l.ID == id && keep {
				continue
			}
			s.endLease(ctx, r, l, l.ID != id || sweep)
		}
	}, nil
}

// endedPulls lists the leases of pulls of r that are not under way: they broke,
// or the process that ran them ended.
func (s *Store) endedPulls(ctx context.Context, r ref) ([]leases.Lease, error) {
	all, err := s.cfg.Client.LeasesService().List(ctx, fmt.Sprintf("labels.%q==%q", labelLease, r.String()))
	if err != nil {
		return nil, fmt.Errorf("list the leases of pulls: %w", err)
	}
	return slices.DeleteFunc(all, func(l leases.Lease) bool { return s.leases.holds(l.ID) }), nil
}

// dropEndedPulls deletes the leases of pulls of r that ended before they could do
// so themselves. It is for an image that is here, which needs none of them.
func (s *Store) dropEndedPulls(ctx context.Context, r ref) {
	ended, err := s.endedPulls(ctx, r)
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "leases of earlier pulls are not looked for; they end by themselves within a day", "image", r.String(), "error", err)
		return
	}
	for _, l := range ended {
		s.endLease(ctx, r, l, false)
	}
}

// endLease deletes a lease, and with sync what it alone kept.
func (s *Store) endLease(ctx context.Context, r ref, l leases.Lease, sync bool) {
	var opts []leases.DeleteOpt
	if sync {
		opts = append(opts, leases.SynchronousDelete)
	}
	if err := s.cfg.Client.LeasesService().Delete(ctx, l, opts...); err != nil && !errdefs.IsNotFound(err) {
		s.cfg.Log.WarnContext(ctx, "a lease in containerd cannot be deleted; it ends by itself within a day", "image", r.String(), "error", err)
	}
}
