package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/shepherd"
)

// withAdmin serves, beside what rest does, what commands ask of the daemon that
// change it as a whole. It is for the socket, and there for administrators alone.
func withAdmin(rest http.Handler, core *shepherd.Shepherd, configuration *reloader, who access.Local) http.Handler {
	inside := http.NewServeMux()
	inside.HandleFunc("POST /admin/reload", func(w http.ResponseWriter, r *http.Request) {
		// Once begun it is not left half done because nobody waits for it any more.
		did, err := configuration.reload(context.WithoutCancel(r.Context()))
		answer(w, did, err)
	})
	inside.HandleFunc("POST /admin/sheep/stop", func(w http.ResponseWriter, r *http.Request) {
		drain := configuration.now().DrainTimeout
		if given := r.FormValue("drain_timeout"); given != "" {
			var err error
			if drain, err = time.ParseDuration(given); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		answer(w, struct{}{}, core.Rest(drain))
	})
	inside.HandleFunc("POST /admin/sheep/start", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct{}{}, core.Wake())
	})
	return below("/admin/", administrators(who, inside), rest)
}

func answer(w http.ResponseWriter, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		value = api.Error{Message: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(value) // a client that has left cannot be told
}
