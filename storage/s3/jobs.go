package s3

import (
	"context"
	"fmt"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
)

// Jobs implements storage.Store. With a bucket per job it visits the buckets of one
// answer: all of them, except on AWS with more than 10,000.
func (s *Store) Jobs(ctx context.Context, visit func(job.ID) error) error {
	visit = s.valid(visit)
	var err error
	if s.layout.Bucket == "" {
		err = s.visitBuckets(ctx, visit)
	} else {
		err = s.visitPrefixes(ctx, visit)
	}
	if err != nil {
		return fmt.Errorf("list the jobs in storage: %w", err)
	}
	return nil
}

// valid returns a visit that passes over ids that no job can have.
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
	err := s.objects.try(ctx, "list", s.objects.stall, func(ctx context.Context, _ *watch) (err error) {
		buckets, err = s.objects.client.ListBuckets(ctx)
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
	err := s.objects.try(ctx, "list", s.objects.stall, func(ctx context.Context, w *watch) error {
		noOwner := false
		for object := range s.objects.client.ListObjectsIter(ctx, s.layout.Bucket, minio.ListObjectsOptions{StartAfter: after, FetchOwner: &noOwner}) {
			if object.Err != nil {
				return object.Err
			}
			id, ok := strings.CutSuffix(object.Key, "/")
			if ok && object.Key != after {
				w.meanwhile(func() { stopped = visit(job.ID(id)) })
				if stopped != nil {
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
