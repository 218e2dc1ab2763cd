// Package embedded is an S3 server for one machine, inside the daemon: for any
// S3 client, over a directory of the local file system.
//
// # Parts
//
// A request is looked up in a table of operations (operations.go): its method,
// what its path and host name (hosts.go), its sub-resource and the headers that
// change its meaning. A request that is not in the table is refused and has no
// effect. Its signature is checked by AWS Signature Version 4 (sigv4.go) or 2
// (sigv2.go). Its body is decoded from chunks, if it has any, and checked against
// every digest that the client sent (payload.go, chunks.go). Then the operation's
// handler answers it (buckets.go, list.go, objects.go, multipart.go, form.go).
// Package internal/folder stores the objects and provides durability.
//
// # Promises
//
// When a write is answered with success, its data and names have been fsynced. A
// write that was not answered is stored completely or not at all. Memory does not
// grow with the size of objects, nor with the number of objects, buckets or
// uploads. If the disk is full the answer has status 507, code
// InsufficientStorage, and stored objects are not affected. Without the right keys
// all answers are errors.
//
// docs/decisions/embedded-storage.md says why it is built so.
package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/lifetime"
	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// Limits that keep idle, slow or hostile clients from costing much.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	drainTimeout  = 10 * time.Second
	reapAtMost    = time.Hour // between two looks for orphaned uploads

	defaultUploadExpiry = 7 * 24 * time.Hour
)

// Config is what a Server needs.
type Config struct {
	Dir    string // is made where missing
	Listen string // "127.0.0.1:0" picks a free port

	// The keys that clients sign with. Both are required; see Credentials.
	AccessKey string
	SecretKey string

	// Domains are the names that clients reach the server by, for virtual-hosted
	// addressing: with "s3.example.com", the host "bucket.s3.example.com" names a
	// bucket. "localhost" is always one.
	Domains []string

	// AllowedOrigins are the web pages that browsers let use the server, such as
	// "https://app.example.com"; "*" is any. A signature is needed all the same.
	AllowedOrigins []string

	// MinFree is how many bytes of the directory's disk stay free: uploads and new
	// jobs that would take from them are refused. What jobs under way and the
	// completion of uploads need may be taken from them. 0: none.
	MinFree int64

	// UploadExpiry is how long a multipart upload may go without a new part
	// before it is given up. 0: seven days.
	UploadExpiry time.Duration

	Log *slog.Logger
}

// Server is an open storage directory with a bound address.
type Server struct {
	config   Config
	store    *folder.Store
	listener net.Listener
	http     *http.Server
	handler  *handler

	stop     context.CancelFunc // ends Serve
	stopped  context.Context
	mu       sync.Mutex // held by Serve, and by Close once Serve has ended
	closed   bool
	closeErr error
}

// Open puts the directory right after whatever ended the last process, gives up
// expired uploads, and binds the address. Clients that connect are answered
// once Serve runs. Another process with the same directory open makes it fail
// with class errdefs.ErrFailedPrecondition.
func Open(c Config) (*Server, error) {
	if c.AccessKey == "" || c.SecretKey == "" {
		return nil, errors.New("open embedded storage: access key and secret key are needed")
	}
	c.UploadExpiry = cmp.Or(c.UploadExpiry, defaultUploadExpiry)
	store, err := folder.Open(c.Dir, c.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, store: store}
	s.reap()
	if s.listener, err = net.Listen("tcp", c.Listen); err != nil {
		return nil, errors.Join(fmt.Errorf("open embedded storage: %w", err), store.Close())
	}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.handler = newHandler(store, c)
	s.http = &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Addr is the address that clients connect to, such as "127.0.0.1:9000".
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Serve answers requests until ctx ends or Close is called. It then lets the
// requests under way finish, up to ten seconds, and returns nil. It serves
// once.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)()

	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { s.reapUntil(ctx) })
	err := lifetime.Serve(ctx, s.http, s.listener, drainTimeout)
	s.handler.wait() // for those whose connection was closed
	cancel()
	if err != nil {
		return fmt.Errorf("serve embedded storage on %s: %w", s.Addr(), err)
	}
	return nil
}

// Close ends Serve as the end of its ctx does, waits for it, and lets another
// process open the directory. It may be called before Serve, and twice.
func (s *Server) Close() error {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.http.Close() // the listener, when Serve never ran
		s.listener.Close()
		s.closeErr = s.store.Close()
	}
	return s.closeErr
}

// reapUntil gives up expired uploads from time to time.
func (s *Server) reapUntil(ctx context.Context) {
	ticker := time.NewTicker(min(reapAtMost, max(s.config.UploadExpiry/4, time.Second)))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.reap()
		}
	}
}

func (s *Server) reap() {
	n, err := s.store.ReapUploads(time.Now().Add(-s.config.UploadExpiry))
	if err != nil {
		s.config.Log.Error("expired uploads could not be removed", "error", err)
	}
	if n > 0 {
		s.config.Log.Info("gave up uploads that went without a new part for too long", "uploads", n, "expiry", s.config.UploadExpiry)
	}
}
