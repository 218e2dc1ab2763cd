package container

import (
	"context"
	"io/fs"
	"log/slog"
	"os/exec"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	core "github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/shim"
)

// What containerd knows completes what the shim saw: a count of kills for memory that
// others may have caused counts where SIGKILL was the end.
func TestComplete(t *testing.T) {
	unknown := shim.Exit{Code: -1}
	nearby := shim.Exit{Code: -1, OOMNearby: true}
	for name, c := range map[string]struct {
		seen  shim.Exit
		known *taskExit
		want  shim.Exit
	}{
		"a code":                              {unknown, &taskExit{3}, shim.Exit{Code: 3}},
		"a signal":                            {unknown, &taskExit{137}, shim.Exit{Code: 137, Detail: "as after SIGKILL"}},
		"SIGKILL beside a kill for memory":    {nearby, &taskExit{137}, shim.Exit{Code: 137, Detail: "as after SIGKILL", OOMNearby: true, OutOfMemory: true}},
		"SIGTERM beside a kill for memory":    {nearby, &taskExit{143}, shim.Exit{Code: 143, Detail: "as after SIGTERM", OOMNearby: true}},
		"an error beside a kill for memory":   {nearby, &taskExit{1}, shim.Exit{Code: 1, OOMNearby: true}},
		"what the shim reports is kept":       {shim.Exit{Code: -1, Signal: "SIGSEGV"}, &taskExit{137}, shim.Exit{Code: -1, Signal: "SIGSEGV"}},
		"a task removed by another process":   {unknown, nil, shim.Exit{Code: -1, Lost: true, Detail: "its task was removed from containerd by somebody else, or containerd's shim died"}},
		"a task that was removed by the stop": {shim.Exit{Code: -1, Stopped: true}, nil, shim.Exit{Code: -1, Stopped: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if complete(&c.seen, c.known); c.seen != c.want {
				t.Errorf("got %+v, want %+v", c.seen, c.want)
			}
		})
	}
}

// containerd that is killed while it starts a task forgets the shim that it has started
// by then. The removal of the container ends it, also where an earlier removal was
// broken off on the way.
func TestRemoveEndsAForgottenShim(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	h := newHost(Config{Address: daemon.Address, Namespace: "shepherd", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	defer h.close()
	client, err := h.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	empty, err := typeurl.MarshalAny(&specs.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	const id, life = "dock-forgotten", "0123456789abcdef0123456789abcdef"
	if _, err := client.ContainerService().Create(t.Context(), core.Container{
		ID: id, Runtime: core.RuntimeInfo{Name: "io.containerd.runc.v2"}, Spec: empty,
	}); err != nil {
		t.Fatal(err)
	}
	forgotten := exec.Command("sh")
	forgotten.Args = []string{"containerd-shim-test", "-c", "read line", "-namespace", "shepherd", "-id", id}
	if _, err := forgotten.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := forgotten.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forgotten.Wait() }()
	found := containerRef{id: id, snapshotter: "overlayfs", life: life}
	brief, cancel := context.WithTimeout(t.Context(), containerdShimTime/2)
	defer cancel()
	if _, err := h.remove(brief, client, found, false); err == nil {
		t.Error("a removal that is broken off says nothing")
	}
	if _, err := h.remove(t.Context(), client, found, false); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the shim ended by itself")
		}
	case <-time.After(time.Minute):
		t.Error("the shim is left")
		forgotten.Process.Kill()
	}
	if _, err := client.ContainerService().Get(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("the container is left: %v", err)
	}
}

// deadContainerd is killed at a call: that one fails, and those after it.
type deadContainerd struct {
	leases.Manager
	snapshots.Snapshotter
	at   string // the call; empty for none
	dead bool
}

func (d *deadContainerd) call(name string) error {
	if d.dead = d.dead || name == d.at; d.dead {
		return errdefs.ErrUnavailable
	}
	return nil
}

// deadLeases and deadSnapshots are its services, which have methods of the same names.
type (
	deadLeases    struct{ *deadContainerd }
	deadSnapshots struct{ *deadContainerd }
)

func (d deadLeases) Create(_ context.Context, opts ...leases.Opt) (made leases.Lease, err error) {
	for _, opt := range opts {
		if err := opt(&made); err != nil {
			return made, err
		}
	}
	return made, d.call("create")
}

func (d deadLeases) Delete(context.Context, leases.Lease, ...leases.DeleteOpt) error {
	return d.call("delete")
}

func (d deadSnapshots) View(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, d.call("view")
}

func (d deadSnapshots) Remove(context.Context, string) error { return d.call("remove") }

// What a view of an image may have left in a containerd that was killed is looked for by
// the next Load.
func TestViewOfAKilledContainerd(t *testing.T) {
	for _, at := range []string{"", "create", "view", "remove", "delete"} {
		t.Run("at "+at, func(t *testing.T) {
			killed := &deadContainerd{at: at}
			client, err := containerd.New("", containerd.WithServices(
				containerd.WithLeasesService(deadLeases{killed}),
				containerd.WithSnapshotters(map[string]snapshots.Snapshotter{"overlayfs": deadSnapshots{killed}}),
			))
			if err != nil {
				t.Fatal(err)
			}
			c := &containers{sheep: "dolly", cfg: Config{Node: "box", Snapshotter: "overlayfs"}, log: slog.New(slog.DiscardHandler), swept: true}
			_ = c.viewImage(t.Context(), client, image.Image{}, func(fs.FS) error { return nil }) // there is nothing to mount
			if c.swept != (at == "") {
				t.Errorf("swept: %t", c.swept)
			}
		})
	}
}

// endingSnapshots ends the caller's context in the middle of View.
type endingSnapshots struct {
	deadSnapshots
	end     func()
	removed []string
}

func (s *endingSnapshots) View(ctx context.Context, _, _ string, _ ...snapshots.Opt) ([]mount.Mount, error) {
	s.end()
	return nil, ctx.Err() // a server that was told of the end may make the snapshot all the same
}

func (s *endingSnapshots) Remove(_ context.Context, key string) error {
	s.removed = append(s.removed, key)
	return nil
}

// A start that is broken off does not break off the call that makes a view: what
// it makes would be left behind.
func TestViewWhoseContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	held := &endingSnapshots{deadSnapshots: deadSnapshots{&deadContainerd{}}, end: cancel}
	client, err := containerd.New("", containerd.WithServices(
		containerd.WithLeasesService(deadLeases{held.deadContainerd}),
		containerd.WithSnapshotters(map[string]snapshots.Snapshotter{"overlayfs": held}),
	))
	if err != nil {
		t.Fatal(err)
	}
	c := &containers{sheep: "dolly", cfg: Config{Node: "box", Snapshotter: "overlayfs"}, log: slog.New(slog.DiscardHandler), swept: true}
	_ = c.viewImage(ctx, client, image.Image{}, func(fs.FS) error { return nil }) // there is nothing to mount
	if len(held.removed) != 1 || !c.swept {
		t.Errorf("snapshots removed: %q, swept: %t", held.removed, c.swept)
	}
}
