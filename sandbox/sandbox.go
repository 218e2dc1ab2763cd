// Package sandbox is what the original's docker-compose sandbox was, without
// Docker and in one process: an S3 store and an OCI registry for trying shepherd
// on one machine, with the ports and the keys that the example configurations
// name. It guards nothing: its keys are public knowledge, and its registry has
// no users.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/lifetime"
	"github.com/iterait/shepherd/sandbox/registry"
	"github.com/iterait/shepherd/storage/embedded"
)

// The keys of the storage: those of the original's sandbox, which Amazon's
// documentation shows as examples.
const (
	AccessKey = "AKIAIOSFODNN7EXAMPLE"
	SecretKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// The ports of the original's sandbox.
const (
	StoragePort  = 7000
	RegistryPort = 6000
)

// Limits that keep idle or slow clients from costing much.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	drainTimeout  = 10 * time.Second
)

// Config is what a Sandbox needs.
type Config struct {
	Dir             string // is made where missing; holds storage/ and registry/
	StorageAddress  string // to listen on, as HOST:PORT; port 0 picks a free one
	RegistryAddress string
	Log             *slog.Logger
}

// Sandbox is a storage and a registry with bound addresses.
type Sandbox struct {
	storage  *embedded.Server
	listener net.Listener // of the registry
	http     *http.Server

	stop     context.CancelFunc // ends Serve
	stopped  context.Context
	mu       sync.Mutex // held by Serve, and by Close once Serve has ended
	closed   bool
	closeErr error
}

// Open opens the directory and binds both addresses. Another sandbox with the
// same directory makes it fail with class errdefs.ErrFailedPrecondition.
func Open(c Config) (*Sandbox, error) {
	s := &Sandbox{}
	var err error
	// The storage comes first, for its lock on the directory.
	s.storage, err = embedded.Open(embedded.Config{
		Dir: filepath.Join(c.Dir, "storage"), Listen: c.StorageAddress,
		AccessKey: AccessKey, SecretKey: SecretKey, Log: c.Log.With("part", "storage"),
	})
	if err != nil {
		return nil, fmt.Errorf("open the sandbox's storage: %w", err)
	}
	images, err := registry.Open(registry.Config{Dir: filepath.Join(c.Dir, "registry"), Log: c.Log.With("part", "registry")})
	if err == nil {
		s.listener, err = net.Listen("tcp", c.RegistryAddress)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the sandbox's registry: %w", err), s.storage.Close())
	}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           images,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// StorageAddr is the address of the S3 store, such as "127.0.0.1:7000".
func (s *Sandbox) StorageAddr() string { return s.storage.Addr() }

// RegistryAddr is the address of the registry, such as "127.0.0.1:6000".
func (s *Sandbox) RegistryAddr() string { return s.listener.Addr().String() }

// Serve answers requests until ctx ends, Close is called or one of the two
// fails. It then lets the requests under way finish, up to ten seconds. It
// serves once, and returns nil unless something failed.
func (s *Sandbox) Serve(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)()

	var both sync.WaitGroup
	var storageErr error
	both.Go(func() {
		storageErr = s.storage.Serve(ctx)
		cancel()
	})
	err := lifetime.Serve(ctx, s.http, s.listener, drainTimeout)
	if err != nil {
		err = fmt.Errorf("serve the registry on %s: %w", s.RegistryAddr(), err)
	}
	cancel()
	both.Wait()
	return errors.Join(err, storageErr)
}

// Close ends Serve as the end of its ctx does, waits for it, and lets another
// process open the directory. It may be called before Serve, and twice.
func (s *Sandbox) Close() error {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.http.Close() // the listener, when Serve never ran
		s.listener.Close()
		s.closeErr = s.storage.Close()
	}
	return s.closeErr
}
