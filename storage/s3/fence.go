package s3

import (
	"context"
	"os"

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
		Collector: s.collector(), Copy: s.objects.copy,
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
				s.objects.abortUploads(ctx, bucket, to)
			}
		},
	}
}
