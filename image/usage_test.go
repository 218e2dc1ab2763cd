package image

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

func model(name string) job.Model { return job.Model{Name: name, Version: "v1"} }

// references lists the names of the models that are here.
func (h *home) references(s *Store) string {
	h.Helper()
	list, err := s.List(h.Context())
	if err != nil {
		h.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Model.Name)
	}
	return strings.Join(names, " ")
}

func TestBudget(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	base := testenv.RandomLayer(t, "base", 4*mib, 50)
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		h.registry.Push(t, name+":v1", testenv.Image(t, v1.Config{}, base, testenv.RandomLayer(t, name, mib, uint64(i))))
	}
	free := h.store(nil) // no budget
	for _, name := range []string{"a", "b", "c", "d"} {
		h.ensure(free, model(name))
	}
	h.ensure(free, model("a")) // used again, so that b is the oldest
	list, err := free.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		// Each has its layers and their files; the base is shared.
		if i.Size < 10*mib || i.Size > 11*mib || i.Own < 2*mib || i.Own > 3*mib {
			t.Errorf("%s takes %d, %d of its own", i.Reference, i.Size, i.Own)
		}
	}

	// e comes, and the five take 8 + 5·2 MiB: two must go. c is needed and d is
	// a container's.
	ctx := t.Context()
	container, err := h.client.NewContainer(ctx, "sheep", containerd.WithImageName(h.registry.Host+"/d:v1"), containerd.WithSpec(&oci.Spec{}))
	if err != nil {
		t.Fatal(err)
	}
	var neededErr error
	s := h.store(func(c *Config) {
		c.Budget = 14*mib + mib
		c.Needed = func(context.Context) ([]job.Model, error) {
			return []job.Model{model("c"), {Name: "Not A Reference"}}, neededErr
		}
	})
	// c and d stay, with the base: 8 + 2·2 MiB.
	for budget, want := range map[int64]bool{0: false, 10 * mib: true, 15 * mib: false} {
		s := h.store(func(c *Config) {
			c.Budget = budget
			c.Needed = func(context.Context) ([]job.Model, error) { return []job.Model{model("c")}, nil }
		})
		if full, err := s.Full(ctx); err != nil || full != want {
			t.Errorf("with a budget of %d: full is %v, %v", budget, full, err)
		}
	}
	neededErr = errors.New("the ledger is away")
	if _, err := s.Full(ctx); !errors.Is(err, neededErr) {
		t.Errorf("without knowing what is needed: %v", err)
	}
	h.ensure(s, model("e"))
	s.work.Wait()
	if got := h.references(s); got != "a b c d e" || len(h.log.find("the ledger is away")) != 1 {
		t.Errorf("without knowing what is needed: %s", got)
	}
	neededErr = nil
	if err := s.Remove(ctx, model("e")); err != nil {
		t.Fatal(err)
	}
	h.ensure(s, model("e"))
	s.work.Wait()
	if got := h.references(s); got != "c d e" {
		t.Errorf("left are %s", got)
	}
	if n := len(h.log.find("image removed to keep to the budget")); n != 2 {
		t.Errorf("%d removals logged", n)
	}
	if err := s.Remove(ctx, model("d")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "container sheep was created from it") {
		t.Errorf("removal of an image in use: %v", err)
	}
	if err := container.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, model("d")); err != nil {
		t.Error(err)
	}
	h.ensure(s, model("c")) // still works with the shared layer
}

// TestBudgetSparesWhatBecomesNeeded: an image that is needed, or used again, after the
// images to remove were chosen stays.
func TestBudgetSparesWhatBecomesNeeded(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	for i, name := range []string{"a", "b", "c", "d"} {
		h.registry.Push(t, name+":v1", testenv.Image(t, v1.Config{}, h.layers(1, mib, uint64(i))...))
	}
	free := h.store(nil)
	for _, name := range []string{"a", "b", "c"} {
		h.ensure(free, model(name))
	}
	asked := 0
	s := h.store(func(c *Config) {
		c.Budget = 1
		c.Needed = func(context.Context) ([]job.Model, error) {
			switch asked++; asked {
			case 1: // the images to remove are chosen: a, b and c
				return nil, nil
			case 2: // a is about to be removed
				h.ensure(free, model("b"))
			}
			return []job.Model{model("a")}, nil
		}
	})
	h.ensure(s, model("d"))
	s.work.Wait()
	if got := h.references(s); got != "a b d" {
		t.Errorf("left are %s", got)
	}
}

