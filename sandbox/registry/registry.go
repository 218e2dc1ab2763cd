// Package registry is a small OCI registry that stores images in a directory, for the
// sandbox and for tests.
//
// It implements the pull and push parts of the OCI distribution specification 1.1,
// with listing of tags and repositories: blobs with range requests, uploads in
// one request, in chunks and by mounting, manifests of images and indexes. There
// are no deletions, no referrers (clients fall back to tags) and no authentication: every
// client may pull and push.
//
// # Directory
//
//	blobs/sha256/HEX                                  layers, configurations, manifests
//	repositories/NAME/_manifests/sha256/HEX           a manifest's media type
//	repositories/NAME/_tags/TAG                       the digest of the tag
//	uploads/ID                                        unfinished uploads
//
// Components of a repository's name do not begin with an underscore, so names never
// collide. Every file is synced to disk and then renamed to its final name, so files are
// complete, and acknowledged requests survive a crash. Unfinished uploads are removed when
// the directory is opened again.
package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Config configures a Registry.
type Config struct {
	Dir string // created if missing; used by one Registry at a time
	Log *slog.Logger
}

// Registry is the HTTP handler of a registry. It serves any number of requests
// at a time; memory does not grow with the size of blobs.
type Registry struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex
	writing map[string]bool // uploads to which a request is writing
}

// Open creates the directory if it is missing, and removes unfinished uploads.
func Open(c Config) (*Registry, error) {
	r := &Registry{dir: c.Dir, log: c.Log, writing: make(map[string]bool)}
	if err := os.RemoveAll(r.path("uploads")); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	for _, dir := range []string{"uploads", "blobs", "repositories"} {
		if err := os.MkdirAll(r.path(dir), 0o755); err != nil {
			return nil, fmt.Errorf("open registry: %w", err)
		}
	}
	return r, nil
}

// The grammar of the distribution specification.
const (
	nameComponent = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
	nameMax       = 255
)

var (
	route = regexp.MustCompile(`^/v2/(` + nameComponent + `(?:/` + nameComponent + `)*)/` +
		`(blobs/uploads/?|blobs/uploads/[^/]+|blobs/[^/]+|manifests/[^/]+|tags/list)$`)
	tagForm    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	uploadForm = regexp.MustCompile(`^[A-Z2-7]{26}$`) // crypto/rand.Text
)

// ServeHTTP handles one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := r.serve(w, req); err != nil {
		r.fail(w, req, err)
	}
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) error {
	switch req.URL.Path {
	case "/v2", "/v2/":
		return only(req, http.MethodGet, func() error { return answerJSON(w, struct{}{}) })
	case "/v2/_catalog":
		return only(req, http.MethodGet, func() error { return r.catalog(w, req) })
	}
	m := route.FindStringSubmatch(req.URL.Path)
	if m == nil || len(m[1]) > nameMax {
		return errNoRoute
	}
	name, rest := m[1], strings.TrimSuffix(m[2], "/")
	kind, arg, _ := strings.Cut(rest, "/")
	switch {
	case rest == "blobs/uploads":
		return only(req, http.MethodPost, func() error { return r.startUpload(w, req, name) })
	case strings.HasPrefix(rest, "blobs/uploads/"):
		return r.upload(w, req, name, strings.TrimPrefix(arg, "uploads/"))
	case kind == "blobs":
		return only(req, http.MethodGet, func() error { return r.blob(w, req, arg) })
	case kind == "tags":
		return only(req, http.MethodGet, func() error { return r.tags(w, req, name) })
	case req.Method == http.MethodPut:
		return r.putManifest(w, req, name, arg)
	default:
		return only(req, http.MethodGet, func() error { return r.getManifest(w, req, name, arg) })
	}
}

// only calls f if the request has the method; GET also serves HEAD.
func only(req *http.Request, method string, f func() error) error {
	if req.Method != method && (method != http.MethodGet || req.Method != http.MethodHead) {
		return errMethod
	}
	return f()
}

// blob responds with a blob or a range of it.
func (r *Registry) blob(w http.ResponseWriter, req *http.Request, arg string) error {
	d, err := parseDigest(arg)
	if err != nil {
		return err
	}
	f, err := os.Open(r.blobPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return errBlobUnknown.with("no blob %s", d)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", d.String())
	h.Set("ETag", `"`+d.String()+`"`)
	http.ServeContent(w, req, "", info.ModTime(), f)
	return nil
}

func parseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", errDigest.with("%.100q is not a sha256 digest", s)
	}
	return d, nil
}

func (r *Registry) path(elem ...string) string {
	return filepath.Join(append([]string{r.dir}, elem...)...)
}

func (r *Registry) blobPath(d digest.Digest) string {
	return r.path("blobs", d.Algorithm().String(), d.Encoded())
}

func (r *Registry) hasBlob(d digest.Digest) (bool, error) {
	_, err := os.Stat(r.blobPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
