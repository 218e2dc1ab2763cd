package image

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
)

// connectTimeout is how long containerd may take to answer the Version call.
const connectTimeout = 5 * time.Second

// Connect connects to containerd's socket at address and checks that it answers.
// The client reconnects by itself when containerd is restarted. The error is one
// line that says what is wrong and what to do; its class is ErrPermissionDenied
// where the user may not open the socket, else ErrUnavailable. observe is called
// after each unary call of the client; it may be nil.
func Connect(ctx context.Context, address, namespace string, observe Observer) (*containerd.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// The client connects when it is first used, and its error says little about
	// the cause, so the socket is dialed directly first.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err != nil {
		return nil, dialFailure(address, err)
	}
	conn.Close()
	client, err := containerd.New(address, containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(connectTimeout),
		containerd.WithExtraDialOpts(observeCalls(observe)))
	if err != nil {
		return nil, failf(errdefs.ErrUnavailable, "connect to containerd at %s: %v", address, err)
	}
	if _, err := client.Version(ctx); err != nil {
		client.Close()
		if errors.Is(context.Cause(ctx), context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
			return nil, failf(errdefs.ErrUnavailable, "what listens on %s did not answer as containerd within %s; check containerd.address", address, connectTimeout)
		}
		return nil, failf(errdefs.ErrUnavailable, "what listens on %s does not answer as containerd (%v); check containerd.address", address, err)
	}
	return client, nil
}

func dialFailure(address string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failf(errdefs.ErrUnavailable, "containerd's socket %s does not exist; install and start containerd (apt-get install containerd runc), or set containerd.address", address)
	case errors.Is(err, fs.ErrPermission):
		return failf(errdefs.ErrPermissionDenied, "this user may not connect to containerd's socket %s; run shepherdd as root, or give the socket to one of the user's groups (gid below [grpc] in containerd's config.toml)", address)
	case errors.Is(err, syscall.ECONNREFUSED):
		if info, serr := os.Stat(address); serr == nil && info.Mode()&fs.ModeSocket == 0 {
			return failf(errdefs.ErrUnavailable, "%s is not a socket; set containerd.address to containerd's socket", address)
		}
		return failf(errdefs.ErrUnavailable, "nothing listens on containerd's socket %s; start containerd (systemctl start containerd)", address)
	}
	return failf(errdefs.ErrUnavailable, "containerd cannot be reached at %s: %v", address, err)
}
