// Package ui holds the pages that show the API's contract in a browser, Swagger
// UI to try it out and ReDoc to read it, with everything they need: nothing is
// fetched from other sites. LICENSES has the licences of the bundles; update.sh
// fetches them again.
package ui

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

var (
	//go:embed ui.html
	swaggerPage []byte
	//go:embed start.js
	swaggerStart []byte
	//go:embed assets/swagger-ui-bundle.js.gz
	swaggerScript []byte
	//go:embed assets/swagger-ui.css.gz
	swaggerStyle []byte
	//go:embed apidocs.html
	redocPage []byte
	//go:embed assets/redoc.standalone.js.gz
	redocScript []byte
)

const (
	html       = "text/html; charset=utf-8"
	javascript = "text/javascript; charset=utf-8"
	css        = "text/css; charset=utf-8"
)

// policy lets a page use this server and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src data:; " +
	"connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Asset is an unchanging file that the daemon carries.
type Asset struct {
	// Path is where the pages look for it.
	Path string

	contentType string
	policy      string // of a page
	body        func() []byte
	packed      bool          // body is compressed with gzip
	pack        func() []byte // body, compressed; nil where it is not to be
	etag        func() string
}

// NewAsset makes an asset of body. The body is looked at when it is first asked
// for, not before.
func NewAsset(path, contentType string, body []byte) *Asset {
	return newAsset(path, contentType, func() []byte { return body })
}

func newAsset(path, contentType string, body func() []byte) *Asset {
	asset := &Asset{Path: path, contentType: contentType, body: body, etag: sync.OnceValue(func() string {
		sum := sha256.Sum256(body())
		return `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
	})}
	if contentType == html {
		asset.policy = policy
	}
	return asset
}

// NewText is NewAsset for a text that is sent compressed to clients that can unpack it.
// Policy, where it is not empty, is its Content-Security-Policy.
func NewText(path, contentType, policy string, body []byte) *Asset {
	return NewMade(path, contentType, policy, func() []byte { return body })
}

// NewMade is NewText for a text that body makes when it is asked for, always the same.
func NewMade(path, contentType, policy string, body func() []byte) *Asset {
	asset := newAsset(path, contentType, body)
	asset.policy = policy
	asset.pack = sync.OnceValue(func() []byte {
		var packed bytes.Buffer
		w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression) // a level that there is
		_, _ = w.Write(body())                                     // to memory
		_ = w.Close()
		return packed.Bytes()
	})
	return asset
}

// WithPolicy is the asset with another Content-Security-Policy.
func (a *Asset) WithPolicy(policy string) *Asset {
	other := *a
	other.policy = policy
	return &other
}

func newPacked(path, contentType string, body []byte) *Asset {
	asset := NewAsset(path, contentType, body)
	asset.packed = true
	return asset
}

// SwaggerUI is the page at /ui.
func SwaggerUI() *Asset { return NewAsset("/ui", html, swaggerPage) }

// ReDoc is the page at /apidocs.
func ReDoc() *Asset { return NewAsset("/apidocs", html, redocPage) }

// Assets are what the pages load beside the contract itself.
func Assets() []*Asset {
	return []*Asset{
		NewAsset("/ui/start.js", javascript, swaggerStart),
		newPacked("/ui/swagger-ui-bundle.js", javascript, swaggerScript),
		newPacked("/ui/swagger-ui.css", css, swaggerStyle),
		newPacked("/apidocs/redoc.standalone.js", javascript, redocScript),
	}
}

// ServeHTTP answers GET and HEAD with the asset, packed for clients that can
// unpack it, and with 304 for those that have it.
func (a *Asset) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	etag := a.etag()
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "no-cache")
	if a.policy != "" {
		h.Set("Content-Security-Policy", a.policy)
	}
	if a.packed || a.pack != nil {
		h.Add("Vary", "Accept-Encoding")
	}
	if strings.Contains(r.Header.Get("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", a.contentType)
	h.Set("X-Content-Type-Options", "nosniff")

	content := a.body()
	var body io.Reader = bytes.NewReader(content)
	switch {
	case a.pack != nil && acceptsGzip(r.Header):
		packed := a.pack()
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.Itoa(len(packed)))
		body = bytes.NewReader(packed)
	case !a.packed:
		h.Set("Content-Length", strconv.Itoa(len(content)))
	case acceptsGzip(r.Header):
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.Itoa(len(content)))
	default:
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, "the asset is damaged", http.StatusInternalServerError) // a build without its assets
			return
		}
		body = unpacked
	}
	if r.Method == http.MethodHead {
		return
	}
	_, _ = io.Copy(w, body) // a client that has left cannot be told
}

// acceptsGzip reports whether a client says that it can unpack gzip.
func acceptsGzip(h http.Header) bool {
	for coding := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		name, parameters, _ := strings.Cut(coding, ";")
		if name = strings.TrimSpace(name); name != "gzip" && name != "*" {
			continue
		}
		quality, isQuality := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q=")
		if q, err := strconv.ParseFloat(quality, 64); isQuality && err == nil && q == 0 {
			return false
		}
		return true
	}
	return false
}
