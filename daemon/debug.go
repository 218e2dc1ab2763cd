package daemon

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"strings"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/config"
)

// withDebug adds routes for administrators of the machine: net/http/pprof below
// /debug/pprof/, the configuration in effect (with secrets hidden) and the build
// information. They are served on the socket only.
func withDebug(api http.Handler, cfg func() *config.Config, who access.Local) http.Handler {
	inside := http.NewServeMux()
	inside.HandleFunc("GET /debug/pprof/", pprof.Index)
	inside.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	inside.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	inside.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	inside.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	inside.HandleFunc("GET /debug/config", func(w http.ResponseWriter, _ *http.Request) { writePlain(w, cfg().String()) })
	inside.HandleFunc("GET /debug/build", func(w http.ResponseWriter, _ *http.Request) {
		if info, ok := debug.ReadBuildInfo(); ok {
			writePlain(w, info.String())
		}
	})
	return withPrefix("/debug/", administratorsOnly(who, inside), api)
}

// withPrefix passes requests whose path begins with prefix to inside, and others to rest.
// Unlike http.ServeMux it does not clean paths.
func withPrefix(prefix string, inside, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, prefix) {
			inside.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

// administratorsOnly refuses peers that are not administrators of this daemon.
func administratorsOnly(who access.Local, inside http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok, err := access.PeerFrom(r.Context())
		if ok && err == nil {
			_, err = who.Caller(peer)
		}
		if !ok || err != nil || new(http.CrossOriginProtection).Check(r) != nil {
			http.Error(w, "this is for those who may administer shepherd", http.StatusForbidden)
			return
		}
		inside.ServeHTTP(w, r)
	})
}

func writePlain(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = fmt.Fprint(w, text) // the client may have disconnected
}
