package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sync/semaphore"

	"github.com/iterait/shepherd/image/endpoint"
)

// remote is the client of the registry and of the hosts that mirror it.
type remote struct {
	registry  Registry
	endpoint  endpoint.Endpoint
	api       endpoint.Endpoint // of the registry's API; it differs from endpoint for Docker Hub
	platform  platform          // of this machine
	transport *http.Transport
	downloads *semaphore.Weighted // limits the layers fetched at once, over all images
	retries   retryPolicy
	observe   Observer
	log       *slog.Logger
	auth      authorizers
}

// newRemote makes a remote that fetches at most downloads layers at once. It sends no
// request.
func newRemote(registry Registry, downloads int, observe Observer, log *slog.Logger) (*remote, error) {
	e, err := parseEndpoint(registry.URL)
	if err != nil {
		return nil, err
	}
	if registry.Password != "" && registry.PasswordFile != "" {
		return nil, errors.New("registry.password and registry.password_file are both set: keep one")
	}
	if registry.Username == "" && (registry.Password != "" || registry.PasswordFile != "") {
		return nil, errors.New("registry.username is missing: a password alone cannot be used")
	}
	transport, err := newTransport(registry.CAFile)
	if err != nil {
		return nil, err
	}
	s := &remote{
		registry: registry, endpoint: e, api: e,
		platform:  platform(platforms.DefaultString()),
		transport: transport,
		downloads: semaphore.NewWeighted(int64(downloads)),
		retries:   patient,
		observe:   observe,
		log:       log,
		auth:      authorizers{byKey: map[authorizerKey]*cachedAuthorizer{}, hosts: map[string]bool{}},
	}
	if s.api.Host, err = docker.DefaultHost(e.Host); err != nil {
		return nil, fmt.Errorf("registry.url: %w", err)
	}
	return s, nil
}

// defaultHostsDirs returns the directories in which containerd and Docker look for
// registries' hosts and certificates. The first one with a directory for the registry
// is used.
func defaultHostsDirs() []string {
	return []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}
}

// resolver returns a resolver for one repository, which asks the registry or its
// mirrors. The caller calls close after its last use.
func (s *remote) resolver(ctx context.Context, repository string, policy retryPolicy) (r remotes.Resolver, close func(), err error) {
	hosts, close, err := s.hosts(ctx, repository, policy)
	if err != nil {
		return nil, nil, err
	}
	r = docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return hosts, nil },
		Headers: http.Header{"User-Agent": {"shepherd"}},
	})
	if o, ok := r.(remotes.ResolverWithOptions); ok {
		o.SetOptions(transfer.WithDownloadLimiter(s.downloads))
	}
	return r, close, nil
}

// hosts returns the hosts to ask for a repository's images, in order: those of
// hosts.toml in the registry's directory, or the registry itself. All but the last are
// retried briefly only, because the next one can serve instead. The caller calls close
// after the last use of the hosts.
func (s *remote) hosts(ctx context.Context, repository string, policy retryPolicy) (hosts []docker.RegistryHost, close func(), err error) {
	hosts = []docker.RegistryHost{{
		Client: &http.Client{Transport: s.transport}, Host: s.api.Host, Scheme: s.api.Scheme, Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}}
	var own []*http.Transport
	dir, err := s.hostsDir()
	if err == nil && dir != "" {
		hosts, own, err = s.configuredHosts(ctx, dir)
	}
	if err != nil {
		return nil, nil, err
	}
	for i := range hosts {
		h := &hosts[i]
		hostPolicy := policy
		if i < len(hosts)-1 {
			hostPolicy = brief.within(policy)
		}
		base := h.Client.Transport
		h.Client = &http.Client{Transport: &retryTransport{base: base, retryPolicy: hostPolicy, observe: s.observe}}
		h.Authorizer = s.authorizer(base, h, repository)
	}
	return hosts, func() {
		for _, t := range own {
			t.CloseIdleConnections()
		}
	}, nil
}

// hostsDir returns the registry's directory of hosts and certificates, "" without one.
func (s *remote) hostsDir() (string, error) {
	roots := defaultHostsDirs()
	if s.registry.HostsDir != "" {
		roots = []string{s.registry.HostsDir}
	}
	for _, root := range roots {
		dir, err := dockerconfig.HostDirFromRoot(root)(s.endpoint.Host)
		switch {
		case errdefs.IsNotFound(err):
			continue
		case err != nil:
			return "", failf(errdefs.ErrFailedPrecondition, "look for the registry's hosts in %s: %v", root, err)
		}
		return dir, nil
	}
	return "", nil
}