// TestHold: what is held is not worked on until it is released, and what is worked on is
// not held.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flights{byKey: map[string]*flight{}}
		release, ok := f.hold("a")
		if _, again := f.hold("a"); !ok || again {
			t.Errorf("held: %t, held twice: %t", ok, again)
		}
		held := true
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = f.do(t.Context(), "a", func(Progress) {}, func(context.Context, func(Progress)) (Image, error) {
				if _, ok := f.hold("a"); ok || held {
					t.Errorf("worked on while it is held: %t; held while it is worked on: %t", held, ok)
				}
				return Image{}, nil
			})
		}()
		synctest.Wait()
		held = false
		release()
		<-done
		if len(f.keys()) != 0 {
			t.Errorf("left: %v", f.keys())
		}
	})
}

// TestBudgetSparesWhatIsNotOurs: images that an administrator brought stay.
func TestBudgetSparesWhatIsNotOurs(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	h.registry.Push(t, "a:v1", testenv.Image(t, v1.Config{}, h.layers(1, mib, 1)...))
	h.registry.Push(t, "b:v1", testenv.Image(t, v1.Config{}, h.layers(1, mib, 2)...))
	h.daemon.Ctr(t, namespace, "images", "pull", "--plain-http", h.registry.Host+"/a:v1")
	s := h.store(func(c *Config) { c.Budget = 1 })
	h.ensure(s, model("a"))
	h.ensure(s, model("b"))
	s.work.Wait()
	if got := h.references(s); got != "a b" {
		t.Errorf("left are %s", got)
	}
	if len(h.log.find("none of them may be removed")) == 0 {
		t.Error("no warning that the budget is exceeded")
	}
}

// TestFullDisk: what nobody needs makes room, and when that is not enough, the
// failure is clear and leaves nothing.
func TestFullDisk(t *testing.T) {
	// An image takes about twice its layers: packed and unpacked.
	h := newHomeOn(t, testenv.StartSmallContainerd(t, 40*mib), testenv.RegistryConfig{})
	for i, name := range []string{"a", "b", "needed"} {
		h.registry.Push(t, name+":v1", testenv.Image(t, v1.Config{}, testenv.RandomLayer(t, name, 10*mib, uint64(i))))
	}
	h.registry.Push(t, "huge:v1", testenv.Image(t, v1.Config{}, testenv.RandomLayer(t, "huge", 50*mib, 9)))
	s := h.store(func(c *Config) {
		c.Needed = func(context.Context) ([]job.Model, error) { return []job.Model{model("needed")}, nil }
	})
	h.ensure(s, model("a"))
	h.ensure(s, model("needed")) // a has to go for it
	if got := h.references(s); got != "needed" {
		t.Errorf("left are %s", got)
	}
	_, err := s.Ensure(t.Context(), model("huge"), nil)
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "is full; remove images") {
		t.Errorf("more than there is room for: %v", err)
	}
	if got := h.references(s); got != "needed" {
		t.Errorf("left are %s", got)
	}
	h.ensure(s, model("needed"))
	if err := s.Remove(t.Context(), model("needed")); err != nil {
		t.Fatal(err)
	}
	h.ensure(s, model("b"))
}

func TestConnect(t *testing.T) {
	dir := t.TempDir()
	file := write(t, "file", "")
	dead := filepath.Join(dir, "dead")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	other := filepath.Join(dir, "other")
	if l, err = net.Listen("unix", other); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("220 mail ready\r\n"))
			conn.Close()
		}
	}()
	mute := filepath.Join(dir, "mute")
	silent, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for address, want := range map[string]string{
		filepath.Join(dir, "none"): "does not exist; install and start containerd",
		file:                       "is not a socket; set containerd.address",
		dead:                       "nothing listens on containerd's socket",
		other:                      "check containerd.address",
		mute:                       "did not answer as containerd",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := Connect(ctx, address, namespace, nil)
		cancel()
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %q", filepath.Base(address), err, want)
		}
	}
	if err := dialFailure("/x", &net.OpError{Op: "dial", Err: os.ErrPermission}); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "run shepherdd as root") {
		t.Errorf("no permission: %v", err)
	}
}

// TestContainerdAway: its absence is one clear line, and its return is noticed.
func TestContainerdAway(t *testing.T) {
	h := newHome(t, testenv.RegistryConfig{})
	h.registry.Push(t, "a:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...))
	s := h.store(nil)
	h.ensure(s, model("a"))
	h.daemon.Kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	_, err := s.Ensure(ctx, model("a"), nil)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while containerd may be coming back: %v", err)
	}
	if _, err := s.List(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "systemctl status containerd") {
		t.Errorf("without containerd: %v", err)
	}
	h.daemon.Start(t)
	h.ensure(s, model("a"))
}
