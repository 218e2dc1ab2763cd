package embedded

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

var _ storage.Parts = (*Store)(nil)

// BeginParts implements storage.Parts.
func (o *Store) BeginParts(ctx context.Context, id job.ID, name string) (string, error) {
	bucket, key, err := o.layout.Key(id, name)
	if err != nil {
		return "", err
	}
	upload := ""
	err = o.observed(ctx, "begin_upload", func() error {
		u, err := o.folder.CreateUpload(folder.Upload{Bucket: bucket, Key: key, Attrs: map[string]string{"Content-Type": defaultContentType}})
		if err == nil {
			upload = u.ID
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("begin the upload of %s of job %s: %w", name, id, err)
	}
	return upload, nil
}

// StoredParts implements storage.Parts.
func (o *Store) StoredParts(ctx context.Context, id job.ID, name, upload string) ([]storage.Part, error) {
	bucket, key, err := o.layout.Key(id, name)
	if err != nil {
		return nil, err
	}
	var parts []storage.Part
	err = o.observed(ctx, "list_parts", func() error {
		u, err := o.folder.GetUpload(bucket, key, upload)
		if err != nil {
			return partsError(err)
		}
		stored, _, err := o.folder.Parts(u, 0, folder.MaxParts)
		for _, p := range stored {
			parts = append(parts, storage.Part{Number: p.Number, Size: p.Size, ETag: p.ETag})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the parts of %s of job %s: %w", name, id, err)
	}
	return parts, nil
}

// JoinParts implements storage.Parts.
func (o *Store) JoinParts(ctx context.Context, id job.ID, name, upload string, parts []storage.Part) error {
	bucket, key, err := o.layout.Key(id, name)
	if err != nil {
		return err
	}
	chosen := make([]folder.Part, len(parts))
	want := completion{size: 0, parts: make([]checksumXML, len(parts))}
	for i, p := range parts {
		chosen[i] = folder.Part{Number: p.Number, ETag: p.ETag}
		want.size += p.Size
	}
	err = o.observed(ctx, "complete_upload", func() error {
		_, err := o.folder.CompleteUpload(ctx, bucket, key, upload, chosen, func(u *folder.Upload, stored []folder.Part, info *folder.Info) error {
			return want.check(u, stored, info)
		}, nil)
		return partsError(err)
	})
	if err != nil {
		return fmt.Errorf("join the parts of %s of job %s: %w", name, id, err)
	}
	return nil
}

// DropParts implements storage.Parts.
func (o *Store) DropParts(ctx context.Context, id job.ID, name, upload string) error {
	bucket, key, err := o.layout.Key(id, name)
	if err != nil {
		return err
	}
	err = o.observed(ctx, "delete", func() error { return partsError(o.folder.AbortUpload(bucket, key, upload)) })
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("drop the parts of %s of job %s: %w", name, id, err)
	}
	return nil
}

// partsError gives an error of the folder about parts its class.
func partsError(err error) error {
	var refused *apiError
	switch {
	case errors.Is(err, folder.ErrNoUpload):
		return fmt.Errorf("%w: %w", storage.ErrNotFound, err)
	case errors.Is(err, folder.ErrBadPart), errors.Is(err, folder.ErrPartOrder), errors.As(err, &refused):
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return err
}

// Room returns an error of class errdefs.ErrResourceExhausted where the disk has no room
// for so many bytes that clients store.
func (o *Store) Room(bytes int64) error { return storeError(o.space.Check(bytes)) }
