package image

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// leasesInMemory makes leases and does not answer that it has.
type leasesInMemory struct {
	leases.Manager
	made []leases.Lease
}

func (l *leasesInMemory) Create(_ context.Context, opts ...leases.Opt) (leases.Lease, error) {
	made := leases.Lease{CreatedAt: time.Now()}
	for _, opt := range opts {
		if err := opt(&made); err != nil {
			return leases.Lease{}, err
		}
	}
	l.made = append(l.made, made)
	return leases.Lease{}, errdefs.ErrUnavailable
}

func (l *leasesInMemory) List(context.Context, ...string) ([]leases.Lease, error) {
	return slices.Clone(l.made), nil
}

func (l *leasesInMemory) Delete(_ context.Context, gone leases.Lease, _ ...leases.DeleteOpt) error {
	l.made = slices.DeleteFunc(l.made, func(one leases.Lease) bool { return one.ID == gone.ID })
	return nil
}

// A lease whose making was not answered, as by a containerd that was killed, ends with
// the next use of the image.
func TestLeaseThatWasNotAnswered(t *testing.T) {
	manager := &leasesInMemory{}
	client, err := containerd.New("", containerd.WithServices(containerd.WithLeasesService(manager)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Client: client, Registry: Registry{URL: "http://registry.test"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := ref{name: "registry.test/model", tag: "v1"}
	if _, _, err := s.puller.leases.lease(t.Context(), r); !errors.Is(err, errdefs.ErrUnavailable) || len(manager.made) != 1 {
		t.Fatalf("got %v, with the leases %v", err, manager.made)
	}
	s.puller.leases.dropEndedPulls(t.Context(), r)
	if len(manager.made) > 0 {
		t.Errorf("left: %v", manager.made)
	}
}
