// Package client does what any client of shepherd does, for the demos: S3 for
// files, HTTP for jobs.
package client

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
)

// Config says where shepherd and its storage are.
type Config struct {
	API, Storage         string // http://HOST:PORT
	AccessKey, SecretKey string
}

// Client speaks to one shepherd.
type Client struct {
	api string
	s3  *minio.Client
}

// New makes a client; nothing is sent yet.
func New(c Config) (*Client, error) {
	s3, err := minio.New(strings.TrimPrefix(c.Storage, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""), Region: "us-east-1",
	})
	if err != nil {
		return nil, err
	}
	return &Client{api: c.API, s3: s3}, nil
}

// MakeJob makes the job's bucket.
func (c *Client) MakeJob(ctx context.Context, id string) error {
	if err := c.s3.MakeBucket(ctx, id, minio.MakeBucketOptions{}); err != nil {
		return fmt.Errorf("make bucket %s: %w", id, err)
	}
	return nil
}

// PutInput puts a file into inputs/ of the job's bucket.
func (c *Client) PutInput(ctx context.Context, id, name string, content []byte) error {
	_, err := c.s3.PutObject(ctx, id, "inputs/"+name, bytes.NewReader(content), int64(len(content)), minio.PutObjectOptions{})
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

// StartJob submits a job whose inputs are in storage.
func (c *Client) StartJob(ctx context.Context, id, model, version string) error {
	return c.StartJobOn(ctx, id, model, version, "")
}

// StartJobOn is StartJob for one sheep, for any where that is empty.
func (c *Client) StartJobOn(ctx context.Context, id, model, version, sheep string) error {
	request := map[string]any{"job_id": id, "model": map[string]string{"name": model, "version": version}}
	if sheep != "" {
		request["sheep_id"] = sheep
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodPost, "/start-job", body)
	return err
}

// WaitReady returns when the job is done; that it failed is an error.
func (c *Client) WaitReady(ctx context.Context, id string) error {
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

// Result is the content of a file of the job's outputs/.
func (c *Client) Result(ctx context.Context, id, name string) ([]byte, error) {
	return c.call(ctx, http.MethodGet, "/jobs/"+id+"/result/"+name, nil)
}

func (c *Client) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
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
