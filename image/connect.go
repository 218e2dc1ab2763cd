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

// connectTimeout is how long a containerd may take to say its version.
const connectTimeout = 5 * time.Second

// Connect connects to the containerd whose socket is at address and has it
// answer. Should containerd be restarted later, the client finds it again. The
// error is one line that says what is wrong and what to do, of class
// ErrUnavailable, or ErrPermissionDenied where the socket may not be used. The
// calls that the client makes are told to observe, which may be nil.
func Connect(ctx context.Context, address, namespace string, observe Observer) (*containerd.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// The client connects only when it is first used and then says little of
	// why it cannot, so the socket is tried by hand first.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err != nil {
		return nil, dialFailure(address, err)
	}
	conn.Close()
	client, err := containerd.New(address, containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(connectTimeout),
		containerd.WithExtraDialOpts(calls(observe)))
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
		return failf(errdefs.ErrPermissionDenied, "containerd's socket %s may not be used by this user; run shepherdd as root, or give the socket to a group of it (gid below [grpc] in containerd's config.toml)", address)
	case errors.Is(err, syscall.ECONNREFUSED):
		if info, serr := os.Stat(address); serr == nil && info.Mode()&fs.ModeSocket == 0 {
			return failf(errdefs.ErrUnavailable, "%s is no socket; set containerd.address to containerd's", address)
		}
		return failf(errdefs.ErrUnavailable, "nothing listens on containerd's socket %s; start containerd (systemctl start containerd)", address)
	}
	return failf(errdefs.ErrUnavailable, "containerd cannot be reached at %s: %v", address, err)
}
