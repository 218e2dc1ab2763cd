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

// Collect copies dir's outputs/ to outputs/. Earlier files go, with replace, when
// all new ones are there.
func (s *Store) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	return s.collector().Collect(ctx, id, dir, replace)
}

// collector is one for a single call: it bounds the requests that the call has under
// way.
func (s *Store) collector() *places.Collector {
	slots := make(slots, s.parallel)
	return &places.Collector{
		Layout: s.layout, Parallel: s.parallel, Remove: s.removeFiles,
		Put: func(ctx context.Context, bucket, key string, file *os.File, size int64) error {
			return s.putFile(ctx, bucket, key, localFile{file}, size, slots)
		},
	}
}

// localFile is a file of the working directory, whose errors say so.
type localFile struct{ file *os.File }

func (f localFile) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.file.ReadAt(p, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		err = workdir.Error(err)
	}
	return n, err
}
