package s3

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// Stage copies inputs/ to dir's inputs/.
func (s *Store) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (storage.Staged, error) {
	return s.stager.Stage(ctx, id, dir, how)
}

// fetch appends to file the bytes of the stored file from offset on.
func (s *Store) fetch(ctx context.Context, id job.ID, info storage.Info, file *os.File, offset int64) error {
	bucket, key, err := s.layout.Key(id, info.Name)
	if err != nil {
		return err
	}
	err = s.objects.fetchRest(ctx, bucket, key, info, file, offset)
	if errors.Is(err, errCondition) && !grown(file, offset) && s.objects.listsOtherETag(ctx, bucket, key, info) {
		err = s.objects.fetchRest(ctx, bucket, key, info, file, offset)
	}
	return err
}

// grown reports whether anything was appended to file, which had offset bytes.
func grown(file *os.File, offset int64) bool {
	now, err := file.Seek(0, io.SeekCurrent)
	return err != nil || now != offset
}
