package s3

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

var _ storage.Parts = (*Store)(nil)

// BeginParts implements storage.Parts.
func (s *Store) BeginParts(ctx context.Context, id job.ID, name string) (string, error) {
	bucket, key, err := s.layout.Key(id, name)
	if err != nil {
		return "", err
	}
	u, err := s.objects.newUpload(ctx, bucket, key, 0)
	if err != nil {
		return "", fmt.Errorf("begin the upload of %s of job %s: %w", name, id, err)
	}
	return u.id, nil
}

// StoredParts implements storage.Parts.
func (s *Store) StoredParts(ctx context.Context, id job.ID, name, upload string) ([]storage.Part, error) {
	bucket, key, err := s.layout.Key(id, name)
	if err != nil {
		return nil, err
	}
	var parts []storage.Part
	for marker := 0; ; {
		var page minio.ListObjectPartsResult
		err := s.objects.try(ctx, "list_parts", s.objects.stall, func(ctx context.Context, _ *watch) (err error) {
			page, err = s.objects.client.ListObjectParts(ctx, bucket, key, upload, marker, 1000)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list the parts of %s of job %s: %w", name, id, withoutUpload(err))
		}
		for _, p := range page.ObjectParts {
			parts = append(parts, storage.Part{Number: p.PartNumber, Size: p.Size, ETag: strings.Trim(p.ETag, `"`)})
		}
		if !page.IsTruncated || page.NextPartNumberMarker <= marker {
			return parts, nil
		}
		marker = page.NextPartNumberMarker
	}
}

// withoutUpload returns storage.ErrNotFound where the error says, in the way of any
// server, that the upload does not exist.
func withoutUpload(err error) error {
	var answer minio.ErrorResponse
	if errors.Is(err, errNoSuchParts) || errors.As(err, &answer) && answer.Code == minio.NoSuchUpload {
		return fmt.Errorf("%w: %s", storage.ErrNotFound, err.Error()) // another try would not help
	}
	return err
}

// JoinParts implements storage.Parts.
func (s *Store) JoinParts(ctx context.Context, id job.ID, name, upload string, parts []storage.Part) error {
	bucket, key, err := s.layout.Key(id, name)
	if err != nil {
		return err
	}
	joined := s.objects.openUpload(bucket, key, upload)
	size := int64(0)
	for _, p := range parts {
		joined.parts = append(joined.parts, minio.CompletePart{PartNumber: p.Number, ETag: p.ETag})
		size += p.Size
	}
	err = withoutUpload(joined.complete(ctx, size))
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && (answer.Code == "InvalidPart" || answer.Code == "InvalidPartOrder") {
		err = fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	if err != nil {
		return fmt.Errorf("join the parts of %s of job %s: %w", name, id, err)
	}
	return nil
}

// DropParts implements storage.Parts.
func (s *Store) DropParts(ctx context.Context, id job.ID, name, upload string) error {
	bucket, key, err := s.layout.Key(id, name)
	if err != nil {
		return err
	}
	err = withoutUpload(s.objects.try(ctx, "delete", s.objects.stall, func(ctx context.Context, _ *watch) error {
		return s.objects.client.AbortMultipartUpload(ctx, bucket, key, upload)
	}))
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("drop the parts of %s of job %s: %w", name, id, err)
	}
	return nil
}

// openUpload returns an upload that was begun before.
func (o *objects) openUpload(bucket, key, id string) *upload {
	return &upload{objects: o, bucket: bucket, key: key, id: id}
}
