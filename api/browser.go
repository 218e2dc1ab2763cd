package api

import (
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/iterait/shepherd/access"
)

// Browsers are the rules for web pages that use the API. Set may be called while
// requests are served; the zero Browsers allows no page of another origin.
type Browsers struct{ now atomic.Pointer[BrowserConfig] }

// BrowserConfig configures Browsers.
type BrowserConfig struct {
	// Origins are those whose pages may use the API (CORS). "*" lets pages of any origin
	// read; requests that change something are accepted from origins listed by name
	// only, unless the page sends a token.
	Origins []string
	// Hosts are further names by which the API may be addressed on loopback
	// addresses and the socket; see access.HostAllowed.
	Hosts []string
}

// NewBrowsers makes Browsers with a configuration.
func NewBrowsers(c BrowserConfig) *Browsers {
	b := new(Browsers)
	b.Set(c)
	return b
}

// Set makes c the configuration from the next request on.
func (b *Browsers) Set(c BrowserConfig) { b.now.Store(&c) }

func (b *Browsers) config() BrowserConfig {
	if c := b.now.Load(); c != nil {
		return *c
	}
	return BrowserConfig{}
}

// Foreign reports whether a page of an origin that is not listed by name makes a
// browser send a request that changes something.
func (b *Browsers) Foreign(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" && slices.Contains(b.config().Origins, origin) {
		return false
	}
	return new(http.CrossOriginProtection).Check(r) != nil
}

// Protect refuses requests under a foreign name (DNS rebinding), and sets the
// headers that keep browsers from guessing content types and from sending the URL to
// other sites.
func (b *Browsers) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		if !access.HostAllowed(r, b.config().Hosts) {
			h.Set("Cache-Control", "no-store")
			h.Set("Content-Type", jsonType)
			w.WriteHeader(http.StatusMisdirectedRequest)
			_, _ = w.Write([]byte(foreignHost)) // a client that has left cannot be told
			return
		}
		next.ServeHTTP(w, r)
	})
}

const foreignHost = `{"message": "shepherd is not known by the name in the Host header; use localhost or an IP address, or add the name to api.hosts"}` + "\n"

// filePolicy is the Content-Security-Policy of jobs' files: they are shown in an
// origin of their own, without scripts, forms or anything from elsewhere. A model's
// report.html could otherwise use the API with its viewer's rights.
const filePolicy = "sandbox; default-src 'none'; img-src 'self' data:; media-src 'self' data:; style-src 'self' 'unsafe-inline'; font-src 'self' data:"
