package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// CheckID returns nil when the id can name a place here.
func (s *Store) CheckID(id job.ID) error { return s.layout.CheckID(id) }

// Exists reports whether the job has a place.
func (s *Store) Exists(ctx context.Context, id job.ID) (bool, error) {
	if err := s.CheckID(id); err != nil {
		return false, err
	}
	var exists bool
	var err error
	if s.bucket == "" {
		err = s.try(ctx, "exists", s.stall, func(ctx context.Context, _ *watch) (err error) {
			exists, err = s.client.BucketExists(ctx, string(id))
			return err
		})
	} else {
		var found []storage.Info
		found, err = s.first(ctx, id, "", 1)
		exists = len(found) > 0
	}
	if err != nil {
		return false, fmt.Errorf("look for job %s: %w", id, err)
	}
	return exists, nil
}

// Init makes the job's place with payload as inputs/input.
//
// Two things make it exclusive. Only one client can make a bucket; where that
// is not so (a prefix per job, AWS in us-east-1) a place that holds anything is
// taken. And the input is written only where there is none, which decides
// between two that came this far at once.
//
// A bucket whose input then fails to get there is removed again. Where even
// that fails, or making the bucket got no answer, or the daemon is killed in
// between, the bucket is remembered as our own, so that the client's next try is
// not told that the id is taken.
func (s *Store) Init(ctx context.Context, id job.ID, payload []byte) error {
	return s.makePlace(ctx, id, inputName, payload)
}

// Reserve makes the job's place with status as its job_status.json, as Init does.
func (s *Store) Reserve(ctx context.Context, id job.ID, status job.Status) error {
	text, err := job.JSON(status)
	if err != nil {
		return fmt.Errorf("write the state of job %s: %w", id, err)
	}
	return s.makePlace(ctx, id, job.StatusFile, text)
}

// makePlace makes the job's place with one file.
func (s *Store) makePlace(ctx context.Context, id job.ID, name string, payload []byte) error {
	if err := s.CheckID(id); err != nil {
		return err
	}
	if err := s.init(ctx, id, name, payload); err != nil {
		return fmt.Errorf("make the place of job %s: %w", id, err)
	}
	return nil
}

func (s *Store) init(ctx context.Context, id job.ID, name string, payload []byte) error {
	look := s.bucket != "" || s.reclaims
	if s.bucket == "" {
		ours, err := s.submissions.begin(id)
		if err != nil {
			return localError(err)
		}
		unsure, err := s.makeBucket(ctx, id)
		switch {
		case err == nil:
		case errdefs.IsAlreadyExists(err) && (ours || unsure || s.shared):
			look = true
		case errdefs.IsAlreadyExists(err):
			s.endSubmission(id)
			return s.takenUnlessSame(ctx, id, name, payload)
		default:
			if f := new(requestError); ctx.Err() == nil && !ours && !unsure && !(errors.As(err, &f) && f.unsure) {
				s.endSubmission(id) // no try, of this Init or an earlier one, can have made it
			}
			return err
		}
	}
	if look {
		found, err := s.first(ctx, id, "", 1)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			s.endSubmission(id)
			return s.takenUnlessSame(ctx, id, name, payload)
		}
	}
	bucket, prefix := s.layout.Place(id)
	err := s.putNew(ctx, bucket, prefix+name, bytes.NewReader(payload), int64(len(payload)))
	if errors.Is(err, errCondition) {
		s.endSubmission(id)
		return s.takenUnlessSame(ctx, id, name, payload)
	}
	if s.bucket == "" {
		s.undoInit(ctx, id, err)
	}
	return err
}

// MakeBucket makes the shared bucket where it is not there. The operator makes
// that of a storage elsewhere; the daemon that of its own.
func (s *Store) MakeBucket(ctx context.Context) error {
	err := s.try(ctx, "make_bucket", s.stall, func(ctx context.Context, _ *watch) error {
		return s.client.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{})
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("make bucket %s: %w", s.bucket, err)
	}
	return nil
}

// makeBucket makes the job's bucket. unsure says, beside an error, that a try of
// the same call before the last may have made it.
func (s *Store) makeBucket(ctx context.Context, id job.ID) (unsure bool, err error) {
	err = s.tryFrom(ctx, "make_bucket", s.stall, func(ctx context.Context, _ *watch, earlier bool) error {
		unsure = earlier
		return s.client.MakeBucket(ctx, string(id), minio.MakeBucketOptions{})
	})
	return unsure, err
}

