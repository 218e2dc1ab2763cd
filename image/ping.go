package image

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// Ping checks that the registry answers and accepts the configured credentials. It
// pulls nothing and does not check access to any image. The error is one line that says
// what is wrong and what to do, with the classes of Store.Ensure.
func (r Registry) Ping(ctx context.Context) error {
	s, err := newRemote(r, 1, ignoreObservation, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.transport.CloseIdleConnections()
	s.retries = brief
	err = s.ping(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("ask registry %s: %w", s.endpoint.Host, context.Cause(ctx))
	}
	if err != nil {
		return s.explanation(err)
	}
	return nil
}

// ping requests the API's root of the last host, which is the registry itself unless
// hosts.toml says otherwise; a second time with credentials if the host asks for them.
func (s *remote) ping(ctx context.Context) error {
	hosts, done, err := s.hosts(ctx, s.endpoint.Name(""), brief)
	if err != nil {
		return err
	}
	defer done()
	host := hosts[len(hosts)-1]
	for attempt := 1; ; attempt++ {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, host.Scheme+"://"+host.Host+host.Path+"/", nil)
		if err != nil {
			return err
		}
		request.Header.Set("User-Agent", "shepherd")
		if err := host.Authorizer.Authorize(ctx, request); err != nil {
			return err
		}
		response, err := host.Client.Do(request)
		if err != nil {
			return err
		}
		if response.StatusCode == http.StatusUnauthorized && attempt == 1 {
			response.Body.Close()
			if err := host.Authorizer.AddResponses(ctx, []*http.Response{response}); err != nil {
				return err
			}
			continue
		}
		if response.StatusCode != http.StatusOK {
			err = remoteerrors.NewUnexpectedStatusErr(response)
		}
		response.Body.Close()
		return err
	}
}
