package embedded

import (
	"errors"
	"net"
	"os"
	"strings"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// hosts tells what a request's Host says of the bucket: in virtual-hosted
// addressing, "bucket.domain" names it, and the path holds the key alone.
type hosts struct {
	domains []string
	own     string // the machine's name
}

func newHosts(domains []string) hosts {
	own, err := os.Hostname()
	if err != nil {
		own = "" // then it is no exception
	}
	h := hosts{own: strings.ToLower(own)}
	for _, d := range append([]string{"localhost"}, domains...) {
		h.domains = append(h.domains, strings.ToLower(strings.Trim(d, ".")))
	}
	return h
}

// hostname is a Host header without its port, in lower case.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// bucket returns the bucket that a Host header names, "" if it names none.
func (h hosts) bucket(host string) string {
	name := hostname(host)
	bucket, best := "", ""
	for _, d := range h.domains {
		if name == d {
			return "" // the domain itself, though it may lie below another
		}
		if b, ok := strings.CutSuffix(name, "."+d); ok && folder.ValidBucket(b) && len(d) > len(best) {
			bucket, best = b, d
		}
	}
	return bucket
}

// resolve returns the bucket and key that a request is about.
func (h hosts) resolve(host, path string) (bucket, key string) {
	path = strings.TrimPrefix(path, "/")
	if bucket := h.bucket(host); bucket != "" {
		return bucket, path
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key
}

// checkPathStyle keeps a request from making or removing a bucket that, by its
// Host, may mean a key in another: a client that addresses buckets by host, of a
// server that was not told its domain.
func (h hosts) checkPathStyle(store *folder.Store, r *request, op *operation) error {
	name := hostname(r.Host)
	first, rest, ok := strings.Cut(name, ".")
	if !op.creates || !ok || rest == "" || net.ParseIP(name) != nil || first == h.own || name == h.own {
		return nil
	}
	for _, d := range h.domains {
		if name == d || strings.HasSuffix(name, "."+d) {
			return nil
		}
	}
	if _, err := store.StatBucket(first); errors.Is(err, folder.ErrNoBucket) {
		return nil
	} else if err != nil {
		return err
	}
	return badRequest(codeInvalidRequest,
		"The host %s seems to name the bucket %q. Use path style addressing, or set storage.domain to %s (or to %s if that is the server's own name).", name, first, rest, name)
}