// undoInit undoes making the bucket when writing the input failed.
func (s *Store) undoInit(ctx context.Context, id job.ID, failed error) {
	if failed == nil {
		s.endSubmission(id)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := s.client.RemoveBucket(ctx, string(id)); err != nil { // refused where the input got there after all
		s.log.Debug("a bucket without its input stays in storage", "job", id, "error", err)
		return
	}
	s.endSubmission(id)
}

// endSubmission forgets that the job is being submitted.
func (s *Store) endSubmission(id job.ID) {
	if s.bucket != "" {
		return
	}
	if err := s.submissions.end(id); err != nil {
		s.log.Warn("a submission counts as under way for longer than it is", "job", id, "error", err)
	}
}

// takenUnlessSame answers nil when the place holds payload under the name and
// nothing else, which is what an Init cut short leaves behind, else ErrExists.
func (s *Store) takenUnlessSame(ctx context.Context, id job.ID, name string, payload []byte) error {
	found, err := s.first(ctx, id, "", 2)
	switch {
	case errdefs.IsPermissionDenied(err), errdefs.IsNotFound(err): // another account's bucket; one that goes away
		return storage.ErrExists
	case err != nil:
		return err
	case len(found) != 1 || found[0].Name != name || found[0].Size != int64(len(payload)):
		return storage.ErrExists
	}
	file, err := s.Open(ctx, id, name, nil)
	if errdefs.IsNotFound(err) {
		return storage.ErrExists
	}
	if err != nil {
		return err
	}
	defer file.Body.Close()
	stored, err := io.ReadAll(io.LimitReader(file.Body, int64(len(payload))+1))
	if err != nil {
		return err
	}
	if !bytes.Equal(stored, payload) {
		return storage.ErrExists
	}
	return nil
}

// Remove removes the job's place with all it holds.
func (s *Store) Remove(ctx context.Context, id job.ID) error {
	if err := s.CheckID(id); err != nil {
		return err
	}
	if err := s.remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove job %s: %w", id, err)
	}
	s.endSubmission(id)
	return nil
}

func (s *Store) remove(ctx context.Context, id job.ID) error {
	bucket, prefix := s.layout.Place(id)
	s.abortUploads(ctx, bucket, prefix)
	for {
		if err := s.removeFiles(ctx, id, "", func(name string) bool { return name != job.StatusFile }); err != nil {
			return err
		}
		if err := s.removeEach(ctx, bucket, []minio.ObjectInfo{{Key: prefix + job.StatusFile}}); err != nil {
			return err
		}
		if s.bucket != "" {
			return nil
		}
		err := s.try(ctx, "remove_bucket", s.stall, func(ctx context.Context, _ *watch) error {
			return s.client.RemoveBucket(ctx, string(id))
		})
		var answer minio.ErrorResponse
		if errors.As(err, &answer) && answer.Code == minio.BucketNotEmpty {
			// Somebody wrote meanwhile. Each round removes what it finds, so this
			// ends when the writer does, or with ctx.
			if err := rest(ctx, 1); err != nil {
				return err
			}
			continue
		}
		return err
	}
}

