package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
)

// uploadsOf configures uploads, with which clients put inputs into storage directly. address
// is where the embedded storage listens.
func uploadsOf(c config.Storage, address string, l ledger.Uploads) (shepherd.Uploads, error) {
	uploads := shepherd.Uploads{Ledger: l, Keep: c.KeepUploads, MaxSize: int64(c.MaxUpload)}
	presigner, err := presignerOf(c)
	if err != nil {
		return uploads, err
	}
	if fixed, ok := presigner.(storage.Signer); ok {
		uploads.Signer = func(string) (storage.Signer, error) { return fixed, nil }
		return uploads, nil
	}
	listens, port, err := net.SplitHostPort(address)
	if err != nil {
		return uploads, fmt.Errorf("the address of the embedded storage: %w", err)
	}
	access, secret, err := StorageKeys(c)
	if err != nil {
		return uploads, err
	}
	uploads.Signer = func(host string) (storage.Signer, error) {
		reached, problem := embeddedHost(listens, host)
		if problem != nil {
			return nil, problem
		}
		signer, err := signerAt(c, "http://"+net.JoinHostPort(reached, port), access, secret)
		if err != nil {
			return nil, &job.NoUploads{Problem: fmt.Sprintf("The host name %q of the request cannot be that of the embedded storage: set storage.public_url", reached)}
		}
		return signer, nil
	}
	return uploads, nil
}

// embeddedHost returns the host at which a client can reach the embedded storage that
// listens at an address, given the host at which it reached the daemon, empty for a client
// on the same machine. The error is a *job.NoUploads.
func embeddedHost(listens, host string) (string, error) {
	host = strings.Trim(host, "[]")
	at, err := netip.ParseAddr(listens)
	switch {
	case err != nil: // a name
		return listens, nil
	case at.IsLoopback():
		if host == "" {
			return listens, nil
		}
		if isLoopback(host) {
			return host, nil
		}
		return "", &job.NoUploads{Problem: fmt.Sprintf("Clients on other machines cannot reach the embedded storage, which listens on %s: set storage.listen to an address that they reach, or storage.public_url to that of a proxy in front of it", listens)}
	case at.IsUnspecified():
		if host == "" {
			return "127.0.0.1", nil
		}
		return host, nil
	}
	return listens, nil
}

// isLoopback reports whether a host names the client's own machine.
func isLoopback(host string) bool {
	at, err := netip.ParseAddr(host)
	return err == nil && at.IsLoopback() || host == "localhost"
}
