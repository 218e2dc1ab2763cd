package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/heldconn"
	"github.com/iterait/shepherd/internal/systemd"
	"github.com/iterait/shepherd/job"
)

// Limits of a request's headers: the time to receive them, and their size in bytes.
const (
	headerTime = 10 * time.Second
	maxHeaders = 64 << 10
)

// idleTime is how long a connection is kept without a request.
const idleTime = 2 * time.Minute

// listeners are the daemon's listening sockets with their servers: the network, which serves
// the API, and the unix socket, which also serves the routes for administrators. They are
// opened first: a daemon that cannot be reached must not start.
type listeners struct {
	network       []net.Listener // several if the service manager passes several
	socket        net.Listener
	host          string // of the network, as configured
	path          string // of the socket
	removeAddress func()
	admission
	serving
}

// admission decides who may connect and send requests. A reload changes it.
type admission struct {
	local        access.Local
	gate         *access.Gate
	browsers     *api.Browsers
	tls          *tls.Config // of the network; nil for none
	certificates atomic.Bool // a client certificate is the only accepted credential
}

// serving holds the servers and their limits.
type serving struct {
	headerTime   time.Duration // for the headers of a request
	readTime     time.Duration // for a whole request
	maxPerCaller int           // connections from one address

	servers     []*http.Server
	holders     []*heldconn.Holder // of the servers
	started     int                // calls that serve
	ended       chan error         // receives the error of each of them
	connections atomic.Int64
}

// openListeners opens the sockets of the service manager or the configuration, and writes
// the API's address to the state directory.
func openListeners(cfg *config.Config, manager *systemd.Manager, log *slog.Logger) (_ *listeners, err error) {
	l := &listeners{
		host: cfg.API.Host, removeAddress: func() {},
		admission: admission{gate: new(access.Gate), browsers: new(api.Browsers)},
		serving:   serving{headerTime: headerTime, readTime: cfg.API.ReadTimeout, maxPerCaller: cfg.API.MaxConnections},
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	l.local.UID = uint32(os.Geteuid())
	if l.local.Group, err = groupID(cfg.API.SocketGroup); err != nil {
		return nil, err
	}
	if err := l.setAccess(cfg.API); err != nil {
		return nil, err
	}
	if l.tls, err = tlsOf(cfg.API, l.certificates.Load, log); err != nil {
		return nil, err
	}
	if l.network = manager.Listeners("tcp"); len(l.network) > 0 {
		l.useManagerAddress(cfg, log)
	} else {
		one, err := listen(cfg.API.Host, cfg.API.Port)
		if err != nil {
			return nil, err
		}
		l.network = []net.Listener{one}
	}
	if l.path, err = filepath.Abs(cfg.API.Socket); err != nil {
		return nil, fmt.Errorf("the socket %s: %w", cfg.API.Socket, err)
	}
	if sockets := manager.Listeners("unix"); len(sockets) > 1 {
		for _, s := range sockets {
			s.Close()
		}
		return nil, errors.New("systemd listens on more than one local socket for shepherdd; keep one (`systemctl edit shepherdd.socket`)")
	} else if len(sockets) == 1 {
		l.socket = sockets[0]
		l.path = l.socket.Addr().String()
	} else if l.socket, err = access.Listen(l.path, l.local.Group); err != nil {
		return nil, err
	}
	l.removeAddress, err = writeAddress(cfg.StateDir, "unix://"+l.path)
	return l, err
}

// useManagerAddress takes the host from the service manager's listener, and warns if the
// configuration has another address.
func (l *listeners) useManagerAddress(cfg *config.Config, log *slog.Logger) {
	at := l.network[0].Addr().(*net.TCPAddr)
	for _, other := range l.network[1:] {
		// Warn about the most widely reachable address.
		if a := other.Addr().(*net.TCPAddr); a.IP.IsUnspecified() && !at.IP.IsUnspecified() || !a.IP.IsLoopback() && at.IP.IsLoopback() {
			at = a
		}
	}
	host, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(cfg.API.Host, "0"))
	same := err == nil && (host.IP.Equal(at.IP) || (host.IP == nil || host.IP.IsUnspecified()) && at.IP.IsUnspecified())
	if !same || cfg.API.Port != at.Port {
		log.Warn("The API is served where systemd listens, not where the configuration says; change one of them: `systemctl edit shepherdd.socket`, or api.host and api.port",
			"systemd", at, "configuration", net.JoinHostPort(cfg.API.Host, strconv.Itoa(cfg.API.Port)))
	}
	l.host = at.IP.String()
}

// serves returns the configuration with the address of the network listener.
func (l *listeners) serves(c config.API) config.API {
	c.Host, c.Port = l.host, l.network[0].Addr().(*net.TCPAddr).Port
	return c
}

// url returns the API's URL with the configured host and the actual port.
func (l *listeners) url() string { return l.urlOn(l.host) }

// urlFrom returns the API's URL for other machines, which know this one by name.
func (l *listeners) urlFrom(name string) string {
	if ip, err := netip.ParseAddr(l.host); err == nil && ip.IsUnspecified() {
		return l.urlOn(name)
	}
	return l.url()
}

