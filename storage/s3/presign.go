package s3

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/places"
)

// Presigner signs URLs by which anyone can fetch or store one file for a limited time. It
// sends no request.
type Presigner struct {
	client *minio.Core
	layout places.Layout
	origin string
}

var _ storage.Signer = (*Presigner)(nil)

// NewPresigner returns a Presigner for the storage as clients reach it. It uses the URL,
// the keys, Addressing, Bucket and Region of the configuration.
func NewPresigner(c Config) (*Presigner, error) {
	options, endpoint, err := c.options()
	if err != nil {
		return nil, err
	}
	client, err := minio.NewCore(endpoint, options)
	if err != nil {
		return nil, fmt.Errorf("storage.public_url: %w", err)
	}
	p := &Presigner{client: client, layout: places.Layout{Bucket: c.Bucket}}
	if p.origin, err = p.findOrigin(); err != nil {
		return nil, fmt.Errorf("storage.public_url: %w", err)
	}
	return p, nil
}

// findOrigin returns the origin of the signed URLs.
func (p *Presigner) findOrigin() (string, error) {
	const some = "some-job"
	bucket, key, err := p.layout.Key(some, job.StatusFile)
	if err != nil {
		return "", err
	}
	address, err := p.client.PresignedGetObject(context.Background(), bucket, key, time.Minute, nil)
	if err != nil {
		return "", err
	}
	host := address.Host
	if rest, ok := strings.CutPrefix(host, some+"."); ok && p.layout.Bucket == "" { // each job has a host of its own
		host = "*." + rest
	}
	return address.Scheme + "://" + host, nil
}

// Origin implements storage.Signer.
func (p *Presigner) Origin() string { return p.origin }

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

// PresignPut implements storage.Signer.
func (p *Presigner) PresignPut(ctx context.Context, id job.ID, name string, size int64, valid time.Duration) (string, error) {
	return p.presignBody(ctx, id, name, size, valid, nil)
}

// PresignPart implements storage.Signer.
func (p *Presigner) PresignPart(ctx context.Context, id job.ID, name, upload string, part int, size int64, valid time.Duration) (string, error) {
	if part < 1 || part > storage.MaxParts {
		return "", fmt.Errorf("sign an address for part %d of %s of job %s: %w", part, name, id, errdefs.ErrInvalidArgument)
	}
	return p.presignBody(ctx, id, name, size, valid, url.Values{"uploadId": {upload}, "partNumber": {strconv.Itoa(part)}})
}

// presignBody signs a URL for a body of exactly the given size: the length is signed.
func (p *Presigner) presignBody(ctx context.Context, id job.ID, name string, size int64, valid time.Duration, query url.Values) (string, error) {
	bucket, key, err := p.layout.Key(id, name)
	if err != nil {
		return "", err
	}
	if size < 0 || size > storage.MaxPut {
		return "", fmt.Errorf("sign an address for %d bytes of %s of job %s, which one request cannot store: %w", size, name, id, errdefs.ErrInvalidArgument)
	}
	address, err := p.client.PresignHeader(ctx, http.MethodPut, bucket, key, valid, query, http.Header{"Content-Length": {strconv.FormatInt(size, 10)}})
	if err != nil {
		return "", fmt.Errorf("sign an address for %s of job %s: %w", name, id, err)
	}
	return address.String(), nil
}
