package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/systemd"
)

// headerTime bounds how long the headers of a request may take to come.
const headerTime = 10 * time.Second

// doors are where the daemon is reached: the API on the network, and the same
// with more beside it on the socket for those who administer the machine. They
// are open, though nobody serves at them yet, before anything else starts: a
// daemon that cannot be reached should not have begun.
type doors struct {
	network net.Listener
	socket  net.Listener
	host    string // of the network, as it was asked for
	path    string // of the socket
	local   access.Local
	gate    *access.Gate
	tls     *tls.Config // of the network; nil for none

	readTime time.Duration
	forget   func()

	servers     []*http.Server
	ended       chan error
	connections atomic.Int64
}

// openDoors listens, and notes in the state directory where.
func openDoors(cfg *config.Config, manager *systemd.Manager, log *slog.Logger) (_ *doors, err error) {
	d := &doors{host: cfg.API.Host, readTime: cfg.API.ReadTimeout, gate: new(access.Gate), forget: func() {}}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	d.local.UID = uint32(os.Geteuid())
	if d.local.Group, err = groupID(cfg.API.SocketGroup); err != nil {
		return nil, err
	}
	if err := d.admit(cfg.API); err != nil {
		return nil, err
	}
	if d.tls, err = tlsOf(cfg.API, log); err != nil {
		return nil, err
	}
	if d.network = manager.Listener("tcp"); d.network != nil {
		d.handed(cfg, log)
	} else if d.network, err = listen(cfg.API.Host, cfg.API.Port); err != nil {
		return nil, err
	}
	if d.path, err = filepath.Abs(cfg.API.Socket); err != nil {
		return nil, fmt.Errorf("the socket %s: %w", cfg.API.Socket, err)
	}
	if d.socket = manager.Listener("unix"); d.socket != nil {
		d.path = d.socket.Addr().String()
	} else if d.socket, err = access.Listen(d.path, d.local.Group); err != nil {
		return nil, err
	}
	d.forget, err = announce(cfg.StateDir, "unix://"+d.path)
	return d, err
}

// handed says where the service manager listens, if that is not where the
// configuration says.
func (d *doors) handed(cfg *config.Config, log *slog.Logger) {
	at := d.network.Addr().(*net.TCPAddr)
	host, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(cfg.API.Host, "0"))
	same := err == nil && (host.IP.Equal(at.IP) || (host.IP == nil || host.IP.IsUnspecified()) && at.IP.IsUnspecified())
	if !same || cfg.API.Port != at.Port {
		log.Warn("The API is served where systemd listens, not where the configuration says; change one of them: `systemctl edit shepherdd.socket`, or api.host and api.port",
			"systemd", at, "configuration", net.JoinHostPort(cfg.API.Host, strconv.Itoa(cfg.API.Port)))
	}
	d.host = at.IP.String()
}

// serves is the configuration with the address that is listened on in truth.
func (d *doors) serves(c config.API) config.API {
	c.Host, c.Port = d.host, d.network.Addr().(*net.TCPAddr).Port
	return c
}

// url is the network's, as it is shown: the host as asked for, the port as it
// came out.
func (d *doors) url() string {
	scheme := "http"
	if d.tls != nil {
		scheme = "https"
	}
	return scheme + "://" + address(d.host, d.network)
}

// serve begins to serve: network for all that come from there, socket for the
// other. base is the context of every request. What it returns receives the
// error of the first server that ends.
func (d *doors) serve(base context.Context, network, socket http.Handler, log *slog.Logger) <-chan error {
	d.ended = make(chan error, 2)
	begin := func(handler http.Handler, serve func(*http.Server) error, read, write time.Duration) {
		server := &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: headerTime,
			ReadTimeout:       read,
			WriteTimeout:      write,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    64 << 10,
			BaseContext:       func(net.Listener) context.Context { return base },
			ConnContext:       access.Arrive,
			ConnState:         d.count,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		}
		d.servers = append(d.servers, server)
		go func() { d.ended <- serve(server) }()
	}
	// What takes long of itself, to wait or to be downloaded, lifts these bounds.
	begin(network, func(server *http.Server) error {
		if d.tls == nil {
			return server.Serve(d.network)
		}
		server.TLSConfig = d.tls
		return server.ServeTLS(d.network, "", "")
	}, d.readTime, d.readTime+time.Minute)
	begin(socket, func(server *http.Server) error { return server.Serve(d.socket) }, 0, 0)
	return d.ended
}

// count keeps the number of connections that are not at an end.
func (d *doors) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		d.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		d.connections.Add(-1)
	}
}

// turnAway listens no more, so that who comes waits for the next daemon where the
// service manager listens, too; it returns when all who came before have been
// answered, or ctx has ended. A server's Shutdown alone would drop requests that
// have just arrived.
func (d *doors) turnAway(ctx context.Context) {
	for _, l := range []net.Listener{d.network, d.socket} {
		_ = l.Close() // shut hears of it from the server
	}
	for _, server := range d.servers {
		server.SetKeepAlivesEnabled(false)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for d.connections.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// shut ends serving once the requests under way have been answered, or ctx has
// ended, and returns what went wrong with any of the servers; ended says how many
// of them the caller has heard of already.
func (d *doors) shut(ctx context.Context, ended int) (err error) {
	for _, server := range d.servers {
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	}
	for range len(d.servers) - ended {
		if e := <-d.ended; !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// close is safe at any time and more than once.
func (d *doors) close() {
	d.forget()
	for _, l := range []net.Listener{d.network, d.socket} {
		if l != nil {
			_ = l.Close() // closed already by the server that served it, mostly
		}
	}
}

// groupID is the number of a group that is named, or given by its number; nil
// for none.
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
		return nil, fmt.Errorf("there is no group %q on this machine: make it (groupadd --system %s), or set api.socket_group to another", name, name)
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

// address is what is shown: the host as asked for, the port as it came out.
func address(host string, l net.Listener) string {
	return net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}
