package embedded

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// corsRules say which web pages may ask, as described at
// https://fetch.spec.whatwg.org/#http-cors-protocol. A signature is needed all
// the same. Pages that come from the host by whose name the server is reached may, such as
// the daemon's own.
type corsRules struct {
	origins []string // "https://app.example.com"; "*" is any
}

func (c corsRules) allows(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	return origin != "" && (slices.Contains(c.origins, origin) || slices.Contains(c.origins, "*") || sameHost(origin, r.Host))
}

// sameHost reports whether a page's origin has the host of a request, by whatever port.
func sameHost(origin, host string) bool {
	page, err := url.Parse(origin)
	return err == nil && page.Host != "" && (page.Scheme == "http" || page.Scheme == "https") && hostname(page.Host) == hostname(host)
}

// announce tells the browser whether the page may see the answer.
func (c corsRules) announce(w http.ResponseWriter, r *http.Request) {
	allowed := c.allows(r)
	if len(c.origins) == 0 && !allowed {
		return
	}
	w.Header().Add("Vary", "Origin")
	if origin := r.Header.Get("Origin"); allowed {
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Set("Access-Control-Expose-Headers", "ETag, Content-Range, Accept-Ranges, x-amz-request-id, x-amz-checksum-crc32, x-amz-checksum-crc32c, "+
			"x-amz-checksum-crc64nvme, x-amz-checksum-sha1, x-amz-checksum-sha256, x-amz-checksum-type, x-amz-mp-parts-count, x-amz-tagging-count, x-amz-version-id")
	}
}

// preflight answers what a browser asks before the page's own request.
func (c corsRules) preflight(r *request) error {
	origin, method := r.Header.Get("Origin"), r.Header.Get("Access-Control-Request-Method")
	if origin == "" || method == "" {
		return badRequest("BadRequest", "A preflight request needs Origin and Access-Control-Request-Method.")
	}
	methods := []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete}
	if !c.allows(r.Request) || !slices.Contains(methods, method) {
		return newError(http.StatusForbidden, "AccessForbidden", "CORSResponse: this origin and method are not allowed; storage.cors_origins names the origins that are.")
	}
	h := r.w.Header()
	h.Set("Access-Control-Allow-Methods", strings.Join(methods, ", "))
	if headers := r.Header.Get("Access-Control-Request-Headers"); headers != "" {
		h.Set("Access-Control-Allow-Headers", headers)
	}
	h.Set("Access-Control-Max-Age", "3600")
	r.w.WriteHeader(http.StatusOK)
	return nil
}
