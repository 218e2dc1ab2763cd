package api

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// GetStatus answers GET /status, in exactly the original's shape.
func (s *server) GetStatus(w http.ResponseWriter, r *http.Request) {
	answer := Status{Sheep: map[string]SheepStatus{}}
	for _, sheep := range s.sheep(r) {
		answer.Sheep[sheep.Name] = SheepStatus{Running: sheep.Running, Model: modelOf(sheep), Request: orNull(string(sheep.Job))}
	}
	s.answer(w, r, http.StatusOK, answer)
}

// ListSheep answers GET /sheep.
func (s *server) ListSheep(w http.ResponseWriter, r *http.Request) {
	answer := SheepList{Sheep: []Sheep{}}
	for _, sheep := range s.sheep(r) {
		answer.Sheep = append(answer.Sheep, Sheep{
			Name: sheep.Name, Node: orNull(sheep.Node), Type: sheep.Type, Running: sheep.Running, Model: modelOf(sheep),
			Job: orNull(string(sheep.Job)), Detail: orNull(sheep.Detail), Condition: conditionOf(sheep),
		})
	}
	slices.SortFunc(answer.Sheep, func(a, b Sheep) int { return cmp.Compare(a.Name, b.Name) })
	s.answer(w, r, http.StatusOK, answer)
}

// sheep is every sheep as the caller may see it: of another tenant's jobs only that the
// sheep is busy.
func (s *server) sheep(r *http.Request) []job.Sheep {
	return s.sheepFor(r.Context(), access.From(r.Context()).Tenant)
}

// sheepFor is sheep for a tenant, empty for callers who see everything.
func (s *server) sheepFor(ctx context.Context, tenant string) []job.Sheep {
	list := s.service.Sheep(ctx)
	if tenant == "" {
		return list
	}
	list = slices.Clone(list)
	for i := range list {
		switch {
		case list[i].Job != "" && list[i].Tenant == tenant:
			continue
		case list[i].Job != "":
			list[i].Detail = "busy"
		default:
			list[i].Detail = ""
		}
		list[i].Job, list[i].Model, list[i].Pull, list[i].Progress = "", job.Model{}, nil, nil
		list[i].RunningSince, list[i].TurnEnds = time.Time{}, time.Time{}
	}
	return list
}

// modelOf is null twice for a sheep without a model; a model's version may be
// empty.
func modelOf(sheep job.Sheep) Model {
	if sheep.Model.IsZero() {
		return Model{}
	}
	return Model{Name: &sheep.Model.Name, Version: &sheep.Model.Version}
}

// conditionOf says whether a sheep takes jobs.
func conditionOf(sheep job.Sheep) SheepCondition {
	if sheep.Condition == job.Able {
		return Able
	}
	return SheepCondition(sheep.Condition)
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// GetHealth answers GET /healthz: a process that answers is alive.
func (s *server) GetHealth(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, http.StatusOK, Health{Alive: true})
}

// GetReadiness answers GET /readyz. What a probe finds is logged at debug level
// only: probes come every few seconds, and the parts log their own outages.
func (s *server) GetReadiness(w http.ResponseWriter, r *http.Request) {
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
func (s *server) GetVersion(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, http.StatusOK, s.version)
}

// GetMetrics answers GET /metrics.
func (s *server) GetMetrics(w http.ResponseWriter, r *http.Request) { s.metrics.ServeHTTP(w, r) }
