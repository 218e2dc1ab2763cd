package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/iterait/shepherd/examples/digits"
)

// client does what any client of shepherd does: S3 for files, HTTP for jobs.
type client struct {
	api string
	s3  *minio.Client
}

func newClient(d *daemon) (*client, error) {
	s3, err := minio.New(strings.TrimPrefix(d.storage, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(d.accessKey, d.secretKey, ""), Region: "us-east-1",
	})
	if err != nil {
		return nil, err
	}
	return &client{api: d.api, s3: s3}, nil
}

// putInputs makes the job's bucket and puts the digits into it.
func (c *client) putInputs(ctx context.Context, id string, samples []digits.Sample) error {
	if err := c.s3.MakeBucket(ctx, id, minio.MakeBucketOptions{}); err != nil {
		return fmt.Errorf("make bucket %s: %w", id, err)
	}
	for _, s := range samples {
		_, err := c.s3.PutObject(ctx, id, "inputs/"+s.Name, bytes.NewReader(s.PNG), int64(len(s.PNG)), minio.PutObjectOptions{})
		if err != nil {
			return fmt.Errorf("put %s: %w", s.Name, err)
		}
	}
	return nil
}

func (c *client) startJob(ctx context.Context, id, model, version string) error {
	body, err := json.Marshal(map[string]any{"job_id": id, "model": map[string]string{"name": model, "version": version}})
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodPost, "/start-job", body)
	return err
}

// waitReady returns when the job is done; that it failed is an error.
func (c *client) waitReady(ctx context.Context, id string) error {
	body, err := c.call(ctx, http.MethodGet, "/jobs/"+id+"/wait_ready", nil)
	if err != nil {
		return err
	}
	var status struct {
		Status string `json:"status"`
		Error  *struct {
			Message string `json:"message"`
		} `json:"error_details"`
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return fmt.Errorf("status of job %s: %w", id, err)
	}
	switch {
	case status.Status == "done":
		return nil
	case status.Error != nil:
		return fmt.Errorf("job %s %s: %s", id, status.Status, status.Error.Message)
	}
	return fmt.Errorf("job %s is %s", id, status.Status)
}

// result is the digit predicted for each input file.
func (c *client) result(ctx context.Context, id string) (map[string]int, error) {
	body, err := c.call(ctx, http.MethodGet, "/jobs/"+id+"/result", nil)
	if err != nil {
		return nil, err
	}
	var result struct {
		Predictions []struct {
			Input string `json:"input"`
			Digit int    `json:"digit"`
		} `json:"predictions"`
	}
	if err := json.Unmarshal(body, &result); err != nil {
		return nil, fmt.Errorf("result of job %s: %w", id, err)
	}
	answers := make(map[string]int, len(result.Predictions))
	for _, p := range result.Predictions {
		answers[p.Input] = p.Digit
	}
	return answers, nil
}

func (c *client) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.api+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, nil
}