// configuredHosts reads a registry's directory as containerd does: hosts.toml, or
// Docker's certificate files. own are the transports that were made for hosts with
// their own TLS configuration.
func (s *remote) configuredHosts(ctx context.Context, dir string) (hosts []docker.RegistryHost, own []*http.Transport, err error) {
	path := filepath.Join(dir, "hosts.toml")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, failf(errdefs.ErrFailedPrecondition, "%v", err)
	}
	if err := toml.Unmarshal(text, new(map[string]any)); err != nil { // the library ignores a file that it cannot parse
		return nil, nil, failf(errdefs.ErrFailedPrecondition, "%s cannot be read: %v", path, err)
	}
	shared := true // the first client is for hosts without a TLS configuration
	options := dockerconfig.HostOptions{
		HostDir:       func(string) (string, error) { return dir, nil },
		DefaultScheme: s.endpoint.Scheme,
		UpdateClient: func(client *http.Client) error {
			if shared {
				shared, client.Transport = false, s.transport
				return nil
			}
			if t, ok := client.Transport.(*http.Transport); ok {
				own = append(own, t)
			}
			return nil
		},
	}
	if s.endpoint.Scheme == "https" {
		options.DefaultTLS = s.transport.TLSClientConfig
	}
	hosts, err = dockerconfig.ConfigureHosts(ctx, options)(s.endpoint.Host)
	if err != nil {
		return nil, nil, failf(errdefs.ErrFailedPrecondition, "the registry's hosts in %s cannot be used: %v", dir, err)
	}
	if len(hosts) == 0 {
		return nil, nil, failf(errdefs.ErrFailedPrecondition, "%s names no host for registry %s", path, s.endpoint.Host)
	}
	return hosts, own, nil
}

// authorizerKey identifies an authorizer; tokens are valid for one repository.
type authorizerKey struct{ host, repository string }

// maxAuthorizers is how many authorizers are kept: clients may name any repository.
const maxAuthorizers = 1000

// cachedAuthorizer is an authorizer and the number of its last use.
type cachedAuthorizer struct {
	docker.Authorizer
	used uint64
}

// authorizers caches authorizers, and with them tokens, between pulls.
type authorizers struct {
	mu    sync.Mutex
	byKey map[authorizerKey]*cachedAuthorizer
	uses  uint64          // of all
	hosts map[string]bool // the registry's hosts that were asked so far
	// missing is docker-credential-NAME if it was needed last and is not installed.
	missing string
}

// authorizer returns the authorizer of requests to a host for a repository.
func (s *remote) authorizer(base http.RoundTripper, h *docker.RegistryHost, repository string) docker.Authorizer {
	key := authorizerKey{h.Scheme + "://" + h.Host, repository}
	token := s.registryToken(h.Host, repository)
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.hosts[h.Host] = true
	s.auth.uses++
	if a := s.auth.byKey[key]; a != nil {
		a.used = s.auth.uses
		return a.Authorizer
	}
	credentials := func(host string) (string, string, error) { return s.credentials(host, repository) }
	client := &http.Client{
		Transport:     &retryTransport{base: base, retryPolicy: tokens.within(s.retries), observe: s.observe, tokens: true},
		CheckRedirect: refuseOtherHost,
	}
	a := docker.Authorizer(noPasswordRetry{docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(credentials), docker.WithAuthHeader(h.Header))})
	if token != "" {
		a = &staticToken{host: h.Host, token: token}
	}
	if len(s.auth.byKey) >= maxAuthorizers {
		s.auth.dropOldest()
	}
	s.auth.byKey[key] = &cachedAuthorizer{a, s.auth.uses}
	return a
}

// dropOldest drops the authorizer that was not used for the longest time. Pulls that use it
// go on with it.
func (a *authorizers) dropOldest() {
	var oldest authorizerKey
	least := a.uses
	for key, cached := range a.byKey {
		if cached.used < least {
			oldest, least = key, cached.used
		}
	}
	delete(a.byKey, oldest)
}

// refuseOtherHost is a CheckRedirect that refuses a redirect from a token server to
// another host or scheme, because the request contains credentials.
func refuseOtherHost(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		return failf(errdefs.ErrPermissionDenied, "the token server %s redirects to %s://%s, and credentials are not sent to another host", first.Host, req.URL.Scheme, req.URL.Host)
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// noPasswordRetry is an authorizer that fails when a password is refused for the first
// time. Sending it again is useless, and some registries lock out the user.
type noPasswordRetry struct{ docker.Authorizer }

func (n noPasswordRetry) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if _, _, ok := last.Request.BasicAuth(); ok && last.StatusCode == http.StatusUnauthorized {
		return docker.ErrInvalidAuthorization
	}
	return n.Authorizer.AddResponses(ctx, responses)
}

// staticToken authorizes requests with a token from docker's config.json
// (registrytoken).
type staticToken struct{ host, token string }

func (s *staticToken) Authorize(_ context.Context, req *http.Request) error {
	if req.URL.Host == s.host {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	return nil
}

func (s *staticToken) AddResponses(context.Context, []*http.Response) error {
	return docker.ErrInvalidAuthorization
}

// hasAuthorizer reports whether an authorizer is cached for a repository.
func (s *remote) hasAuthorizer(repository string) bool {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	for key := range s.auth.byKey {
		if key.repository == repository {
			return true
		}
	}
	return false
}

// dropAuthorizers drops the cached tokens and credentials of a repository.
func (s *remote) dropAuthorizers(repository string) {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	for key := range s.auth.byKey {
		if key.repository == repository {
			delete(s.auth.byKey, key)
		}
	}
}
