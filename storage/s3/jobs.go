package s3

import (
	"context"
	"fmt"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
)

// Jobs implements storage.Store. With a bucket per job it sees as many buckets as
// the server names in one answer: all of them, but for AWS with over 10,000.
func (s *Store) Jobs(ctx context.Context, visit func(job.ID) error) error {
	visit = s.valid(visit)
	var err error
	if s.bucket == "" {
		err = s.visitBuckets(ctx, visit)
	} else {
		err = s.visitPrefixes(ctx, visit)
	}
	if err != nil {
		return fmt.Errorf("list the jobs in storage: %w", err)
	}
	return nil
}

// valid calls visit with ids that a job can have.
func (s *Store) valid(visit func(job.ID) error) func(job.ID) error {
	return func(id job.ID) error {
		if s.CheckID(id) != nil {
			return nil
		}
		return visit(id)
	}
}

func (s *Store) visitBuckets(ctx context.Context, visit func(job.ID) error) error {
	var buckets []minio.BucketInfo
	err := s.try(ctx, "list", s.stall, func(ctx context.Context, _ *watch) (err error) {
		buckets, err = s.client.ListBuckets(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for _, b := range buckets {
		if err := visit(job.ID(b.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) visitPrefixes(ctx context.Context, visit func(job.ID) error) error {
	after := ""
	var stopped error
	err := s.try(ctx, "list", s.stall, func(ctx context.Context, w *watch) error {
		noOwner := false
		for object := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{StartAfter: after, FetchOwner: &noOwner}) {
			if object.Err != nil {
				return object.Err
			}
			w.pause() // the time between pages is the caller's
			id, ok := strings.CutSuffix(object.Key, "/")
			if ok && object.Key != after {
				if stopped = visit(job.ID(id)); stopped != nil {
					return nil
				}
			}
			after = object.Key
			w.moved()
		}
		return ctx.Err() // a listing that is cut short says nothing
	})
	if stopped != nil {
		return stopped
	}
	return err
}
