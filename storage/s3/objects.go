package s3

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/storage"
)

// objects stores and fetches objects, by bucket and key, on any S3 server.
type objects struct {
	requester
	client    *minio.Core
	transport *http.Transport
	features  features
	// parallel is how many requests a call has under way at most.
	parallel int
	// hashing holds an element for each hash that is being computed; see hash.
	hashing chan struct{}
	// ranges holds an element for each range of a large download, besides one of each.
	ranges    chan struct{}
	rangeSize int64 // see copyRanges
	log       *slog.Logger
}

// list yields the objects whose key begins with prefix, in the order of their keys. page
// is how many are asked for at a time, 0 for the server's usual number. It yields at
// most one error, as the last element.
func (o *objects) list(ctx context.Context, bucket, prefix string, page int) iter.Seq2[minio.ObjectInfo, error] {
	return func(yield func(minio.ObjectInfo, error) bool) {
		noOwner := false
		after := ""
		more := true
		// Each try goes on after the last key that was yielded.
		err := o.try(ctx, "list", o.stall, func(ctx context.Context, w *watch) error {
			opts := minio.ListObjectsOptions{Prefix: prefix, Recursive: true, MaxKeys: page, StartAfter: after, FetchOwner: &noOwner}
			for object := range o.client.ListObjectsIter(ctx, bucket, opts) {
				if object.Err != nil {
					return object.Err
				}
				after = object.Key
				if !strings.HasPrefix(object.Key, prefix) {
					return fmt.Errorf("storage lists %q below %q: %w", object.Key, prefix, storage.ErrBadName)
				}
				w.meanwhile(func() { more = yield(object, nil) })
				if !more {
					return nil
				}
			}
			return ctx.Err() // a listing that is cut short says nothing
		})
		if err != nil && more {
			yield(minio.ObjectInfo{}, err)
		}
	}
}

// remove removes an object; it is no error when there is none.
func (o *objects) remove(ctx context.Context, bucket, key string) error {
	err := o.try(ctx, "delete", o.stall, func(ctx context.Context, _ *watch) error {
		return o.client.RemoveObject(ctx, bucket, key, minio.RemoveObjectOptions{})
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// removeAll removes the objects with the given keys, a thousand at a time. An error
// among the keys ends it, and is returned.
func (o *objects) removeAll(ctx context.Context, bucket string, keys iter.Seq2[string, error]) error {
	const most = 1000 // S3's limit
	batch := make([]string, 0, most)
	for key, err := range keys {
		if err != nil {
			return err
		}
		if batch = append(batch, key); len(batch) == most {
			if err := o.removeBatch(ctx, bucket, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return o.removeBatch(ctx, bucket, batch)
}

// removeBatch removes objects with one request, where the server can do that, and those
// of which its answer does not say that they are removed one by one.
func (o *objects) removeBatch(ctx context.Context, bucket string, keys []string) error {
	if o.features.noBatchDelete.Load() {
		return o.removeEach(ctx, bucket, keys)
	}
	left := make(map[string]struct{}, len(keys))
	for _, key := range keys {
		left[key] = struct{}{}
	}
	err := o.try(ctx, "delete", o.stall, func(ctx context.Context, _ *watch) error {
		results, err := o.client.RemoveObjectsWithIter(ctx, bucket, func(yield func(minio.ObjectInfo) bool) {
			for _, key := range keys {
				if !yield(minio.ObjectInfo{Key: key}) {
					return
				}
			}
		}, minio.RemoveObjectsOptions{})
		if err != nil {
			return err
		}
		for result := range results {
			switch {
			case result.Err == nil:
				delete(left, result.ObjectName)
			case err == nil:
				err = result.Err
			}
		}
		return err
	})
	if unsupported(err) {
		o.lacks(&o.features.noBatchDelete, "deletion of several files by one request", "files are deleted one by one")
		return o.removeEach(ctx, bucket, keys)
	}
	if err != nil || len(left) == 0 {
		return err
	}
	return o.removeEach(ctx, bucket, slices.Sorted(maps.Keys(left)))
}

// removeEach removes objects with a request each, several at a time.
func (o *objects) removeEach(ctx context.Context, bucket string, keys []string) error {
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(o.parallel)
	for _, key := range keys {
		group.Go(func() error { return o.remove(within, bucket, key) })
	}
	return group.Wait()
}
