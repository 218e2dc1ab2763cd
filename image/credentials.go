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

// helperTimeout is how long a credential helper may take. It may ask a cloud.
const helperTimeout = 15 * time.Second

// credentials finds what host is shown for a repository. An empty user with a
// secret is an identity token; nothing at all means to ask anonymously. The
// configured user and password are the registry's alone; docker's config.json may
// name hosts that serve it, too. What it reads, it reads again each time: passwords
// are rotated.
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

// registryToken is a token of docker's config.json that is shown as it is.
func (s *remote) registryToken(host, repository string) string {
	if s.registry.Username != "" || s.registry.DockerConfig == "" {
		return ""
	}
	cfg, err := readDockerConfig(s.registry.DockerConfig)
	if err != nil {
		return "" // said when the registry asks for credentials
	}
	key, _ := longestKey(cfg.Auths, s.configRepository(host, repository))
	return cfg.Auths[key].RegistryToken
}

// configRepository is what a repository is called in docker's configuration as
// far as a host serves it.
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
		s.log.Warn("A credential helper that docker's configuration names is not installed; the registry is asked without it",
			"helper", c.missing, "file", s.registry.DockerConfig, "registry", host)
	}
	s.auth.missing = c.missing
	return c, nil
}

// missingHelper is the credential helper that was not there when credentials were
// last looked for.
func (s *remote) missingHelper() string {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	return s.auth.missing
}

// credential is what a config.json has for a repository.
type credential struct {
	user, secret string // as Store.credentials returns them
	missing      string // the helper that should know and is not installed
}

// dockerConfig is the part of docker's config.json that is about credentials.
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

// readDockerConfig reads a config.json, or what was before it: .dockercfg, which
// is the auths alone.
func readDockerConfig(path string) (dockerConfig, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		var at *os.PathError
		if errors.As(err, &at) {
			err = at.Err // the path is named already
		}
		return dockerConfig{}, err
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // as editors of Windows begin a file
	if len(bytes.TrimSpace(data)) == 0 {
		return dockerConfig{}, nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return dockerConfig{}, fmt.Errorf("it is no docker configuration: %w", err)
	}
	var cfg dockerConfig
	if err := json.Unmarshal(data, &cfg); err != nil {
		return dockerConfig{}, fmt.Errorf("it is no docker configuration: %w", err)
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

// dockerCredentials asks a config.json for a repository, HOST/NAME, as docker
// does: the helper of this registry, else the helper for all, else the file
// itself. Where a helper knows nothing, or is not installed, the file is asked,
// too. Keys may name a part of a registry (HOST/TEAM), as those of podman do; the
// longest that fits counts.
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

// hubServer is what Docker Hub is called in docker's configuration and by its
// helpers, hubHost in images' names.
const (
	hubServer = "https://index.docker.io/v1/"
	hubHost   = "docker.io"
)

// helperServer is what a helper is asked for.
func helperServer(repository string) string {
	host, _, _ := strings.Cut(repository, "/")
	if sameHost(host) == hubHost {
		return hubServer
	}
	return host
}

// longestKey finds the longest key that names a repository or a part of its
// registry.
func longestKey[V any](m map[string]V, repository string) (key string, ok bool) {
	host, name, _ := strings.Cut(repository, "/")
	wanted := sameHost(host) + "/" + name + "/"
	longest := -1
	for k := range m {
		scope := registryScope(k)
		if strings.HasPrefix(wanted, scope+"/") && (len(scope) > longest || len(scope) == longest && k < key) {
			key, longest = k, len(scope)
		}
	}
	return key, longest >= 0
}

// registryScope takes a key to HOST or HOST/PATH. With a scheme it names a host
// alone, as in https://HOST/v1/.
func registryScope(key string) string {
	withoutScheme := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ := strings.Cut(strings.TrimRight(withoutScheme, "/"), "/")
	host = sameHost(host)
	if withoutScheme != key || path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}

// sameHost gives the names of one host one form: those of Docker Hub, and with the
// port that https has anyway.
func sameHost(host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return hubHost
	}
	return host
}

// credentials are as Store.credentials returns them.
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

// askHelper runs docker-credential-NAME. The empty answer means that it knows
// nothing of the server; the error wraps exec.ErrNotFound where it is not
// installed.
func askHelper(name, server string) (user, secret string, err error) {
	if strings.ContainsAny(name, "/\\\x00") {
		return "", "", fmt.Errorf("%q is no name of a credential helper", name)
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
		said := detail(append(stdout.Bytes(), stderr.Bytes()...))
		switch {
		case ctx.Err() != nil:
			return "", "", fmt.Errorf("%s did not answer within %s", program, helperTimeout)
		case strings.Contains(said, helperKnowsNothing):
			return "", "", nil
		case said != "":
			return "", "", fmt.Errorf("%s: %s", program, said)
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

// helperKnowsNothing is how helpers say so: docker's protocol has it as this text.
const helperKnowsNothing = "credentials not found"

// bounded keeps the first 64 KiB written to it.
type bounded struct{ buf bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	b.buf.Write(p[:min(len(p), 64<<10-b.buf.Len())])
	return len(p), nil
}

func (b *bounded) Bytes() []byte { return b.buf.Bytes() }
