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

// remote is the registry, or the hosts that serve it.
type remote struct {
	registry  Registry
	endpoint  endpoint.Endpoint
	api       endpoint.Endpoint // where the registry's API is: nearly always the same
	platform  platform          // that images must have a variant for
	transport *http.Transport
	downloads *semaphore.Weighted // of layers, all images together
	retries   retries
	observe   Observer
	log       *slog.Logger
	auth      authorizers
}

// newRemote makes a remote that fetches so many layers at once. It asks nobody anything.
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
		auth:      authorizers{byKey: map[authorizerKey]docker.Authorizer{}, hosts: map[string]bool{}},
	}
	if s.api.Host, err = docker.DefaultHost(e.Host); err != nil {
		return nil, fmt.Errorf("registry.url: %w", err)
	}
	return s, nil
}

// defaultHostsDirs are where containerd and Docker look for the registries' hosts
// and certificates. The first that has a directory for a registry counts.
func defaultHostsDirs() []string {
	return []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}
}

// resolver asks the registry, or the hosts that serve it, for one repository's
// images. close is called when nothing is asked any more.
func (s *remote) resolver(ctx context.Context, repository string, patience retries) (r remotes.Resolver, close func(), err error) {
	hosts, close, err := s.hosts(ctx, repository, patience)
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

// hosts are what is asked for a repository's images, in their order: what
// hosts.toml says in the registry's directory, or the registry itself. All but the
// last are asked briefly: the next one serves.
func (s *remote) hosts(ctx context.Context, repository string, patience retries) (hosts []docker.RegistryHost, close func(), err error) {
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
		asked := patience
		if i < len(hosts)-1 {
			asked = brief.within(patience)
		}
		base := h.Client.Transport
		h.Client = &http.Client{Transport: &persistent{base: base, retries: asked, observe: s.observe}}
		h.Authorizer = s.authorizer(base, h, repository)
	}
	return hosts, func() {
		for _, t := range own {
			t.CloseIdleConnections()
		}
	}, nil
}

// hostsDir is the registry's own directory, empty where it has none.
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

// configuredHosts reads a directory as containerd does: hosts.toml, or Docker's
// certificate files. Hosts with a TLS configuration of their own have transports
// of their own, which are returned.
func (s *remote) configuredHosts(ctx context.Context, dir string) (hosts []docker.RegistryHost, own []*http.Transport, err error) {
	path := filepath.Join(dir, "hosts.toml")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, failf(errdefs.ErrFailedPrecondition, "%v", err)
	}
	if err := toml.Unmarshal(text, new(map[string]any)); err != nil { // which the library would pass over
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

// authorizerKey is what tokens and credentials belong to.
type authorizerKey struct{ host, repository string }

// authorizers keep tokens from one pull to the next.
type authorizers struct {
	mu    sync.Mutex
	byKey map[authorizerKey]docker.Authorizer
	hosts map[string]bool // those that were ever asked for images
	// missing is the credential helper that was wanted last and is not installed.
	missing string // docker-credential-NAME
}

// authorizer returns what authorizes requests to a host for a repository.
func (s *remote) authorizer(base http.RoundTripper, h *docker.RegistryHost, repository string) docker.Authorizer {
	key := authorizerKey{h.Scheme + "://" + h.Host, repository}
	token := s.registryToken(h.Host, repository)
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.hosts[h.Host] = true
	if a := s.auth.byKey[key]; a != nil {
		return a
	}
	credentials := func(host string) (string, string, error) { return s.credentials(host, repository) }
	client := &http.Client{
		Transport:     &persistent{base: base, retries: tokens.within(s.retries), observe: s.observe, tokens: true},
		CheckRedirect: stayWithTokenServer,
	}
	a := docker.Authorizer(decided{docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(credentials), docker.WithAuthHeader(h.Header))})
	if token != "" {
		a = &givenToken{host: h.Host, token: token}
	}
	s.auth.byKey[key] = a
	return a
}

// stayWithTokenServer refuses to follow a token server elsewhere: what it is
// asked with are credentials.
func stayWithTokenServer(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		return failf(errdefs.ErrPermissionDenied, "the token server %s sends us to %s://%s, which credentials are not shown to", first.Host, req.URL.Scheme, req.URL.Host)
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// decided takes the first refusal of a password for an answer. To repeat it
// gains nothing, and some registries lock a user out for it.
type decided struct{ docker.Authorizer }

func (d decided) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if _, _, ok := last.Request.BasicAuth(); ok && last.StatusCode == http.StatusUnauthorized {
		return docker.ErrInvalidAuthorization
	}
	return d.Authorizer.AddResponses(ctx, responses)
}

// givenToken shows a token that stands in docker's config.json as it is
// (registrytoken).
type givenToken struct{ host, token string }

func (g *givenToken) Authorize(_ context.Context, req *http.Request) error {
	if req.URL.Host == g.host {
		req.Header.Set("Authorization", "Bearer "+g.token)
	}
	return nil
}

func (g *givenToken) AddResponses(context.Context, []*http.Response) error {
	return docker.ErrInvalidAuthorization
}

// hasAuthorizer reports whether anything is kept for a repository.
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

// dropAuthorizers forgets a repository's tokens and the credentials they were got
// with.
func (s *remote) dropAuthorizers(repository string) {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	for key := range s.auth.byKey {
		if key.repository == repository {
			delete(s.auth.byKey, key)
		}
	}
}
