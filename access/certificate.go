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

// Certificate is a caller with a certificate whose name is Subject.
type Certificate struct {
	// Subject is one of the certificate's alternative names (a DNS name, an email
	// address or a URI) or, where it has none at all, its common name.
	Subject string
	Caller  Caller
}

func (c Certificate) matches(cert *x509.Certificate) bool {
	return slices.Contains(namesOf(cert), c.Subject)
}

// namesOf is every name of a certificate. As for servers, the common name counts
// only where there are no others.
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

// nameOf is the caller's name for a certificate without an entry of its own. The serial
// number keeps two without names apart.
func nameOf(cert *x509.Certificate) string {
	if names := namesOf(cert); len(names) > 0 {
		return names[0]
	}
	return "certificate " + cert.SerialNumber.Text(16)
}

// TLS is what the API's encryption is configured by: paths of PEM files.
type TLS struct {
	CertFile, KeyFile string
	// ClientCAFile, where it is not empty, holds the authorities whose
	// certificates clients may show. Where Required says true when a connection
	// begins, they must; nil is false.
	ClientCAFile string
	Required     func() bool
	Log          *slog.Logger
}

// look is how often the files are looked at, at most.
const look = time.Second

// Server is the TLS configuration of a server: version 1.2 or later, and
// certificates that are read again when their files change, for the connections
// that begin after that. What cannot be read then is logged, and the last that
// could be stays. The first reading is Server's own, and its error is returned.
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

// files is what was read, and when of which files.
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

// current are the configurations that the files give now.
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
		// A renewal may be half done: it is looked at again.
		f.Log.Warn("Cannot read the API's certificates again; those read before stay", "error", err)
		return f.config, f.strict
	}
	f.Log.Info("Read the API's certificates again", "until", f.config.Certificates[0].Leaf.NotAfter.UTC().Format(time.DateTime))
	return f.config, f.strict
}

// read reads the files. The stamps are taken first, so that a change meanwhile
// is seen the next time.
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
