package main

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"strings"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/config"
)

// withDebug serves, beside what the API does, what is for the administrators of
// the machine alone: net/http/pprof below /debug/pprof/, the configuration in
// effect (secrets as stars) and what the program was built from. It is for the
// socket: nothing of it is reached from the network.
func withDebug(api http.Handler, cfg func() *config.Config, who access.Local) http.Handler {
	inside := http.NewServeMux()
	inside.HandleFunc("GET /debug/pprof/", pprof.Index)
	inside.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	inside.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	inside.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	inside.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	inside.HandleFunc("GET /debug/config", func(w http.ResponseWriter, _ *http.Request) { plain(w, cfg().String()) })
	inside.HandleFunc("GET /debug/build", func(w http.ResponseWriter, _ *http.Request) {
		if info, ok := debug.ReadBuildInfo(); ok {
			plain(w, info.String())
		}
	})
	return below("/debug/", administrators(who, inside), api)
}

// below is inside for what is asked for below the prefix, and rest for all else.
// It leaves paths as they were sent, which an http.ServeMux does not.
func below(prefix string, inside, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, prefix) {
			inside.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

// administrators lets nobody else in.
func administrators(who access.Local, inside http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok, err := access.PeerFrom(r.Context())
		if ok && err == nil {
			_, err = who.Caller(peer)
		}
		if !ok || err != nil {
			http.Error(w, "this is for those who may administer shepherd", http.StatusForbidden)
			return
		}
		inside.ServeHTTP(w, r)
	})
}

func plain(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = fmt.Fprint(w, text) // a client that has left cannot be told
}
