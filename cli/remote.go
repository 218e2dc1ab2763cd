package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/job"
)

// remoteModels are the models of a daemon, by its API.
type remoteModels struct{ *client }

// Pull requests a pull and reports its progress.
func (r remoteModels) Pull(ctx context.Context, m job.Model, sheep string, report func(job.PullProgress)) error {
	request := api.PullRequest{}
	request.Model.Name, request.Model.Version = m.Name, m.Version
	if sheep != "" {
		request.SheepId = &sheep
	}
	response, err := r.call(ctx, http.MethodPost, "/models/pull?progress=true", request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for stream := json.NewDecoder(response.Body); ; {
		var p api.PullProgress
		if err := stream.Decode(&p); err != nil {
			return fmt.Errorf("the daemon at %s went away during the pull: %w", r.shown, err)
		}
		switch {
		case p.Error != nil:
			return errors.New(*p.Error)
		case p.Success != nil:
			return nil
		}
		report(job.PullProgress{Text: p.Text, Done: value(p.Done), Total: value(p.Total), Rate: float64(value(p.Rate))})
	}
}

func value(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

// List returns the models that the daemon keeps.
func (r remoteModels) List(ctx context.Context) ([]job.KeptModel, error) {
	var answer api.ModelList
	if err := r.ask(ctx, http.MethodGet, "/models", nil, &answer); err != nil {
		return nil, err
	}
	var list []job.KeptModel
	for _, m := range answer.Models {
		k := job.KeptModel{
			Model: job.Model{Name: m.Name, Version: m.Version}, Reference: m.Reference, Digest: m.Digest,
			Size: m.Size, Own: m.OwnSize, InUse: m.InUse,
		}
		if m.LastUsedAt != nil {
			var err error
			if k.LastUsed, err = time.Parse("2006-01-02T15:04:05", *m.LastUsedAt); err != nil {
				return nil, fmt.Errorf("read the answer of the daemon at %s: %w", r.shown, err)
			}
		}
		list = append(list, k)
	}
	return list, nil
}

// Remove removes a model.
func (r remoteModels) Remove(ctx context.Context, m job.Model) error {
	return r.ask(ctx, http.MethodDelete, "/models/"+url.PathEscape(m.String()), nil, nil)
}
