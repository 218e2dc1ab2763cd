package s3

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/storage"
)

// copy copies an object within a bucket; storage.ErrFenced where the source does not
// exist. A large one is copied in parts that are joined last: with a single request the
// server could go on copying long after its sender was fenced.
func (o *objects) copy(ctx context.Context, bucket, from, to string, size int64) error {
	if size > largePart {
		return o.copyParts(ctx, bucket, from, to, size)
	}
	_, err := o.copying(ctx, func(ctx context.Context) (string, error) {
		info, err := o.client.CopyObject(ctx, bucket, from, bucket, to, nil, minio.CopySrcOptions{Bucket: bucket, Object: from}, minio.PutObjectOptions{})
		return info.ETag, err
	})
	return err
}

// copying runs one request that copies, and returns the ETag of the copy. S3 begins to
// answer with success before it has copied: an answer without an ETag says that it failed.
func (o *objects) copying(ctx context.Context, request func(context.Context) (etag string, err error)) (etag string, err error) {
	err = o.try(ctx, "copy", completion, func(ctx context.Context, _ *watch) (err error) {
		if etag, err = request(ctx); err == nil && etag == "" {
			return &requestError{
				text: fmt.Sprintf("storage at %s answered a copy without its ETag: it failed", o.url), class: errdefs.ErrUnavailable,
				cause: errdefs.ErrUnavailable, again: true, unsure: true,
			}
		}
		return err
	})
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && (answer.Code == minio.NoSuchKey || answer.Code == minio.NoSuchUpload) {
		err = storage.ErrFenced
	}
	return etag, err
}

// copyParts copies a large object.
func (o *objects) copyParts(ctx context.Context, bucket, from, to string, size int64) (err error) {
	partSize := partSizeFor(size, copiedPart)
	count := int((size + partSize - 1) / partSize)
	u, err := o.newUpload(ctx, bucket, to, count)
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
		etag, err := o.copying(ctx, func(ctx context.Context) (string, error) {
			part, err := o.client.CopyObjectPart(ctx, bucket, from, bucket, to, u.id, n+1, offset, min(partSize, size-offset), nil)
			return part.ETag, err
		})
		if err != nil {
			return fmt.Errorf("part %d: %w", n+1, err)
		}
		u.parts[n] = minio.CompletePart{PartNumber: n + 1, ETag: etag}
	}
	err = u.complete(ctx, size)
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.Code == minio.NoSuchUpload {
		return storage.ErrFenced
	}
	return err
}
