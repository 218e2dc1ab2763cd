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

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// CheckID returns nil when the id can name a place in this storage.
func (s *Store) CheckID(id job.ID) error { return s.layout.CheckID(id) }

// Exists reports whether the job has a place.
func (s *Store) Exists(ctx context.Context, id job.ID) (bool, error) {
	if err := s.CheckID(id); err != nil {
		return false, err
	}
	var exists bool
	var err error
	if s.layout.Bucket == "" {
		err = s.objects.try(ctx, "exists", s.objects.stall, func(ctx context.Context, _ *watch) (err error) {
			exists, err = s.objects.client.BucketExists(ctx, string(id))
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
// Two conditions make it exclusive. Only one client can create a bucket; where that
// does not hold (a prefix per job, AWS in us-east-1, Ceph), a place that has any file is
// taken. And the input is written only if it does not exist, which decides between two
// clients that came this far at the same time.
//
// If writing the input fails, the bucket is removed again. If that fails too, or the
// request that creates the bucket gets no answer, or the daemon is killed in between,
// the submission stays recorded, so that the client's next try does not find the id
// taken.
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
	look := s.layout.Bucket != ""
	if s.layout.Bucket == "" {
		ours, err := s.submissions.begin(id)
		if err != nil {
			return localError(err)
		}
		unsure, err := s.makeBucket(ctx, id)
		switch {
		case err == nil:
			look = s.reclaims(ctx, id)
		case errdefs.IsAlreadyExists(err) && (ours || unsure || s.shared):
			look = true
		case errdefs.IsAlreadyExists(err):
			s.endSubmission(id)
			return s.takenUnlessSame(ctx, id, name, payload)
		default:
			if f := new(requestError); ctx.Err() == nil && !ours && !unsure && !(errors.As(err, &f) && f.unsure) {
				s.endSubmission(id) // no try, of this Init or an earlier one, can have created it
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
	err := s.objects.putNew(ctx, bucket, prefix+name, bytes.NewReader(payload), int64(len(payload)))
	if errors.Is(err, errCondition) {
		s.endSubmission(id)
		return s.takenUnlessSame(ctx, id, name, payload)
	}
	// A server may refuse a try before it has read the body, because an earlier one has stored
	// the file, and the answer is lost with the connection.
	if f := new(requestError); errors.As(err, &f) && f.unsure && ctx.Err() == nil && s.takenUnlessSame(ctx, id, name, payload) == nil {
		err = nil
	}
	if s.layout.Bucket == "" {
		s.undoInit(ctx, id, err)
	}
	return err
}

// MakeBucket creates the shared bucket if it does not exist. The daemon calls it for its
// embedded storage; in any other storage the operator creates the bucket.
func (s *Store) MakeBucket(ctx context.Context) error {
	err := s.objects.try(ctx, "make_bucket", s.objects.stall, func(ctx context.Context, _ *watch) error {
		return s.objects.client.MakeBucket(ctx, s.layout.Bucket, minio.MakeBucketOptions{})
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("make bucket %s: %w", s.layout.Bucket, err)
	}
	return nil
}

// makeBucket creates the job's bucket. unsure says, beside an error, that an earlier try
// of the same call may have created it.
func (s *Store) makeBucket(ctx context.Context, id job.ID) (unsure bool, err error) {
	err = s.objects.tryFrom(ctx, "make_bucket", s.objects.stall, func(ctx context.Context, _ *watch, earlier bool) error {
		unsure = earlier
		return s.objects.client.MakeBucket(ctx, string(id), minio.MakeBucketOptions{})
	})
	return unsure, err
}

// reclaims reports whether the job's bucket, which was created without an error, may have
// existed before. It finds out, once, by creating it again.
func (s *Store) reclaims(ctx context.Context, id job.ID) bool {
	features := &s.objects.features
	if !features.reclaims.Load() && !features.refuses.Load() {
		switch _, err := s.makeBucket(ctx, id); {
		case err == nil:
			s.objects.lacks(&features.reclaims, "refusal of a bucket that exists", "a bucket is listed before it is used")
		case errdefs.IsAlreadyExists(err):
			features.refuses.Store(true)
		}
	}
	return !features.refuses.Load()
}

// undoInit removes the bucket if writing the input failed.
func (s *Store) undoInit(ctx context.Context, id job.ID, failed error) {
	if failed == nil {
		s.endSubmission(id)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := s.objects.client.RemoveBucket(ctx, string(id)); err != nil { // refused if the input was stored nevertheless
		s.log.Debug("a bucket without its input stays in storage", "job", id, "error", err)
		return
	}
	s.endSubmission(id)
}

// endSubmission records that the submission of the job is over.
func (s *Store) endSubmission(id job.ID) {
	if s.layout.Bucket != "" {
		return
	}
	if err := s.submissions.end(id); err != nil {
		s.log.Warn("cannot remove the mark of a submission that has ended; it is removed later", "job", id, "error", err)
	}
}

// takenUnlessSame returns nil if payload under the name is the only file of the place,
// as an interrupted Init leaves it, else ErrExists.
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

// Remove removes the job's place with all its files.
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
	s.objects.abortUploads(ctx, bucket, prefix)
	for {
		if err := s.removeFiles(ctx, id, "", func(name string) bool { return name != job.StatusFile }); err != nil {
			return err
		}
		if err := s.objects.remove(ctx, bucket, prefix+job.StatusFile); err != nil {
			return err
		}
		if s.layout.Bucket != "" {
			return nil
		}
		err := s.objects.try(ctx, "remove_bucket", s.objects.stall, func(ctx context.Context, _ *watch) error {
			return s.objects.client.RemoveBucket(ctx, string(id))
		})
		var answer minio.ErrorResponse
		if errors.As(err, &answer) && answer.Code == minio.BucketNotEmpty {
			// Another client stored files meanwhile. Each round removes all it finds,
			// so this ends when that client does, or with ctx.
			if err := rest(ctx, 1); err != nil {
				return err
			}
			continue
		}
		return err
	}
}

// removeFiles removes the job's files below prefix that unwanted picks.
func (s *Store) removeFiles(ctx context.Context, id job.ID, prefix string, unwanted func(name string) bool) error {
	bucket, below := s.layout.Place(id)
	return s.objects.removeAll(ctx, bucket, func(yield func(string, error) bool) {
		for info, err := range s.list(ctx, id, prefix, 0) {
			if err != nil {
				yield("", err)
				return
			}
			if unwanted(info.Name) && !yield(below+info.Name, nil) {
				return
			}
		}
	})
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

// first returns the first files, at most most, whose names begin with prefix.
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

// list yields the files whose name begins with prefix, in the order of their names.
// page is how many are asked for at a time, 0 for the server's usual number. It yields
// at most one error, as the last element.
func (s *Store) list(ctx context.Context, id job.ID, prefix string, page int) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		bucket, below := s.layout.Place(id)
		for object, err := range s.objects.list(ctx, bucket, below+prefix, page) {
			if err != nil {
				yield(storage.Info{}, err)
				return
			}
			info := storage.Info{Name: strings.TrimPrefix(object.Key, below), Size: object.Size, ETag: object.ETag, Modified: object.LastModified}
			if !yield(info, nil) {
				return
			}
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

// Ping lists one name, which needs the server, the keys and, with a prefix per job, the
// bucket. With a bucket per job there is no bucket that is sure to exist: it lists one
// whose name is random, and takes NoSuchBucket and AccessDenied as success.
func (s *Store) Ping(ctx context.Context) error {
	bucket := s.layout.Bucket
	if bucket == "" {
		bucket = s.pingBucket
	}
	sent := time.Now()
	within, w := newWatch(ctx, s.objects.stall)
	defer w.stop()
	err := func() error {
		for object := range s.objects.client.ListObjectsIter(within, bucket, minio.ListObjectsOptions{MaxKeys: 1}) {
			return object.Err
		}
		return within.Err()
	}()
	err = s.objects.classify(ctx, within, err)
	s.objects.observe("ping", time.Since(sent), err)
	var answer minio.ErrorResponse
	switch {
	case s.layout.Bucket == "" && (errdefs.IsNotFound(err) || errors.As(err, &answer) && answer.Code == minio.AccessDenied):
		return nil
	case !errdefs.IsNotFound(err):
		return err
	}
	return fmt.Errorf("storage at %s has no bucket %q: create it, or change storage.bucket: %w", s.objects.url, s.layout.Bucket, err)
}
