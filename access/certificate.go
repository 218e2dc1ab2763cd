package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Certificate maps a client certificate with the name Subject to a Caller.
type Certificate struct {
	// Subject is one of the certificate's alternative names (a DNS name, an email
	// address or a URI) or, where it has none at all, its common name.
	Subject string
	Caller  Caller
}

func (c Certificate) matches(cert *x509.Certificate) bool {
	return slices.Contains(namesOf(cert), c.Subject)
}

// namesOf returns all names of a certificate. As for servers, the common name counts only if
// there are no others.
func namesOf(cert *x509.Certificate) []string {
	names := slices.Concat(cert.DNSNames, cert.EmailAddresses)
	for _, uri := range cert.URIs {
		names = append(names, uri.String())
	}
	if len(names) == 0 && cert.Subject.CommonName != "" {
		names = []string{cert.Subject.CommonName}
	}
	return names
}

// nameOf returns the name of a caller whose certificate is not listed. The serial number
// distinguishes certificates without names.
func nameOf(cert *x509.Certificate) string {
	if names := namesOf(cert); len(names) > 0 {
		return names[0]
	}
	return "certificate " + cert.SerialNumber.Text(16)
}

// TLS configures the API's encryption. All files are PEM files.
type TLS struct {
	CertFile, KeyFile string
	// ClientCAFile, if not empty, holds the authorities of client certificates, which are
	// verified if a client sends one. If Required returns true at the start of a
	// connection, the client must send one; nil means false.
	ClientCAFile string
	Required     func() bool
	Log          *slog.Logger
}

// look is the minimum interval between two checks of the files.
const look = time.Second

// Server returns a server's TLS configuration, for TLS 1.2 or later. Changed files are
// reloaded for new connections; if that fails, the error is logged and the previous
// certificates stay. The error of the first load is returned.
func (t TLS) Server() (*tls.Config, error) {
	f := &files{TLS: t}
	if err := f.read(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config, strict := f.current(time.Now())
		if t.Required != nil && t.Required() {
			return strict, nil
		}
		return config, nil
	}}, nil
}

// files are the loaded certificates and the versions of their files.
type files struct {
	TLS
	mu      sync.Mutex
	config  *tls.Config
	strict  *tls.Config // config, with a client's certificate required
	stamped []stamp
	looked  time.Time
}

// stamp identifies a version of a file.
type stamp struct {
	path     string
	modified time.Time
	size     int64
	inode    uint64
}

// current returns the configurations, after reloading changed files.
func (f *files) current(now time.Time) (config, strict *tls.Config) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.looked) < look {
		return f.config, f.strict
	}
	f.looked = now
	before := f.stamped
	if stamps, err := f.stamps(); err == nil && slices.Equal(stamps, before) {
		return f.config, f.strict
	}
	if err := f.read(); err != nil {
		// A renewal may be incomplete: try again later.
		f.Log.Warn("Cannot reload the API's certificates; the previous ones stay in use", "error", err)
		return f.config, f.strict
	}
	f.Log.Info("Reloaded the API's certificates", "until", f.config.Certificates[0].Leaf.NotAfter.UTC().Format(time.DateTime))
	return f.config, f.strict
}

// read loads the files. It takes the stamps first, so that a concurrent change is noticed at
// the next check.
func (f *files) read() error {
	stamps, err := f.stamps()
	if err != nil {
		return fmt.Errorf("read the API's certificates: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
	if err != nil {
		return fmt.Errorf("read the API's certificate %s and its key %s: %w", f.CertFile, f.KeyFile, err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
	if f.ClientCAFile != "" {
		text, err := os.ReadFile(f.ClientCAFile)
		if err != nil {
			return fmt.Errorf("read the authorities of clients' certificates: %w", err)
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("read the authorities of clients' certificates: %s: %w", f.ClientCAFile, errNoCertificates)
		}
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	strict := config.Clone()
	if f.ClientCAFile != "" {
		strict.ClientAuth = tls.RequireAndVerifyClientCert
	}
	f.config, f.strict, f.stamped = config, strict, stamps
	return nil
}

var errNoCertificates = errors.New("holds no certificate in PEM form")

func (f *files) stamps() ([]stamp, error) {
	var stamps []stamp
	for _, path := range []string{f.CertFile, f.KeyFile, f.ClientCAFile} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		stamps = append(stamps, stamp{path: path, modified: info.ModTime(), size: info.Size(), inode: inode(info)})
	}
	return stamps, nil
}

func inode(info os.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}
