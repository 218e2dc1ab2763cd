package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

// remoteModels are the models of a daemon, by its API.
type remoteModels struct{ *client.ClientWithResponses }

// Pull requests a pull and reports its progress.
func (r remoteModels) Pull(ctx context.Context, m job.Model, sheep string, report func(job.PullProgress)) error {
	request := client.PullRequest{}
	request.Model.Name, request.Model.Version = m.Name, m.Version
	if sheep != "" {
		request.SheepId = &sheep
	}
	response, err := r.PullModel(ctx, &client.PullModelParams{Progress: new("true")}, request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for stream := json.NewDecoder(response.Body); ; {
		var p client.PullProgress
		if err := stream.Decode(&p); err != nil {
			return fmt.Errorf("the daemon went away during the pull: %w", err)
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
	answer, err := r.ListModelsWithResponse(ctx)
	if err != nil {
		return nil, err
	}
	if answer.JSON200 == nil {
		return nil, errors.New("the daemon's list of models cannot be read")
	}
	var list []job.KeptModel
	for _, m := range answer.JSON200.Models {
		k := job.KeptModel{
			Model: job.Model{Name: m.Name, Version: m.Version}, Reference: m.Reference, Digest: m.Digest,
			Size: m.Size, Own: m.OwnSize, InUse: m.InUse,
		}
		if m.LastUsedAt != nil {
			var err error
			if k.LastUsed, err = time.Parse("2006-01-02T15:04:05", *m.LastUsedAt); err != nil {
				return nil, fmt.Errorf("read the daemon's list of models: %w", err)
			}
		}
		list = append(list, k)
	}
	return list, nil
}

// Remove removes a model.
func (r remoteModels) Remove(ctx context.Context, m job.Model) error {
	_, err := r.RemoveModelWithResponse(ctx, m.String())
	return err
}
