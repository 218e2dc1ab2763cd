// Package sandbox replaces the original's docker-compose sandbox with one process: an S3
// store and an OCI registry for trying shepherd on one machine, with the ports and keys of
// the example configurations. It is not secure: its keys are public, and its registry has
// no authentication.
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

// The keys of the storage: those of the original's sandbox, which are examples in Amazon's
// documentation.
const (
	AccessKey = "AKIAIOSFODNN7EXAMPLE"
	SecretKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// The ports of the original's sandbox.
const (
	StoragePort  = 7000
	RegistryPort = 6000
)

// Time limits for idle and slow clients, and for requests under way when Serve ends.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	drainTimeout  = 10 * time.Second
)

// Config configures a Sandbox.
type Config struct {
	Dir             string // created if missing; holds storage/ and registry/
	StorageAddress  string // to listen on, as HOST:PORT; port 0 chooses a free one
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

// Open opens the directory and binds both addresses. If another sandbox uses the directory,
// the error is of class errdefs.ErrFailedPrecondition.
func Open(c Config) (*Sandbox, error) {
	s := &Sandbox{}
	var err error
	// The storage is opened first, because it locks the directory.
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

// Serve handles requests until ctx ends, Close is called or one of the two servers fails.
// Requests under way may then take up to ten seconds to finish. It can be called once, and
// returns nil unless a server failed.
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

// Close ends Serve like the end of its ctx, waits for it, and releases the directory. It
// may be called before Serve, and twice.
func (s *Sandbox) Close() error {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.http.Close() // closes the listener if Serve was never called
		s.listener.Close()
		s.closeErr = s.storage.Close()
	}
	return s.closeErr
}
