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

// Observer is told of every request to a registry or call of containerd, tried
// again or not: what it was for, how long its answer took to come, and, as an
// error with a class, what was wrong with it. It is called from many goroutines
// and returns at once.
type Observer func(op string, took time.Duration, err error)

func unobserved(string, time.Duration, error) {}

// purpose is what a request to a registry is for: a manifest, blob, token or other.
func purpose(req *http.Request) string {
	path := original(req).URL.Path // one that was redirected is for what it was for at first
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

// answered is what an Observer is told of an answer. A first request without a
// token is answered as unauthenticated as a rule.
func answered(resp *http.Response, err error) error {
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
	case passing(status) || status >= 500:
		class = errdefs.ErrUnavailable
	default:
		class = errdefs.ErrInvalidArgument
	}
	return fmt.Errorf("%s: %w", resp.Status, class)
}

// calls has observe told of every call that is one question and one answer, by
// its short name: Containers/Create.
func calls(observe Observer) []grpc.DialOption {
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
