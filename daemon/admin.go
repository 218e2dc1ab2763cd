package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/shepherd"
)

// withAdmin adds routes below /admin/ that change the daemon as a whole: reload, and
// stopping and starting the sheep named in `sheep`, or all. They are served on the socket
// only, and to administrators only.
func withAdmin(rest http.Handler, core *shepherd.Shepherd, configuration *reloader, who access.Local) http.Handler {
	inside := http.NewServeMux()
	inside.HandleFunc("POST /admin/reload", func(w http.ResponseWriter, r *http.Request) {
		// Complete a reload even if the client disconnects.
		result, err := configuration.reload(context.WithoutCancel(r.Context()))
		writeJSON(w, result, err)
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
		writeJSON(w, struct{}{}, core.StopSheep(drain, r.Form["sheep"]...))
	})
	inside.HandleFunc("POST /admin/sheep/start", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, struct{}{}, core.StartSheep(r.Form["sheep"]...))
	})
	return withPrefix("/admin/", administratorsOnly(who, inside), rest)
}

func writeJSON(w http.ResponseWriter, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		value = api.Error{Message: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(value) // the client may have disconnected
}
