package image

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
)

// Observer is called after every attempt of a request to a registry or call to
// containerd, with its kind, the time until the response came, and its error, which
// has a class, or nil. It is called from many goroutines and must return at once.
type Observer func(op string, took time.Duration, err error)

func ignoreObservation(string, time.Duration, error) {}

// requestKind returns the kind of a request to a registry: manifest, blob, token or
// other.
func requestKind(req *http.Request) string {
	path := original(req).URL.Path // a redirect does not change the kind
	switch {
	case !strings.HasPrefix(path, "/v2/"):
		return "token"
	case strings.Contains(path, "/manifests/"):
		return "manifest"
	case strings.Contains(path, "/blobs/"):
		return "blob"
	}
	return "other"
}

// responseError is the error that an Observer gets for a response; nil for success. It
// is of class ErrUnauthenticated for most first requests, which have no token.
func responseError(resp *http.Response, err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	var class error
	switch status := resp.StatusCode; {
	case status < 400:
		return nil
	case status == http.StatusUnauthorized:
		class = errdefs.ErrUnauthenticated
	case status == http.StatusForbidden:
		class = errdefs.ErrPermissionDenied
	case status == http.StatusNotFound:
		class = errdefs.ErrNotFound
	case isTransient(status) || status >= 500:
		class = errdefs.ErrUnavailable
	default:
		class = errdefs.ErrInvalidArgument
	}
	return fmt.Errorf("%s: %w", resp.Status, class)
}

// observeCalls returns dial options that call observe after each unary call, with its
// short name, such as Containers/Create. observe may be nil.
func observeCalls(observe Observer) []grpc.DialOption {
	if observe == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			sent := time.Now()
			err := invoke(ctx, method, req, reply, cc, opts...)
			service, call, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
			observe(service[strings.LastIndexByte(service, '.')+1:]+"/"+call, time.Since(sent), errgrpc.ToNative(err))
			return err
		})}
}
