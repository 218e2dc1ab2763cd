package s3

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/places"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// Collect copies dir's outputs/ to outputs/. With replace, earlier files are removed
// after all new ones are stored.
func (s *Store) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	return s.collector().Collect(ctx, id, dir, replace)
}

// collector returns the collector of a single call, whose requests under way it bounds.
func (s *Store) collector() *places.Collector {
	slots := make(slots, s.objects.parallel)
	return &places.Collector{
		Layout: s.layout, Parallel: s.objects.parallel, Remove: s.removeFiles,
		Put: func(ctx context.Context, bucket, key string, file *os.File, size int64) error {
			return s.objects.putFile(ctx, bucket, key, localFile{file}, size, slots)
		},
	}
}

// localFile is a file of the working directory; its errors wrap storage.ErrWorkDir.
type localFile struct{ file *os.File }

func (f localFile) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.file.ReadAt(p, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		err = workdir.Error(err)
	}
	return n, err
}
