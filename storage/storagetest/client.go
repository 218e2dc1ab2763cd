package storagetest

import (
	"context"
	"io"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
)

// s3Client is the Client of a server.
type s3Client struct {
	client *minio.Client
	bucket string // that holds all jobs; empty means a bucket per job
}

func newS3Client(t *testing.T, h Harness) *s3Client {
	t.Helper()
	u, err := url.Parse(h.URL)
	noError(t, err)
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(h.AccessKey, h.SecretKey, ""), Secure: u.Scheme == "https",
		Region: "us-east-1", BucketLookup: minio.BucketLookupPath,
	})
	noError(t, err)
	return &s3Client{client, h.Bucket}
}

func (c *s3Client) at(id job.ID, name string) (bucket, key string) {
	if c.bucket == "" {
		return string(id), name
	}
	return c.bucket, string(id) + "/" + name
}

func (c *s3Client) MakePlace(ctx context.Context, id job.ID) error {
	if c.bucket != "" {
		return nil
	}
	return c.client.MakeBucket(ctx, string(id), minio.MakeBucketOptions{})
}

func (c *s3Client) Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error {
	bucket, key := c.at(id, name)
	_, err := c.client.PutObject(ctx, bucket, key, r, size, minio.PutObjectOptions{})
	return err
}

func (c *s3Client) Files(ctx context.Context, id job.ID) (map[string]string, error) {
	bucket, prefix := c.at(id, "")
	files := make(map[string]string)
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(16)
	for object := range c.client.ListObjectsIter(ctx, bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if object.Err != nil {
			if minio.ToErrorResponse(object.Err).Code == minio.NoSuchBucket {
				return files, nil
			}
			return nil, object.Err
		}
		group.Go(func() error {
			content, err := c.client.GetObject(ctx, bucket, object.Key, minio.GetObjectOptions{})
			if err != nil {
				return err
			}
			defer content.Close()
			data, err := io.ReadAll(content)
			mu.Lock()
			defer mu.Unlock()
			files[strings.TrimPrefix(object.Key, prefix)] = string(data)
			return err
		})
	}
	return files, group.Wait()
}
