package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// helperTimeout is how long a credential helper may take; some call a cloud's API.
const helperTimeout = 15 * time.Second

// credentials returns the credentials for a repository at host. A secret without a
// user is an identity token; without both, requests are anonymous. The configured
// user and password are sent to the registry itself only, while docker's config.json
// may have credentials for its mirrors, too. Files are read anew on each call, so
// that a rotated password is used at once.
func (s *remote) credentials(host, repository string) (user, secret string, err error) {
	reg := s.registry
	own := host == s.endpoint.Host || host == s.api.Host
	switch {
	case reg.Username != "" && !own:
		return "", "", nil
	case reg.Username != "" && reg.PasswordFile != "":
		password, err := os.ReadFile(reg.PasswordFile)
		if err != nil {
			return "", "", failf(errdefs.ErrFailedPrecondition, "registry.password_file cannot be read: %v", err)
		}
		return reg.Username, strings.TrimRight(string(password), "\r\n"), nil
	case reg.Username != "":
		return reg.Username, reg.Password, nil
	case reg.DockerConfig != "":
		c, err := s.dockerCredential(host, repository)
		return c.user, c.secret, err
	}
	return "", "", nil
}

// registryToken returns the registrytoken that docker's config.json has for a
// repository, which is sent as a bearer token without asking a token server.
func (s *remote) registryToken(host, repository string) string {
	if s.registry.Username != "" || s.registry.DockerConfig == "" {
		return ""
	}
	cfg, err := readDockerConfig(s.registry.DockerConfig)
	if err != nil {
		return "" // credentials reports it, if the registry requires authentication
	}
	key, _ := longestKey(cfg.Auths, s.configRepository(host, repository))
	return cfg.Auths[key].RegistryToken
}

// configRepository returns the name, HOST/PATH, by which docker's configuration is
// searched for a repository served by host.
func (s *remote) configRepository(host, repository string) string {
	if host == s.api.Host {
		host = s.endpoint.Host
	}
	_, name, _ := strings.Cut(repository, "/")
	return host + "/" + name
}

func (s *remote) dockerCredential(host, repository string) (credential, error) {
	c, err := dockerCredentials(s.registry.DockerConfig, s.configRepository(host, repository))
	if err != nil {
		return credential{}, failf(errdefs.ErrFailedPrecondition, "registry.docker_config %s: %v", s.registry.DockerConfig, err)
	}
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	if c.missing != "" && c.missing != s.auth.missing {
		s.log.Warn("A credential helper in docker's configuration is not installed; the registry is asked without it",
			"helper", c.missing, "file", s.registry.DockerConfig, "registry", host)
	}
	s.auth.missing = c.missing
	return c, nil
}

// missingHelper returns the name of the credential helper that the last search for
// credentials needed but that is not installed, or "".
func (s *remote) missingHelper() string {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	return s.auth.missing
}

// credential holds the credentials that a config.json has for a repository.
type credential struct {
	user, secret string // see remote.credentials
	missing      string // the configured helper, if it is not installed
}

// dockerConfig is the part of docker's config.json that holds credentials.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of USERNAME:PASSWORD
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// readDockerConfig reads a config.json, or a .dockercfg, its older format, which is
// the value of auths alone.
func readDockerConfig(path string) (dockerConfig, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		var at *os.PathError
		if errors.As(err, &at) {
			err = at.Err // the caller's message has the path
		}
		return dockerConfig{}, err
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // a byte order mark, as Windows editors write it
	if len(bytes.TrimSpace(data)) == 0 {
		return dockerConfig{}, nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return dockerConfig{}, fmt.Errorf("it is not a docker configuration: %w", err)
	}
	var cfg dockerConfig
	if err := json.Unmarshal(data, &cfg); err != nil {
		return dockerConfig{}, fmt.Errorf("it is not a docker configuration: %w", err)
	}
	if cfg.Auths == nil && cfg.CredsStore == "" && cfg.CredHelpers == nil {
		cfg.Auths = map[string]dockerAuth{}
		for key, value := range keys {
			var auth dockerAuth
			if json.Unmarshal(value, &auth) == nil && auth != (dockerAuth{}) {
				cfg.Auths[key] = auth
			}
		}
	}
	return cfg, nil
}

