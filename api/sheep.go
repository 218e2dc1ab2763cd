package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// SheepService looks at sheep and tells them what to do.
type SheepService interface {
	// Sheep is every configured sheep.
	Sheep(ctx context.Context) []job.Sheep

	// OrderSheep tells a sheep what to do, and returns when it has, or ctx ends, which
	// gives up what is not done yet. It returns *job.UnknownSheep, *job.SheepState,
	// *job.Untrusted, *job.ModelError and job.ErrDraining.
	OrderSheep(ctx context.Context, sheep string, o job.Order) error
}

// sheepServer serves sheep.
type sheepServer struct {
	answers
	bodyLimits
	service SheepService
}

// GetStatus answers GET /status, in exactly the original's shape.
func (s *sheepServer) GetStatus(w http.ResponseWriter, r *http.Request) {
	answer := orderedStatus{Sheep: map[string]orderedSheep{}}
	for _, sheep := range s.sheep(r) {
		answer.Sheep[sheep.Name] = orderedSheep{Running: sheep.Running, Model: modelOf(sheep), Request: orNull(string(sheep.Job))}
	}
	s.answer(w, r, http.StatusOK, answer)
}

// orderedStatus is Status with the fields in the order of the original, for scripts that look for
// `"bare_sheep": {"running": true`.
type orderedStatus struct {
	Sheep map[string]orderedSheep `json:"sheep"`
}

type orderedSheep struct {
	Running bool    `json:"running"`
	Model   Model   `json:"model"`
	Request *string `json:"request"`
}

// ListSheep answers GET /sheep.
func (s *sheepServer) ListSheep(w http.ResponseWriter, r *http.Request) {
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
func (s *sheepServer) sheep(r *http.Request) []job.Sheep {
	return sheepFor(r.Context(), s.service, access.From(r.Context()).Tenant)
}

// sheepLister is the part of a SheepService that looks.
type sheepLister interface {
	Sheep(ctx context.Context) []job.Sheep
}

// sheepFor is sheep for a tenant, empty for callers who see everything.
func sheepFor(ctx context.Context, flock sheepLister, tenant string) []job.Sheep {
	list := flock.Sheep(ctx)
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