func (l *listeners) urlOn(host string) string {
	scheme := "http"
	if l.tls != nil {
		scheme = "https"
	}
	return scheme + "://" + hostPort(host, l.network[0])
}

// serve starts servers for the network and the socket with their handlers. base is the
// context of every request. The returned channel receives the error of each server that
// ends.
func (l *listeners) serve(base context.Context, network, socket http.Handler, log *slog.Logger) <-chan error {
	l.ended = make(chan error, 2*(len(l.network)+1))
	refused := sometimes(time.Minute, func(address string) {
		log.Warn("A caller has too many open connections; further ones are closed", "address", address, "max_connections", l.maxPerCaller)
	})
	start := func(handler http.Handler, listener net.Listener, tls *tls.Config, read, write time.Duration) {
		holder := heldconn.New(listener.Addr(), idleTime)
		context.AfterFunc(base, func() { holder.End(context.Cause(base)) })
		server := &http.Server{
			Handler:           handler,
			TLSConfig:         tls,
			ReadHeaderTimeout: l.headerTime,
			ReadTimeout:       read,
			WriteTimeout:      write,
			IdleTimeout:       idleTime,
			MaxHeaderBytes:    maxHeaders,
			BaseContext:       func(net.Listener) context.Context { return base },
			ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
				return holder.ConnContext(access.Arrive(ctx, conn), conn)
			},
			ConnState: l.count,
			ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		}
		l.servers, l.holders = append(l.servers, server), append(l.holders, holder)
		serve := func(serve func() error) {
			l.started++
			go func() { l.ended <- serve() }()
		}
		if tls != nil {
			serve(func() error { return server.ServeTLS(listener, "", "") })
			return // connections with TLS are not held
		}
		serve(func() error { return server.Serve(listener) })
		serve(func() error { return server.Serve(holder) })
	}
	// Handlers that wait, or transfer much data, extend these timeouts for their request.
	for _, listener := range l.network {
		start(network, access.LimitConnections(listener, l.maxPerCaller, refused), l.tls, l.readTime, l.readTime+time.Minute)
	}
	start(socket, l.socket, nil, 0, 0)
	return l.ended
}

// sometimes calls f at most once in the given time.
func sometimes(every time.Duration, f func(string)) func(string) {
	var mu sync.Mutex
	var last time.Time
	return func(s string) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); last.IsZero() || now.Sub(last) >= every {
			last = now
			f(s)
		}
	}
}

// all returns the open listening sockets.
func (l *listeners) all() []net.Listener {
	all := slices.Clone(l.network)
	if l.socket != nil {
		all = append(all, l.socket)
	}
	return all
}

// count tracks the number of open connections.
func (s *serving) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.connections.Add(-1)
	}
}

// open returns the number of connections that have a request or wait for one.
func (s *serving) open() int {
	n := int(s.connections.Load())
	for _, holder := range s.holders {
		n += holder.Held()
	}
	return n
}

// stopAccepting closes the listeners, so that new connections wait for the next daemon if
// the service manager also holds the sockets. It returns when the open connections have been
// answered, or ctx has ended. http.Server.Shutdown alone would drop requests that have just
// arrived.
func (l *listeners) stopAccepting(ctx context.Context) {
	for _, listener := range l.all() {
		_ = listener.Close() // shutdown receives the error from the server
	}
	for i, server := range l.servers {
		server.SetKeepAlivesEnabled(false)
		_ = l.holders[i].Close() // never fails
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for l.open() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// shutdown shuts the servers down when open requests have been answered or ctx has ended,
// and returns their errors. ended is the number of errors that the caller has received
// already.
func (l *listeners) shutdown(ctx context.Context, ended int) (err error) {
	for _, holder := range l.holders {
		holder.End(job.ErrDraining)
	}
	for i, server := range l.servers {
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
		l.holders[i].Wait(ctx)
	}
	for range l.started - ended {
		if e := <-l.ended; !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// close closes the listeners. It may be called at any time and more than once.
func (l *listeners) close() {
	l.removeAddress()
	for _, listener := range l.all() {
		_ = listener.Close() // usually the server has closed it already
	}
}

// groupID returns the id of a group given by name or number; nil for none.
func groupID(name string) (*uint32, error) {
	if name == "" {
		return nil, nil
	}
	text := name
	if g, err := user.LookupGroup(name); err == nil {
		text = g.Gid
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("there is no group %q on this machine: create it (groupadd --system %s), or set api.socket_group to another", name, name)
	}
	id := uint32(n)
	return &id, nil
}

func listen(host string, port int) (net.Listener, error) {
	at := net.JoinHostPort(host, strconv.Itoa(port))
	l, err := net.Listen("tcp", at)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("the API cannot listen on %s: something else does, perhaps another shepherdd; stop it or choose another port with -p", at)
	}
	if err != nil {
		return nil, fmt.Errorf("the API cannot listen on %s: %w", at, err)
	}
	return l, nil
}

// hostPort combines the configured host with the listener's port.
func hostPort(host string, l net.Listener) string {
	return net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}