// dockerCredentials looks up the credentials for a repository, HOST/NAME, in a
// config.json, in docker's order: the registry's credential helper, else the helper
// for all registries, else the auths in the file. The auths are also used where the
// helper has no credentials or is not installed. Keys may name a part of a registry
// (HOST/TEAM), as in podman's files; the longest that matches is used.
func dockerCredentials(path, repository string) (credential, error) {
	cfg, err := readDockerConfig(path)
	if err != nil {
		return credential{}, err
	}
	server := helperServer(repository)
	helper := cfg.CredsStore
	if key, ok := longestKey(cfg.CredHelpers, repository); ok {
		helper = cfg.CredHelpers[key]
		if server != hubServer {
			server = strings.TrimSuffix(key, "/")
		}
	}
	var c credential
	if helper != "" {
		user, secret, err := askHelper(helper, server)
		switch {
		case errors.Is(err, exec.ErrNotFound):
			c.missing = helperProgram(helper)
		case err != nil:
			return credential{}, err
		case secret != "":
			return credential{user: user, secret: secret}, nil
		}
	}
	key, ok := longestKey(cfg.Auths, repository)
	if !ok {
		return c, nil
	}
	c.user, c.secret, err = cfg.Auths[key].credentials()
	return c, err
}

// The names of Docker Hub: hubServer in docker's configuration and for its helpers,
// hubHost in images' names.
const (
	hubServer = "https://index.docker.io/v1/"
	hubHost   = "docker.io"
)

// helperServer returns the server name with which a helper is queried.
func helperServer(repository string) string {
	host, _, _ := strings.Cut(repository, "/")
	if canonicalHost(host) == hubHost {
		return hubServer
	}
	return host
}

// longestKey returns the key with the longest scope that contains the repository.
func longestKey[V any](m map[string]V, repository string) (key string, ok bool) {
	host, name, _ := strings.Cut(repository, "/")
	wanted := canonicalHost(host) + "/" + name + "/"
	longest := -1
	for k := range m {
		scope := registryScope(k)
		if strings.HasPrefix(wanted, scope+"/") && (len(scope) > longest || len(scope) == longest && k < key) {
			key, longest = k, len(scope)
		}
	}
	return key, longest >= 0
}

// registryScope returns the scope of a key: HOST or HOST/PATH. The path of a key
// with a scheme, as in https://HOST/v1/, is not part of the scope.
func registryScope(key string) string {
	withoutScheme := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ := strings.Cut(strings.TrimRight(withoutScheme, "/"), "/")
	host = canonicalHost(host)
	if withoutScheme != key || path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}

// canonicalHost maps different spellings of a host to one: lower case, without the
// default port of https, and one name for Docker Hub.
func canonicalHost(host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return hubHost
	}
	return host
}

// credentials decodes an entry of auths. See remote.credentials for the results.
func (a dockerAuth) credentials() (user, secret string, err error) {
	switch {
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth == "":
		return a.Username, a.Password, nil
	}
	decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(a.Auth), "="))
	if err != nil {
		return "", "", errors.New("the registry's auth is not base64")
	}
	user, secret, ok := strings.Cut(string(decoded), ":")
	if !ok {
		return "", "", errors.New("the registry's auth is not USERNAME:PASSWORD in base64")
	}
	return user, strings.TrimRight(secret, "\x00\r\n"), nil
}

func helperProgram(name string) string { return "docker-credential-" + name }

// askHelper runs docker-credential-NAME get for a server. The secret is empty where
// the helper has no credentials for it. The error wraps exec.ErrNotFound where the
// helper is not installed.
func askHelper(name, server string) (user, secret string, err error) {
	if strings.ContainsAny(name, "/\\\x00") {
		return "", "", fmt.Errorf("%q is not the name of a credential helper", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	program := helperProgram(name)
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(server)
	var stdout, stderr bounded
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		output := excerpt(append(stdout.Bytes(), stderr.Bytes()...))
		switch {
		case ctx.Err() != nil:
			return "", "", fmt.Errorf("%s did not answer within %s", program, helperTimeout)
		case strings.Contains(output, helperNotFound):
			return "", "", nil
		case output != "":
			return "", "", fmt.Errorf("%s: %s", program, output)
		}
		return "", "", fmt.Errorf("%s: %w", program, err)
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(stdout.Bytes(), &answer); err != nil {
		return "", "", fmt.Errorf("%s does not answer in JSON", program)
	}
	if answer.Username == "<token>" {
		answer.Username = ""
	}
	return answer.Username, answer.Secret, nil
}

// helperNotFound is in the output of a helper that has no credentials for a server;
// docker's protocol for credential helpers defines the text.
const helperNotFound = "credentials not found"

// bounded keeps the first 64 KiB written to it.
type bounded struct{ buf bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	b.buf.Write(p[:min(len(p), 64<<10-b.buf.Len())])
	return len(p), nil
}

func (b *bounded) Bytes() []byte { return b.buf.Bytes() }
