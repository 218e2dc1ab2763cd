package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/job"
)

// remote asks a daemon by its API.
type remote struct {
	base   string
	client *http.Client
}

func newRemote(base string) (*remote, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, &usageError{fmt.Errorf("%q is not the address of an API; expected http://HOST:PORT", base)}
	}
	return &remote{base: strings.TrimRight(base, "/"), client: &http.Client{}}, nil
}

// call asks and returns an answer that is no error; the caller closes its body.
func (r *remote) call(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, r.base+path, content)
	if err != nil {
		return nil, err
	}
	response, err := r.client.Do(request)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("no daemon answers at %s; name its address with --api", r.base)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon at %s: %w", r.base, err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	var said api.Error
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&said); err != nil || said.Message == "" {
		return nil, fmt.Errorf("%s answers %s; is it a shepherd of this version?", r.base, response.Status)
	}
	return nil, errors.New(said.Message)
}

// Pull follows the daemon's pull.
func (r *remote) Pull(ctx context.Context, m job.Model, sheep string, report func(job.PullProgress)) error {
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
			return fmt.Errorf("the daemon at %s went away during the pull: %w", r.base, err)
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

// List lists what the daemon keeps.
func (r *remote) List(ctx context.Context) ([]job.KeptModel, error) {
	response, err := r.call(ctx, http.MethodGet, "/models", nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer api.ModelList
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("read the answer of the daemon at %s: %w", r.base, err)
	}
	var list []job.KeptModel
	for _, m := range answer.Models {
		k := job.KeptModel{
			Model: job.Model{Name: m.Name, Version: m.Version}, Reference: m.Reference, Digest: m.Digest,
			Size: m.Size, Own: m.OwnSize, InUse: m.InUse,
		}
		if m.LastUsedAt != nil {
			if k.LastUsed, err = time.Parse("2006-01-02T15:04:05", *m.LastUsedAt); err != nil {
				return nil, fmt.Errorf("read the answer of the daemon at %s: %w", r.base, err)
			}
		}
		list = append(list, k)
	}
	return list, nil
}

// Remove has the daemon remove a model.
func (r *remote) Remove(ctx context.Context, m job.Model) error {
	response, err := r.call(ctx, http.MethodDelete, "/models/"+url.PathEscape(m.String()), nil)
	if err != nil {
		return err
	}
	return response.Body.Close()
}
