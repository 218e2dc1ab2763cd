package s3

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/places"
)

var _ storage.Fencer = (*Store)(nil)

// CollectApart implements storage.Fencer.
func (s *Store) CollectApart(ctx context.Context, id job.ID, attempt int64, dir *os.Root) (storage.Apart, error) {
	return s.fencer().CollectApart(ctx, id, attempt, dir)
}

// Fence implements storage.Fencer.
func (s *Store) Fence(ctx context.Context, id job.ID, attempt int64) error {
	return s.fencer().Fence(ctx, id, attempt)
}

func (s *Store) fencer() *places.Fencer {
	return &places.Fencer{
		Collector: s.collector(), Copy: s.copy,
		List: func(ctx context.Context, id job.ID, prefix string, visit func(storage.Info)) error {
			for info, err := range s.list(ctx, id, prefix, 0) {
				if err != nil {
					return err
				}
				visit(info)
			}
			return nil
		},
		Abort: func(ctx context.Context, bucket, to string, size int64) {
			if size > largePart {
				s.abortUploads(ctx, bucket, to)
			}
		},
	}
}

// copy copies a file within a bucket; it is storage.ErrFenced where that is not there.
// A large one is copied in parts, which are joined last: one request would go on in the
// server for long after whoever sent it was fenced.
func (s *Store) copy(ctx context.Context, bucket, from, to string, size int64) error {
	if size > largePart {
		return s.copyParts(ctx, bucket, from, to, size)
	}
	return s.copying(ctx, func(ctx context.Context) error {
		_, err := s.client.CopyObject(ctx, bucket, from, bucket, to, nil, minio.CopySrcOptions{Bucket: bucket, Object: from}, minio.PutObjectOptions{})
		return err
	})
}

// copying makes one request that copies.
func (s *Store) copying(ctx context.Context, request func(context.Context) error) error {
	err := s.try(ctx, "copy", completion, func(ctx context.Context, _ *watch) error { return request(ctx) })
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && (answer.Code == minio.NoSuchKey || answer.Code == minio.NoSuchUpload) {
		return storage.ErrFenced
	}
	return err
}

// copyParts copies a large file.
func (s *Store) copyParts(ctx context.Context, bucket, from, to string, size int64) (err error) {
	partSize := partSizeFor(size, copiedPart)
	count := int((size + partSize - 1) / partSize)
	u, err := s.newUpload(ctx, bucket, to, count)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			u.abort(ctx)
		}
	}()
	for n := range count {
		offset := int64(n) * partSize
		err := s.copying(ctx, func(ctx context.Context) (err error) {
			u.parts[n], err = s.client.CopyObjectPart(ctx, bucket, from, bucket, to, u.id, n+1, offset, min(partSize, size-offset), nil)
			return err
		})
		if err != nil {
			return fmt.Errorf("part %d: %w", n+1, err)
		}
	}
	err = u.complete(ctx, size)
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.Code == minio.NoSuchUpload {
		return storage.ErrFenced
	}
	return err
}
