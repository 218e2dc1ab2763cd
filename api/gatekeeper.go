package api

import (
	"errors"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gorilla/mux"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// gatekeeper lets callers in who may do what they ask for.
type gatekeeper struct {
	answers
	gate     *access.Gate
	browsers *Browsers
	refused  func(why string)
	assets   map[string]bool // what the pages load, by path; for everyone
}

// authorize refuses callers without what the operation requires, and adds the caller to
// the request's context.
func (s *gatekeeper) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		needed := needOf(r)
		if needed.scope == "" || s.isAsset(r) {
			next.ServeHTTP(w, r)
			return
		}
		caller, err := s.gate.Identify(r)
		if err == nil {
			err = s.permit(caller, needed, r)
		}
		if err != nil {
			s.refuse(r, caller, err)
			s.fail(w, r, err)
			return
		}
		if _, err := url.ParseQuery(r.URL.RawQuery); err != nil && needed.query {
			s.fail(w, r, &job.Invalid{Field: "query", Problem: "cannot be read: " + strings.TrimPrefix(err.Error(), "invalid ")})
			return
		}
		next.ServeHTTP(w, r.WithContext(access.With(r.Context(), caller)))
	})
}

// permit returns an error where the caller may not use the operation.
func (s *gatekeeper) permit(caller access.Caller, needed need, r *http.Request) error {
	switch {
	case !caller.May(needed.scope) && caller.Name == access.Anonymous:
		return &access.Refused{Reason: "Only administrators may do this: on the daemon's machine use its socket, as commands without --server do; elsewhere a token with the scope admin (api.tokens)"}
	case !caller.May(needed.scope):
		return &access.Refused{Reason: "This needs the scope " + string(needed.scope) + ", which " + caller.Name + " does not have"}
	case needed.whole && caller.Tenant != "":
		return &access.Refused{Reason: "This shows what all tenants do, and is for none of them"}
	case caller.Ambient && s.browsers.Foreign(r):
		return errForeignPage
	}
	return nil
}

// errForeignPage refuses what a page of another origin makes a browser send.
var errForeignPage = &access.Refused{Reason: "A page of another origin may not change anything here without a token; list its origin in api.cors_origins if it should"}

// refuse logs and counts a refused request. The credentials are not logged.
func (s *gatekeeper) refuse(r *http.Request, caller access.Caller, err error) {
	level, why := slog.LevelWarn, "forbidden"
	var unknown *access.Unknown
	var tooMany *access.TooMany
	switch {
	case errors.As(err, &tooMany):
		level, why = slog.LevelDebug, "limited" // the log is not to be flooded
	case errors.As(err, &unknown):
		why = "unknown"
		if !unknown.Shown {
			level = slog.LevelInfo
		}
	}
	s.refused(why)
	s.log.LogAttrs(r.Context(), level, "request refused", slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.String("client", s.gate.ClientAddress(r)), slog.String("caller", caller.Name), slog.Any("error", err))
}

// challenge adds the WWW-Authenticate header of a refusal, and returns Retry-After in
// seconds, 0 for none.
func challenge(h http.Header, err error) (retryAfter int) {
	var unknown *access.Unknown
	var tooMany *access.TooMany
	switch {
	case errors.As(err, &unknown) && unknown.Shown:
		h.Set("WWW-Authenticate", `Bearer realm="shepherd", error="invalid_token"`)
	case errors.As(err, &unknown):
		h.Set("WWW-Authenticate", `Bearer realm="shepherd"`)
	case errors.As(err, &tooMany):
		return max(1, int(math.Ceil(tooMany.After.Seconds())))
	}
	return 0
}

// exposed are the headers that a page of another origin may read beyond the few that
// browsers always show.
const exposed = "Accept-Ranges, Allow, Content-Encoding, Content-Length, Content-Range, ETag, Location, Preference-Applied, Retry-After, WWW-Authenticate, X-Request-Id"

// crossOrigin allows the configured origins (CORS), with any header, and answers
// preflight requests. Credentials that a browser adds by itself are allowed for origins
// that are listed by name; for any origin only where no credentials are required.
func (s *gatekeeper) crossOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin, origins := r.Header.Get("Origin"), s.browsers.config().Origins
		h := w.Header()
		h.Add("Vary", "Origin")
		named := slices.Contains(origins, origin)
		if origin == "" || !named && !slices.Contains(origins, "*") {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Origin", origin)
		if named || !s.gate.Asks() {
			h.Set("Access-Control-Allow-Credentials", "true")
		}
		method := r.Header.Get("Access-Control-Request-Method")
		if r.Method != http.MethodOptions || method == "" {
			h.Set("Access-Control-Expose-Headers", exposed)
			next.ServeHTTP(w, r)
			return
		}
		h.Add("Vary", "Access-Control-Request-Method")
		h.Add("Vary", "Access-Control-Request-Headers")
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE, OPTIONS")
		if wanted := r.Header.Get("Access-Control-Request-Headers"); wanted != "" {
			h.Set("Access-Control-Allow-Headers", wanted)
		}
		h.Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
	})
}

// isAsset reports whether a request is for what the pages load.
func (s *gatekeeper) isAsset(r *http.Request) bool {
	route := mux.CurrentRoute(r)
	if route == nil {
		return false
	}
	template, err := route.GetPathTemplate()
	return err == nil && s.assets[template]
}
