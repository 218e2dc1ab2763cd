package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// labelLease names, at a pull's lease, the reference that is pulled.
const labelLease = "io.shepherd.pull"

// leaseTime is how long what a broken pull has fetched is kept for the next
// one. It also ends the lease of a daemon that was killed and never came back.
const leaseTime = 24 * time.Hour

// pullLeases are the leases in containerd of the pulls of this process. Another
// daemon may pull by the same containerd.
type pullLeases struct {
	client *containerd.Client
	log    *slog.Logger
	passes func(error) bool // whether trying again later may help
	opened time.Time        // when the first could be made

	mu    sync.Mutex
	ended map[string]bool // by id: whether the pull has ended
}

// set notes that a pull has begun, or has ended.
func (p *pullLeases) set(id string, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended[id] = ended
}

// forget is for a lease that is not there any more.
func (p *pullLeases) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ended, id)
}

// isEnded reports whether the lease is of a pull that has ended: of this process, or
// made before a time by another that is taken for ended.
func (p *pullLeases) isEnded(l leases.Lease, before time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ended, ours := p.ended[l.ID]; ours {
		return ended
	}
	return l.CreatedAt.Before(before)
}

// lease makes ctx hold a new lease. When release is told of an error that may
// pass, the lease stays, for the next pull of r; those of earlier pulls go in
// any case, since what they held is held by this one as far as it is of use.
// After a pull that broke, or with sweep, what nothing holds any more is
// collected at once: a call that was cut off may have left a snapshot.
func (s *pullLeases) lease(ctx context.Context, r ref) (_ context.Context, release func(outcome error, sweep bool), err error) {
	id := rand.Text()
	s.set(id, false)
	held, err := s.client.LeasesService().Create(ctx, leases.WithID(id), leases.WithExpiration(leaseTime),
		leases.WithLabels(map[string]string{labelLease: r.String()}))
	if err != nil {
		s.set(id, true) // it may have been made all the same
		return ctx, nil, fmt.Errorf("take a lease: %w", err)
	}
	return leases.WithLease(ctx, held.ID), func(outcome error, sweep bool) {
		keep := outcome != nil && (ctx.Err() != nil || s.passes(outcome))
		s.set(id, true)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		ended, err := s.endedPulls(ctx, r, held.CreatedAt)
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

// endedPulls lists the leases of pulls of r that have ended: they broke, or the
// process that ran them ended. Those of other processes are taken for ended when they
// were made before a time.
func (s *pullLeases) endedPulls(ctx context.Context, r ref, before time.Time) ([]leases.Lease, error) {
	all, err := s.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q==%q", labelLease, r.String()))
	if err != nil {
		return nil, fmt.Errorf("list the leases of pulls: %w", err)
	}
	return slices.DeleteFunc(all, func(l leases.Lease) bool { return !s.isEnded(l, before) }), nil
}

// dropEndedPulls deletes the leases of pulls of r that ended before they could do
// so themselves. It is for an image that is here, which needs none of them.
func (s *pullLeases) dropEndedPulls(ctx context.Context, r ref) {
	ended, err := s.endedPulls(ctx, r, s.opened)
	if err != nil {
		s.log.WarnContext(ctx, "leases of earlier pulls are not looked for; they end by themselves within a day", "image", r.String(), "error", err)
		return
	}
	for _, l := range ended {
		s.endLease(ctx, r, l, false)
	}
}

// endLease deletes a lease, and with sync what it alone kept.
func (s *pullLeases) endLease(ctx context.Context, r ref, l leases.Lease, sync bool) {
	var opts []leases.DeleteOpt
	if sync {
		opts = append(opts, leases.SynchronousDelete)
	}
	err := s.client.LeasesService().Delete(ctx, l, opts...)
	if err == nil || errdefs.IsNotFound(err) {
		s.forget(l.ID)
	} else {
		s.log.WarnContext(ctx, "a lease in containerd cannot be deleted; it ends by itself within a day", "image", r.String(), "error", err)
	}
}