// removeFiles removes the job's files below prefix that unwanted picks, a
// thousand at a time.
func (s *Store) removeFiles(ctx context.Context, id job.ID, prefix string, unwanted func(name string) bool) error {
	const batch = 1000
	bucket, below := s.layout.Place(id)
	keys := make([]minio.ObjectInfo, 0, batch)
	flush := func() error {
		if len(keys) == 0 {
			return nil
		}
		if s.features.noBatchDelete.Load() {
			err := s.removeEach(ctx, bucket, keys)
			keys = keys[:0]
			return err
		}
		err := s.try(ctx, "delete", s.stall, func(ctx context.Context, _ *watch) error {
			results, err := s.client.RemoveObjectsWithIter(ctx, bucket, func(yield func(minio.ObjectInfo) bool) {
				for _, key := range keys {
					if !yield(key) {
						return
					}
				}
			}, minio.RemoveObjectsOptions{})
			if err != nil {
				return err
			}
			for result := range results {
				if result.Err != nil && err == nil {
					err = result.Err
				}
			}
			return err
		})
		if unsupported(err) {
			s.lacks(&s.features.noBatchDelete, "deletion of several files by one request", "files are deleted one by one")
			err = s.removeEach(ctx, bucket, keys)
		}
		keys = keys[:0]
		return err
	}
	for info, err := range s.list(ctx, id, prefix, 0) {
		if err != nil {
			return err
		}
		if !unwanted(info.Name) {
			continue
		}
		if keys = append(keys, minio.ObjectInfo{Key: below + info.Name}); len(keys) == batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// removeEach removes files one by one, several at a time.
func (s *Store) removeEach(ctx context.Context, bucket string, keys []minio.ObjectInfo) error {
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	for _, key := range keys {
		group.Go(func() error {
			err := s.try(within, "delete", s.stall, func(ctx context.Context, _ *watch) error {
				return s.client.RemoveObject(ctx, bucket, key.Key, minio.RemoveObjectOptions{})
			})
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// List implements storage.Store.
func (s *Store) List(ctx context.Context, id job.ID, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := s.CheckID(id); err != nil {
			yield(storage.Info{}, err)
			return
		}
		for info, err := range s.list(ctx, id, prefix, 0) {
			if err != nil {
				err = fmt.Errorf("list the files of job %s: %w", id, err)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// first is the first most files whose name begins with prefix.
func (s *Store) first(ctx context.Context, id job.ID, prefix string, most int) ([]storage.Info, error) {
	var files []storage.Info
	for info, err := range s.list(ctx, id, prefix, most) {
		if err != nil {
			return nil, err
		}
		if files = append(files, info); len(files) == most {
			break
		}
	}
	return files, nil
}

// list yields the files whose name begins with prefix, in the order of their
// names, asking for a page of at most page names (0: the server's usual) at a
// time. It yields one error at most, as the last thing.
func (s *Store) list(ctx context.Context, id job.ID, prefix string, page int) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		bucket, below := s.layout.Place(id)
		noOwner := false
		after := ""
		stopped := false
		// Each try goes on after the last name that was passed on.
		err := s.try(ctx, "list", s.stall, func(ctx context.Context, w *watch) error {
			opts := minio.ListObjectsOptions{Prefix: below + prefix, Recursive: true, MaxKeys: page, StartAfter: after, FetchOwner: &noOwner}
			for object := range s.client.ListObjectsIter(ctx, bucket, opts) {
				if object.Err != nil {
					return object.Err
				}
				w.pause() // the time between pages is the caller's
				after = object.Key
				name, ok := strings.CutPrefix(object.Key, below)
				if !ok || !strings.HasPrefix(name, prefix) {
					return fmt.Errorf("storage lists %q below %q: %w", object.Key, below+prefix, storage.ErrBadName)
				}
				if !yield(storage.Info{Name: name, Size: object.Size, ETag: object.ETag, Modified: object.LastModified}, nil) {
					stopped = true
					return nil
				}
				w.moved()
			}
			return ctx.Err() // a listing that is cut short says nothing
		})
		if err != nil && !stopped {
			yield(storage.Info{}, err)
		}
	}
}

// Status reads job_status.json.
func (s *Store) Status(ctx context.Context, id job.ID) (job.Status, error) {
	file, err := s.Open(ctx, id, job.StatusFile, nil)
	if err != nil {
		return job.Status{}, err
	}
	defer file.Body.Close()
	status, err := storage.ReadStatus(file.Body)
	if err != nil {
		return job.Status{}, fmt.Errorf("job %s: %w", id, err)
	}
	return status, nil
}

// SetStatus writes job_status.json.
func (s *Store) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	data, err := job.JSON(status)
	if err != nil {
		return fmt.Errorf("%s of job %s: %w", job.StatusFile, id, err)
	}
	return s.Put(ctx, id, job.StatusFile, bytes.NewReader(data), int64(len(data)))
}

// Ping lists one name, which needs the server, the keys and, with a prefix per
// job, the bucket. With a bucket per job no bucket is sure to be there: one is
// asked for whose name nobody has, and that it is not there, or that this key
// may not know, is as good an answer.
func (s *Store) Ping(ctx context.Context) error {
	bucket := s.bucket
	if bucket == "" {
		bucket = s.pingBucket
	}
	sent := time.Now()
	within, w := newWatch(ctx, s.stall)
	defer w.stop()
	err := func() error {
		for object := range s.client.ListObjectsIter(within, bucket, minio.ListObjectsOptions{MaxKeys: 1}) {
			return object.Err
		}
		return within.Err()
	}()
	err = s.classify(ctx, within, err)
	s.observe("ping", time.Since(sent), err)
	var answer minio.ErrorResponse
	switch {
	case s.bucket == "" && (errdefs.IsNotFound(err) || errors.As(err, &answer) && answer.Code == minio.AccessDenied):
		return nil
	case !errdefs.IsNotFound(err):
		return err
	}
	return fmt.Errorf("storage at %s has no bucket %q: make it, or change storage.bucket: %w", s.url, s.bucket, err)
}
