package s3

import (
	"fmt"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/layout"
)

// CheckID answers nil when the id can name a place here. Where every job has a
// bucket of its own, the id is held to the rules of S3 bucket names.
func (s *Store) CheckID(id job.ID) error {
	if s.bucket == "" {
		return layout.CheckBucket(string(id))
	}
	if _, err := job.ParseID(string(id)); err != nil {
		return layout.Invalid(err.Error())
	}
	return nil
}

// place is the bucket and the key prefix of a job's files.
func (s *Store) place(id job.ID) (bucket, prefix string) {
	if s.bucket == "" {
		return string(id), ""
	}
	return s.bucket, string(id) + "/"
}

// key is the bucket and key of one of a job's files, both checked.
func (s *Store) key(id job.ID, name string) (bucket, key string, err error) {
	if err := s.CheckID(id); err != nil {
		return "", "", err
	}
	if err := layout.CheckName(name); err != nil {
		return "", "", err
	}
	bucket, prefix := s.place(id)
	if len(prefix)+len(name) > layout.MaxKey {
		return "", "", fmt.Errorf("%q is longer than %d bytes: %w", prefix+name, layout.MaxKey, storage.ErrBadName)
	}
	return bucket, prefix + name, nil
}
