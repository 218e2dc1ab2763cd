// Package server implements shepherd-shim: it starts a runner, or watches one that
// containerd has started, exchanges ZeroMQ messages with it, and serves the present
// daemon and its successors over the protocol of package shim, which documents the
// guarantees.
//
// A shim's state is one value, state, guarded by one mutex. Four parties change it: the
// acceptor, to which daemons connect (session.go), the connector, which keeps the
// connection to the runner (link.go), the life, which manages the runner's process
// (life.go; supervisor.go for a child process, watch.go for a container's), and two
// timers: of the job's deadline (jobs.go), and of a shim without a daemon (orphan.go).
// outcome (keep.go) persists what must survive the shim, asynchronously, so that
// messages do not wait for the disk.
package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/iterait/shepherd/internal/cgroup"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/shim"
)

// Conn is one connection to a runner.
type Conn interface {
	Send(ctx context.Context, frame []byte) error
	// Recv returns an error when the connection has ended and all messages that
	// arrived before were received.
	Recv(ctx context.Context) ([]byte, error)
	Close() error
}

// DialFunc makes a network connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config configures a shim.
type Config struct {
	Folder *shim.Folder // locked by the caller
	Spec   shim.Spec
	// Dial connects to a runner at HOST:PORT with network connections made by dial,
	// and waits until the runner listens, which may be long after the call. An error
	// is final.
	Dial func(ctx context.Context, address string, dial DialFunc) (Conn, error)
	Log  *slog.Logger
}

// Run runs a shim. It returns when the daemon has released it, or when no daemon has
// connected for the spec's OrphanTimeout. It calls ready when daemons can connect.
// Ending ctx stops the runner.
func Run(ctx context.Context, cfg Config, ready func()) error {
	boot, err := proc.BootID()
	if err != nil {
		return fmt.Errorf("read the machine's boot id: %w", err)
	}
	self, err := proc.Read(os.Getpid())
	if err != nil {
		return err
	}
	s := newState(cfg.Spec, cfg.Log)
	s.outcome = newOutcome(cfg.Folder.Path(), boot, s.kept, s.attended, s.limited)
	state := shim.State{Boot: boot, Shim: self}
	var group cgroup.Group
	if s.spec.Runner != nil {
		group = cgroup.Create(shim.GroupName(s.spec.Life))
		state.Groups = group.Dirs()
	}
	if err := shim.WriteState(cfg.Folder.Path(), state); err != nil {
		_ = group.Remove()
		return err
	}
	var out *output
	if s.spec.Container != nil {
		if out, err = openFIFOs(s.spec, cfg.Folder.Path(), s.log); err != nil {
			return err
		}
		defer out.close()
		s.output = out
	}
	listener, err := cfg.Folder.Listen()
	if err != nil {
		_ = group.Remove()
		return err
	}

	var running sync.WaitGroup
	s.startClocks()
	running.Go(func() { (&acceptor{state: s, running: &running}).accept(listener) })
	running.Go(func() { s.outcome.keep(s.quit) })
	ready()
	runner := &life{state: s, folder: cfg.Folder.Path(), connector: &connector{state: s, dial: cfg.Dial}}
	running.Go(func() { runner.run(ctx, group, out, state) })

	<-s.quit
	s.clock.Stop()
	s.deadline.Stop()
	listener.Close()
	s.mu.Lock()
	last := s.session
	s.mu.Unlock()
	if last != nil {
		last.drain()
	}
	running.Wait()
	return nil
}
