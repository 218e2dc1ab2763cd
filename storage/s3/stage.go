package s3

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// Stage copies inputs/ to dir's inputs/.
func (s *Store) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (storage.Staged, error) {
	return s.stager.Stage(ctx, id, dir, how)
}

// fetch appends to file what it lacks of a stored one, from offset on.
func (s *Store) fetch(ctx context.Context, id job.ID, info storage.Info, file *os.File, offset int64) error {
	bucket, key, err := s.layout.Key(id, info.Name)
	if err != nil {
		return err
	}
	err = s.fetchRest(ctx, bucket, key, info, file, offset)
	if errors.Is(err, errCondition) && s.listsOtherETag(ctx, bucket, key, info) {
		err = s.fetchRest(ctx, bucket, key, info, file, offset)
	}
	return err
}

// fetchRest appends what file lacks from offset on.
func (s *Store) fetchRest(ctx context.Context, bucket, key string, info storage.Info, file *os.File, offset int64) error {
	etag := info.ETag
	if s.features.otherETags.Load() {
		etag = ""
	}
	body := s.continued(ctx, bucket, key, etag, nil, offset, info.Size)
	defer body.Close()
	return copyTo(file, body)
}

// listsOtherETag reports whether a file that is as it was listed has another
// ETag than in the listing.
func (s *Store) listsOtherETag(ctx context.Context, bucket, key string, listed storage.Info) bool {
	var info minio.ObjectInfo
	err := s.try(ctx, "exists", s.stall, func(ctx context.Context, _ *watch) (err error) {
		info, err = s.client.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
		return err
	})
	if err != nil || info.ETag == listed.ETag || info.Size != listed.Size || info.LastModified.Unix() != listed.Modified.Unix() {
		return false
	}
	s.lacks(&s.features.otherETags, "ETags of listings", "versions of files are told apart by time and size until they are fetched")
	return true
}

// copyTo copies body to file. Errors of the file wrap storage.ErrWorkDir.
func copyTo(file *os.File, body io.Reader) error {
	buffer := copyBuffers.Get().(*[128 << 10]byte)
	defer copyBuffers.Put(buffer)
	for {
		n, err := body.Read(buffer[:])
		if _, err := file.Write(buffer[:n]); err != nil {
			return workdir.Error(err)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
