package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// helperTimeout is how long a credential helper may take. It may ask a cloud.
const helperTimeout = 15 * time.Second

// credentials finds what host is to be told. An empty user with a secret is an
// identity token; nothing at all means to ask anonymously. Only the configured
// registry is told anything. What it reads, it reads anew each time: passwords
// are rotated.
func (s *Store) credentials(host string) (user, secret string, err error) {
	if host != s.endpoint.host && host != s.api.host {
		return "", "", nil
	}
	reg := s.cfg.Registry
	switch {
	case reg.Username != "" && reg.PasswordFile != "":
		password, err := os.ReadFile(reg.PasswordFile)
		if err != nil {
			return "", "", failf(errdefs.ErrFailedPrecondition, "registry.password_file cannot be read: %v", err)
		}
		return reg.Username, strings.TrimRight(string(password), "\r\n"), nil
	case reg.Username != "":
		return reg.Username, reg.Password, nil
	case reg.DockerConfig != "":
		user, secret, err := dockerCredentials(reg.DockerConfig, s.endpoint.host)
		if err != nil {
			return "", "", failf(errdefs.ErrFailedPrecondition, "registry.docker_config %s: %v", reg.DockerConfig, err)
		}
		return user, secret, nil
	}
	return "", "", nil
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
}

// dockerCredentials asks a config.json as docker does: the helper of this
// registry, else the helper for all, else the file itself. Where a helper knows
// nothing the file is asked, too.
func dockerCredentials(path, host string) (user, secret string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		var at *os.PathError
		if errors.As(err, &at) {
			err = at.Err // the path is named already
		}
		return "", "", err
	}
	var cfg dockerConfig
	if err := json.Unmarshal(data, &cfg); err != nil {
		return "", "", fmt.Errorf("it is no docker configuration: %w", err)
	}
	helper, server := cfg.CredsStore, host
	for key, name := range cfg.CredHelpers {
		if registryKey(key) == host {
			helper, server = name, key
		}
	}
	if helper != "" {
		user, secret, err := askHelper(helper, server)
		if err != nil || secret != "" {
			return user, secret, err
		}
	}
	auth, ok := cfg.Auths[host]
	if !ok {
		for key, a := range cfg.Auths {
			if registryKey(key) == host {
				auth = a
			}
		}
	}
	return auth.credentials()
}

// registryKey takes a key such as https://HOST/v1/ to HOST.
func registryKey(key string) string {
	if u, err := url.Parse(key); err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") {
		return u.Host
	}
	host, _, _ := strings.Cut(key, "/")
	return host
}

func (a dockerAuth) credentials() (user, secret string, err error) {
	switch {
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth == "":
		return a.Username, a.Password, nil
	}
	decoded, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return "", "", errors.New("the registry's auth is not base64")
	}
	user, secret, ok := strings.Cut(string(decoded), ":")
	if !ok {
		return "", "", errors.New("the registry's auth is not USERNAME:PASSWORD in base64")
	}
	return user, strings.TrimRight(secret, "\x00"), nil
}

// askHelper runs docker-credential-NAME. The empty answer means that it knows
// nothing of the server.
func askHelper(name, server string) (user, secret string, err error) {
	if strings.ContainsAny(name, "/\\\x00") {
		return "", "", fmt.Errorf("%q is no name of a credential helper", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	program := "docker-credential-" + name
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
		case strings.Contains(said, "credentials not found"):
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

// bounded keeps the first 64 KiB written to it.
type bounded struct{ buf bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	b.buf.Write(p[:min(len(p), 64<<10-b.buf.Len())])
	return len(p), nil
}

func (b *bounded) Bytes() []byte { return b.buf.Bytes() }
