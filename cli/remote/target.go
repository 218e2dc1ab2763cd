package remote

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/client"
)

// Environment variables that replace flags.
const (
	EnvServer    = "SHEPHERD_SERVER"
	EnvServerOld = "SHEPHERD_API" // its name before
	EnvToken     = "SHEPHERD_TOKEN"
	EnvCA        = "SHEPHERD_CA_FILE"
	EnvContext   = "SHEPHERD_CONTEXT"
)

// Target is the daemon that a command asks: in this order the one that flags name,
// the one that the environment names, that of the context in use, and the one whose
// socket is on this machine.
type Target struct {
	// File is the configuration that the daemon runs with, by flag; empty for none.
	File string

	config  Config
	server  string
	token   string
	ca      string
	context string
}

// NewTarget returns a target whose flags are not defined yet.
func NewTarget(c Config) *Target { return &Target{config: c} }

// Add defines its flags.
func (t *Target) Add(f *pflag.FlagSet) {
	if t.config.Locate != nil {
		f.StringVarP(&t.File, "config", "c", "", "configuration file of the daemon to ask")
	}
	f.StringVar(&t.server, "server", "", "URL of the daemon's API: http://HOST:PORT, https://… or unix:///PATH ($"+EnvServer+")")
	f.StringVar(&t.server, "api", "", "the same")
	if err := f.MarkHidden("api"); err != nil {
		panic(err) // it was defined above
	}
	f.StringVar(&t.token, "token", "", "token to send; other users can see it, so use $"+EnvToken+" instead")
	f.StringVar(&t.ca, "ca-file", "", "certificates of authorities to trust in addition to the system's ($"+EnvCA+")")
	f.StringVar(&t.context, "context", "", "ask the daemon that login has saved under this `name` ($"+EnvContext+")")
}

// Open returns a client of the daemon; it does not connect yet. The error is that of
// Config.Locate where a configuration is named.
func (t *Target) Open() (*client.ClientWithResponses, error) {
	named := 0
	for _, flag := range []string{t.File, t.server, t.context} {
		if flag != "" {
			named++
		}
	}
	if named > 1 {
		return nil, usage("-c, --server and --context each name a daemon: keep one of them")
	}
	at, err := t.find()
	if err != nil {
		return nil, err
	}
	at.Token = cmp.Or(t.token, os.Getenv(EnvToken), at.Token)
	at.CAFile = cmp.Or(t.ca, os.Getenv(EnvCA), at.CAFile)
	return at.open(t.config)
}

// find returns the daemon's address, and what is kept with it.
func (t *Target) find() (place, error) {
	switch {
	case t.File != "":
		at, err := t.config.Locate(t.File)
		return place{Server: at}, err
	case t.server != "":
		return place{Server: t.server}, nil
	case t.context != "":
		return contextNamed(t.context)
	}
	if at := cmp.Or(os.Getenv(EnvServer), os.Getenv(EnvServerOld)); at != "" {
		return place{Server: at}, nil
	}
	if name := os.Getenv(EnvContext); name != "" {
		return contextNamed(name)
	}
	kept, err := readContexts()
	if err != nil {
		return place{}, err
	}
	if kept.Current != "" {
		return kept.named(kept.Current)
	}
	if t.config.Socket != "" {
		if _, err := os.Stat(t.config.Socket); !errors.Is(err, fs.ErrNotExist) {
			return place{Server: "unix://" + t.config.Socket}, nil
		}
	}
	if t.config.Locate == nil {
		return place{}, usage("a daemon's address is needed: --server URL, $%s, or `shepherd login URL` once", EnvServer)
	}
	const needed = "a configuration file (-c FILE) or a daemon's address (--server URL, or $%s) is needed: shepherd is not running as a service here"
	if _, err := os.Stat("shepherd.yml"); err == nil {
		return place{}, usage(needed+"; for the daemon of this directory's shepherd.yml: -c shepherd.yml", EnvServer)
	}
	return place{}, usage(needed, EnvServer)
}

// open returns a client of the place.
func (p place) open(c Config) (*client.ClientWithResponses, error) {
	config := client.Config{Server: p.Server, Token: p.Token, DialSocket: c.DialSocket}
	if p.CAFile != "" {
		text, err := os.ReadFile(p.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the authorities to trust: %w", err)
		}
		if config.Authorities, err = x509.SystemCertPool(); err != nil {
			config.Authorities = x509.NewCertPool()
		}
		if !config.Authorities.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read the authorities to trust: %s holds no certificate in PEM form", p.CAFile)
		}
	}
	daemon, err := client.New(config)
	if errors.Is(err, client.ErrAddress) {
		return nil, &Error{Code: ExitUsage, Err: err}
	}
	return daemon, err
}
