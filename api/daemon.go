package api

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/iterait/shepherd/job"
)

// CheckService looks at what the daemon depends on.
type CheckService interface {
	// Checks is the state of everything the daemon depends on, each by its name.
	Checks(ctx context.Context) []job.Check
}

// daemonServer serves what is known of the daemon itself.
type daemonServer struct {
	answers
	readiness *readiness
	version   Version
	metrics   http.Handler
}

// GetHealth answers GET /healthz: a process that answers is alive.
func (s *daemonServer) GetHealth(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, http.StatusOK, Health{Alive: true})
}

// GetReadiness answers GET /readyz. What a probe finds is logged at debug level
// only: probes come every few seconds, and the parts log their own outages.
func (s *daemonServer) GetReadiness(w http.ResponseWriter, r *http.Request) {
	answer := Readiness{Ready: true, Checks: map[string]Check{}}
	status := http.StatusOK
	for _, check := range s.readiness.get(r.Context()) {
		if check.Err == nil {
			answer.Checks[check.Name] = Check{Ready: true}
			continue
		}
		s.log.LogAttrs(r.Context(), slog.LevelDebug, "not ready", slog.String("check", check.Name), slog.Any("error", check.Err))
		_, message := classify(check.Err)
		if s.debug {
			message = check.Err.Error()
		}
		answer.Checks[check.Name] = Check{Message: &message}
		answer.Ready, status = false, http.StatusServiceUnavailable
	}
	if !answer.Ready {
		w.Header().Set("Retry-After", "5")
	}
	s.answer(w, r, status, answer)
}

// GetVersion answers GET /version.
func (s *daemonServer) GetVersion(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, http.StatusOK, s.version)
}

// GetMetrics answers GET /metrics.
func (s *daemonServer) GetMetrics(w http.ResponseWriter, r *http.Request) { s.metrics.ServeHTTP(w, r) }
