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

// labelLease is the label of a pull's lease; its value is the reference.
const labelLease = "io.shepherd.pull"

// leaseTime is how long the downloads of a pull that failed are kept for the next one,
// even if the daemon is killed and not started again.
const leaseTime = 24 * time.Hour

// pullLeases manages the containerd leases of this process's pulls. Another daemon may
// pull with the same containerd.
type pullLeases struct {
	client  *containerd.Client
	log     *slog.Logger
	mayPass func(error) bool // reports whether a later attempt may succeed
	opened  time.Time        // earlier leases are not this process's

	mu    sync.Mutex
	ended map[string]bool // by id: whether the pull has ended
}

// setEnded records whether the pull with the lease id has ended.
func (p *pullLeases) setEnded(id string, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended[id] = ended
}

// forget drops the record of a lease that does not exist any more.
func (p *pullLeases) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ended, id)
}

// isEnded reports whether the lease's pull has ended. The pull of another process is
// assumed to have ended if the lease was made before the given time.
func (p *pullLeases) isEnded(l leases.Lease, before time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ended, ours := p.ended[l.ID]; ours {
		return ended
	}
	return l.CreatedAt.Before(before)
}

// lease creates a lease for a pull of r and returns a context that carries it. The
// caller passes the pull's outcome to release, which deletes the leases of ended pulls
// of r: this lease has all of their content that can still be used. This lease itself
// stays, for the next pull of r, if the outcome is an error that may pass or ctx has
// ended. With sweep, and for earlier pulls, containerd collects garbage at once, because
// an interrupted call may have left a snapshot.
func (s *pullLeases) lease(ctx context.Context, r ref) (_ context.Context, release func(outcome error, sweep bool), err error) {
	id := rand.Text()
	s.setEnded(id, false)
	held, err := s.client.LeasesService().Create(ctx, leases.WithID(id), leases.WithExpiration(leaseTime),
		leases.WithLabels(map[string]string{labelLease: r.String()}))
	if err != nil {
		s.setEnded(id, true) // the lease may exist in spite of the error
		return ctx, nil, fmt.Errorf("create a lease: %w", err)
	}
	return leases.WithLease(ctx, held.ID), func(outcome error, sweep bool) {
		keep := outcome != nil && (ctx.Err() != nil || s.mayPass(outcome))
		s.setEnded(id, true)
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

// endedPulls lists the leases of pulls of r that have ended. See isEnded for those of
// other processes.
func (s *pullLeases) endedPulls(ctx context.Context, r ref, before time.Time) ([]leases.Lease, error) {
	all, err := s.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q==%q", labelLease, r.String()))
	if err != nil {
		return nil, fmt.Errorf("list the leases of pulls: %w", err)
	}
	return slices.DeleteFunc(all, func(l leases.Lease) bool { return !s.isEnded(l, before) }), nil
}

// dropEndedPulls deletes the leases that ended pulls of r have left. It is called for an
// image that exists locally, which does not need them.
func (s *pullLeases) dropEndedPulls(ctx context.Context, r ref) {
	ended, err := s.endedPulls(ctx, r, s.opened)
	if err != nil {
		s.log.WarnContext(ctx, "leases of earlier pulls cannot be listed; they expire within a day", "image", r.String(), "error", err)
		return
	}
	for _, l := range ended {
		s.endLease(ctx, r, l, false)
	}
}

// endLease deletes a lease. With sync it waits until containerd has collected the
// garbage that this leaves.
func (s *pullLeases) endLease(ctx context.Context, r ref, l leases.Lease, sync bool) {
	var opts []leases.DeleteOpt
	if sync {
		opts = append(opts, leases.SynchronousDelete)
	}
	err := s.client.LeasesService().Delete(ctx, l, opts...)
	if err == nil || errdefs.IsNotFound(err) {
		s.forget(l.ID)
	} else {
		s.log.WarnContext(ctx, "a lease in containerd cannot be deleted; it expires within a day", "image", r.String(), "error", err)
	}
}
