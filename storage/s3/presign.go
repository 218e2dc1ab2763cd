package s3

import (
	"context"
	"fmt"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/places"
)

// Presigner makes addresses by which anyone fetches a file from the storage at its URL,
// for a time. It sends no request.
type Presigner struct {
	client *minio.Core
	layout places.Layout
}

var _ storage.Presigner = (*Presigner)(nil)

// NewPresigner makes a Presigner for the storage as clients reach it: of the configuration
// it uses the URL, the keys, Addressing, Bucket and Region.
func NewPresigner(c Config) (*Presigner, error) {
	options, endpoint, err := c.options()
	if err != nil {
		return nil, err
	}
	client, err := minio.NewCore(endpoint, options)
	if err != nil {
		return nil, fmt.Errorf("storage.public_url: %w", err)
	}
	return &Presigner{client: client, layout: places.Layout{Bucket: c.Bucket}}, nil
}

// Presign implements storage.Presigner.
func (p *Presigner) Presign(ctx context.Context, id job.ID, name string, valid time.Duration) (string, error) {
	bucket, key, err := p.layout.Key(id, name)
	if err != nil {
		return "", err
	}
	address, err := p.client.PresignedGetObject(ctx, bucket, key, valid, nil)
	if err != nil {
		return "", fmt.Errorf("sign an address for %s of job %s: %w", name, id, err)
	}
	return address.String(), nil
}
