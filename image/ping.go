package image

import (
	"context"
	"fmt"
	"net/http"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// Ping asks the registry whether it is there and lets in whom the configuration
// names, without pulling anything; whether it would let them pull a certain
// image is not asked. The error is one line that says what is wrong and what to
// do, of the same classes as those of Store.Ensure.
func (r Registry) Ping(ctx context.Context) error {
	s, err := newStore(Config{Registry: r})
	if err != nil {
		return err
	}
	defer s.Close()
	s.retries = brief
	client := &http.Client{Transport: &persistent{base: s.transport, retries: brief}}
	authorizer := s.currentAuthorizer()
	err = func() error {
		for attempt := 1; ; attempt++ {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.api.scheme+"://"+s.api.host+"/v2/", nil)
			if err != nil {
				return err
			}
			request.Header.Set("User-Agent", "shepherd")
			if err := authorizer.Authorize(ctx, request); err != nil {
				return err
			}
			response, err := client.Do(request)
			if err != nil {
				return err
			}
			if response.StatusCode == http.StatusUnauthorized && attempt == 1 {
				response.Body.Close()
				if err := authorizer.AddResponses(ctx, []*http.Response{response}); err != nil {
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
	}()
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("ask registry %s: %w", s.endpoint.host, context.Cause(ctx))
	}
	if err != nil {
		return s.explanation(err)
	}
	return nil
}
