package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/diskspace"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/embedded/internal/folder"
	"github.com/iterait/shepherd/storage/internal/places"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// Store is the daemon's own way to the files of jobs: into the folder, without
// HTTP, signatures and XML. What it stores, clients of the server see at once,
// and the other way round. It implements storage.Store.
type Store struct {
	folder    *folder.Store
	layout    places.Layout
	stager    places.Stager
	collector places.Collector
	observe   func(op string, took time.Duration, err error)
	space     diskspace.Floor
}

var (
	_ storage.Store        = (*Store)(nil)
	_ storage.StatusSyncer = (*Store)(nil)
)

const (
	parallelFiles = 8 // that one Stage or Collect has under way
	listPage      = 1000
	// hashedAtMost is the size up to which a file's ETag is its MD5, which costs
	// more than all else that is done with a large one. Every file has a CRC64NVME.
	hashedAtMost = 8 << 20
	inputName    = job.InputDir + "/" + job.DefaultInput
)

// Store returns a Store of jobs in the server's folder. Bucket holds all jobs,
// each below ID/, and is made where it is missing; empty means a bucket per job.
// observe, which may be nil, is told of every operation as s3.Config.Observe is.
// The Store may be used until the Server is closed.
func (s *Server) Store(bucket string, observe func(op string, took time.Duration, err error)) (*Store, error) {
	if bucket != "" {
		if err := s.store.CreateBucket(bucket); err != nil && !errors.Is(err, folder.ErrBucketExists) {
			return nil, err
		}
	}
	if observe == nil {
		observe = func(string, time.Duration, error) {}
	}
	l := places.Layout{Bucket: bucket}
	o := &Store{folder: s.store, layout: l, observe: observe, space: s.handler.space}
	o.stager = places.Stager{
		Layout: l, Parallel: parallelFiles, Fetch: o.fetch,
		List: o.listStaged,
	}
	o.collector = places.Collector{
		Layout: l, Parallel: parallelFiles, Remove: o.removeFiles,
		Put: func(ctx context.Context, bucket, key string, file *os.File, size int64) error {
			if disk := o.space.Capacity(); disk > 0 && size > disk { // no room that others make will do
				return fmt.Errorf("it has %d MiB, and the whole disk of the storage has %d MiB: %w", size>>20, disk>>20, errdefs.ErrInvalidArgument)
			}
			err := o.put(ctx, bucket, key, localFile{io.NewSectionReader(file, 0, size)}, size, nil)
			if errors.Is(err, folder.ErrShortBody) { // the runner is still at it: another try may find it whole
				return fmt.Errorf("a file changed while it was stored: %w", errdefs.ErrUnavailable)
			}
			return err
		},
	}
	return o, nil
}

// localFile is a file of the working directory, whose errors say so.
type localFile struct{ io.Reader }

func (f localFile) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = workdir.Error(err)
	}
	return n, err
}

// storeError gives an error of the folder its class.
func storeError(err error) error {
	switch {
	case err == nil, errors.Is(err, storage.ErrWorkDir), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, folder.ErrNoKey), errors.Is(err, folder.ErrNoBucket):
		return fmt.Errorf("%w: %w", storage.ErrNotFound, err)
	case folder.IsFull(err):
		return fmt.Errorf("the disk of the embedded storage is full: %w: %w", errdefs.ErrResourceExhausted, err)
	case errors.Is(err, folder.ErrBadKey):
		return fmt.Errorf("%w: %w", storage.ErrBadName, err)
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err), errdefs.IsUnavailable(err), errdefs.IsAlreadyExists(err), errdefs.IsDataLoss(err):
		return err
	}
	return fmt.Errorf("the embedded storage failed: %w: %w", errdefs.ErrUnavailable, err)
}

// observed runs one operation and tells of it.
func (o *Store) observed(ctx context.Context, op string, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	begun := time.Now()
	err := storeError(f())
	o.observe(op, max(time.Since(begun), 1), err)
	return err
}

// CheckID returns nil when the id can name a place here.
func (o *Store) CheckID(id job.ID) error { return o.layout.CheckID(id) }

// Exists reports whether the job has a place.
func (o *Store) Exists(ctx context.Context, id job.ID) (bool, error) {
	if err := o.CheckID(id); err != nil {
		return false, err
	}
	bucket, prefix := o.layout.Place(id)
	exists := false
	err := o.observed(ctx, "exists", func() error {
		if prefix == "" {
			_, err := o.folder.StatBucket(bucket)
			exists = err == nil
			return err
		}
		page, err := o.folder.List(ctx, bucket, folder.Query{Prefix: prefix, Max: 1, Damaged: true})
		exists = len(page.Items) > 0
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return false, fmt.Errorf("look for job %s: %w", id, err)
	}
	return exists, nil
}

// Init makes the job's place with payload as inputs/input: in one step, so that
// nothing is left of one that is cut short.
func (o *Store) Init(ctx context.Context, id job.ID, payload []byte) error {
	return o.makePlace(ctx, id, inputName, payload)
}

// Reserve implements storage.Store.
func (o *Store) Reserve(ctx context.Context, id job.ID, status job.Status) error {
	text, err := job.JSON(status)
	if err != nil {
		return fmt.Errorf("write the state of job %s: %w", id, err)
	}
	return o.makePlace(ctx, id, job.StatusFile, text)
}

// makePlace makes the job's place with one file.
func (o *Store) makePlace(ctx context.Context, id job.ID, name string, payload []byte) error {
	bucket, key, err := o.layout.Key(id, name)
	if err != nil {
		return err
	}
	err = o.observed(ctx, "put", func() error {
		if err := o.space.Check(int64(len(payload))); err != nil {
			return err
		}
		if o.layout.Bucket == "" {
			info, body, complete := o.newObject(bytes.NewReader(payload), int64(len(payload)))
			_, err := o.folder.CreateBucketWith(bucket, key, body, int64(len(payload)), info, complete, job.OutputDir)
			return err
		}
		_, prefix := o.layout.Place(id)
		page, err := o.folder.List(ctx, bucket, folder.Query{Prefix: prefix, Max: 1, Damaged: true})
		if err != nil {
			return err
		}
		if len(page.Items) > 0 {
			return storage.ErrExists
		}
		return o.putObject(bucket, key, bytes.NewReader(payload), int64(len(payload)), func(current *folder.Info) error {
			if current != nil {
				return storage.ErrExists
			}
			return nil
		})
	})
	if errdefs.IsAlreadyExists(err) {
		err = o.takenUnlessSame(ctx, id, name, payload)
	}
	if err != nil {
		return fmt.Errorf("make the place of job %s: %w", id, err)
	}
	return nil
}

// takenUnlessSame returns nil when the place holds payload under the name and
// nothing else, as a client leaves it that missed the answer, else ErrExists.
func (o *Store) takenUnlessSame(ctx context.Context, id job.ID, name string, payload []byte) error {
	bucket, prefix := o.layout.Place(id)
	page, err := o.folder.List(ctx, bucket, folder.Query{Prefix: prefix, Max: 2, Damaged: true})
	if err != nil {
		return storeError(err)
	}
	if len(page.Items) != 1 || page.Items[0].Key != prefix+name || page.Items[0].Size != int64(len(payload)) {
		return storage.ErrExists
	}
	object, err := o.folder.Open(bucket, prefix+name)
	if errors.Is(err, folder.ErrNoKey) {
		return storage.ErrExists
	}
	if err != nil {
		return storeError(err)
	}
	defer object.Close()
	if object.Size != int64(len(payload)) { // it was replaced meanwhile
		return storage.ErrExists
	}
	stored := make([]byte, len(payload))
	if _, err := object.ReadAt(stored, 0); err != nil {
		return storeError(err)
	}
	if !bytes.Equal(stored, payload) {
		return storage.ErrExists
	}
	return nil
}

// newObject describes a file that is stored: its body as it is to be read, and
// what completes the description then.
func (o *Store) newObject(r io.Reader, size int64) (info folder.Info, body io.Reader, complete func(*folder.Info) error) {
	info.Attrs = map[string]string{"Content-Type": defaultContentType}
	if size > hashedAtMost {
		info.ETag = folder.NewETag()
	}
	sum := newChecksum(defaultChecksum)
	return info, io.TeeReader(r, sum), func(info *folder.Info) error {
		info.Checksum = folder.Checksum{Algorithm: defaultChecksum, Value: encodeSum(sum)}
		return nil
	}
}

func (o *Store) putObject(bucket, key string, r io.Reader, size int64, check folder.Check) error {
	info, body, complete := o.newObject(r, size)
	_, err := o.folder.Put(bucket, key, body, size, info, complete, check)
	if errors.Is(err, folder.ErrShortBody) {
		return fmt.Errorf("what is to be stored has another length than announced: %w", err)
	}
	return err
}

func (o *Store) put(ctx context.Context, bucket, key string, r io.Reader, size int64, check folder.Check) error {
	return o.observed(ctx, "put", func() error {
		return o.putObject(bucket, key, contextReader{ctx, r}, size, check)
	})
}

// contextReader ends reading with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Stage copies inputs/ to dir's inputs/.
func (o *Store) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (storage.Staged, error) {
	return o.stager.Stage(ctx, id, dir, how)
}

// fetchPiece is how much is copied before the context is looked at.
const fetchPiece = 16 << 20

// fetch appends to file what it lacks of a stored one.
func (o *Store) fetch(ctx context.Context, id job.ID, info storage.Info, file *os.File, offset int64) error {
	bucket, key, err := o.layout.Key(id, info.Name)
	if err != nil {
		return err
	}
	return o.observed(ctx, "get", func() error {
		object, err := o.folder.Open(bucket, key)
		if err != nil {
			return err
		}
		defer object.Close()
		if object.ETag != info.ETag || object.Size != info.Size {
			return fmt.Errorf("it was replaced while the inputs were copied: %w", errdefs.ErrUnavailable)
		}
		for offset < info.Size {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(fetchPiece, info.Size-offset)
			if err := object.CopyTo(stagedFile{file}, offset, n, n, func() {}); err != nil {
				return err
			}
			offset += n
		}
		return nil
	})
}

// stagedFile is a file of the working directory that is written to. It lets the
// kernel copy.
type stagedFile struct{ file *os.File }

func (t stagedFile) Write(p []byte) (int, error) {
	n, err := t.file.Write(p)
	return n, workdir.Error(err)
}

func (t stagedFile) ReadFrom(r io.Reader) (int64, error) {
	n, err := t.file.ReadFrom(r)
	return n, workdir.Error(err)
}

// Collect copies dir's outputs/ to outputs/.
func (o *Store) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (storage.Collected, error) {
	return o.collector.Collect(ctx, id, dir, replace)
}

// Open opens one file, whole or in part.
func (o *Store) Open(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	bucket, key, err := o.layout.Key(id, name)
	if err != nil {
		return nil, err
	}
	var object *folder.Object
	err = o.observed(ctx, "get", func() (err error) {
		object, err = o.folder.Open(bucket, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s of job %s: %w", name, id, err)
	}
	file := &job.File{Size: object.Size, Length: object.Size, ETag: quote(object.ETag), Modified: object.Modified}
	if part != nil {
		if file.Offset, file.Length, err = clip(*part, object.Size); err != nil {
			object.Close()
			return nil, fmt.Errorf("open %s of job %s: %w", name, id, err)
		}
	}
	file.Body = &objectReader{ctx: ctx, object: object, offset: file.Offset, end: file.Offset + file.Length}
	return file, nil
}

// clip returns the bytes of a file of a size that part means: an Offset below 0
// counts from the end, a Length below 0 is all that follows.
func clip(part job.Range, size int64) (offset, length int64, err error) {
	outside := fmt.Errorf("the requested range lies outside the file: %w", errdefs.ErrOutOfRange)
	offset = part.Offset
	if offset < 0 {
		offset = max(0, size+offset)
	}
	if part.Length == 0 || offset >= size {
		return 0, 0, outside
	}
	length = size - offset
	if part.Length > 0 {
		length = min(length, part.Length)
	}
	return offset, length, nil
}

// objectReader reads a part of an object.
type objectReader struct {
	ctx         context.Context
	object      *folder.Object
	offset, end int64
	closed      bool
}

func (r *objectReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.closed || r.offset >= r.end {
		return 0, io.EOF
	}
	n, err := r.object.ReadAt(p[:min(int64(len(p)), r.end-r.offset)], r.offset)
	r.offset += int64(n)
	if n > 0 {
		return n, nil // an error comes back with the next Read
	}
	return n, storeError(err)
}

// WriteTo lets the kernel send the file.
func (r *objectReader) WriteTo(w io.Writer) (int64, error) {
	var written int64
	for !r.closed && r.offset < r.end {
		if err := r.ctx.Err(); err != nil {
			return written, err
		}
		n := min(sendPiece, r.end-r.offset)
		if err := r.object.CopyTo(w, r.offset, n, n, func() {}); err != nil {
			return written, err
		}
		r.offset, written = r.offset+n, written+n
	}
	return written, nil
}

func (r *objectReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	return r.object.Close()
}

// Put writes one file of the given size.
func (o *Store) Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error {
	bucket, key, err := o.layout.Key(id, name)
	if err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("put %s of job %s: a size of %d: %w", name, id, size, errdefs.ErrInvalidArgument)
	}
	if err := o.put(ctx, bucket, key, r, size, nil); err != nil {
		return fmt.Errorf("put %s of job %s: %w", name, id, err)
	}
	return nil
}

// entry is a file of a job in a listing.
type entry struct {
	storage.Info
	damaged bool // it cannot be read, and nothing is known of it but its name and time
}

// entries yields the files whose name begins with prefix, in the order of their
// names. It yields one error at most, as the last thing.
func (o *Store) entries(ctx context.Context, id job.ID, prefix string) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		bucket, below := o.layout.Place(id)
		q := folder.Query{Prefix: below + prefix, Max: listPage, Damaged: true}
		for {
			var page folder.Page
			err := o.observed(ctx, "list", func() (err error) {
				page, err = o.folder.List(ctx, bucket, q)
				return err
			})
			if err != nil {
				yield(entry{}, err)
				return
			}
			for _, item := range page.Items {
				info := storage.Info{Name: strings.TrimPrefix(item.Key, below), Size: item.Size, ETag: item.ETag, Modified: item.Modified}
				if !yield(entry{info, item.Damaged}, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.After = page.Next
		}
	}
}

// listStaged yields all files of a job's place, also damaged ones: a job must not run
// without such an input. They have a size, so that their data is asked for, which fails.
func (o *Store) listStaged(ctx context.Context, id job.ID) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for e, err := range o.entries(ctx, id, "") {
			if e.damaged {
				e.Size = 1
			}
			if !yield(e.Info, err) {
				return
			}
		}
	}
}

// List implements storage.Store. A damaged file is listed, without a size or an ETag: who takes
// all files must not miss that there is one more, and is told so when opening it.
func (o *Store) List(ctx context.Context, id job.ID, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := o.CheckID(id); err != nil {
			yield(storage.Info{}, err)
			return
		}
		for e, err := range o.entries(ctx, id, prefix) {
			if err != nil {
				err = fmt.Errorf("list the files of job %s: %w", id, err)
			}
			if !yield(e.Info, err) {
				return
			}
		}
	}
}

// Status reads job_status.json.
func (o *Store) Status(ctx context.Context, id job.ID) (job.Status, error) {
	file, err := o.Open(ctx, id, job.StatusFile, nil)
	if err != nil {
		return job.Status{}, err
	}
	defer file.Body.Close()
	status, err := storage.ReadStatus(file.Body)
	if err != nil {
		return job.Status{}, fmt.Errorf("status of job %s: %w", id, err)
	}
	return status, nil
}

// SetStatus writes job_status.json. SyncStatuses makes it durable.
func (o *Store) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	bucket, key, err := o.layout.Key(id, job.StatusFile)
	if err != nil {
		return err
	}
	data, err := job.JSON(status)
	if err == nil {
		err = o.observed(ctx, "put", func() error {
			info, body, complete := o.newObject(bytes.NewReader(data), int64(len(data)))
			return o.folder.PutLater(bucket, key, body, int64(len(data)), info, complete)
		})
	}
	if err != nil {
		return fmt.Errorf("%s of job %s: %w", job.StatusFile, id, err)
	}
	return nil
}

// SyncStatuses implements storage.StatusSyncer.
func (o *Store) SyncStatuses(ctx context.Context) error {
	return o.observed(ctx, "sync", o.folder.Sync)
}

// Remove removes the job's place with all it holds.
func (o *Store) Remove(ctx context.Context, id job.ID) error {
	if err := o.CheckID(id); err != nil {
		return err
	}
	if err := o.remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove job %s: %w", id, err)
	}
	return nil
}

func (o *Store) remove(ctx context.Context, id job.ID) error {
	bucket, prefix := o.layout.Place(id)
	for {
		if err := o.removeFiles(ctx, id, "", func(name string) bool { return name != job.StatusFile }); err != nil {
			return err
		}
		err := o.observed(ctx, "delete", func() error {
			return errors.Join(o.folder.Delete(ctx, bucket, []string{prefix + job.StatusFile}, nil)...)
		})
		if err != nil {
			return err
		}
		if prefix != "" {
			return o.abortUploads(ctx, bucket, prefix)
		}
		err = o.observed(ctx, "remove_bucket", func() error { return o.folder.DeleteBucket(bucket) })
		if !errors.Is(err, folder.ErrBucketNotEmpty) {
			return err
		}
		// A client wrote meanwhile. Each round removes what it finds, so this ends
		// when the client does, or with ctx.
	}
}

// abortUploads removes uploads to the job's files that clients did not complete.
func (o *Store) abortUploads(ctx context.Context, bucket, prefix string) error {
	uploads, err := o.folder.Uploads(ctx, bucket)
	for _, u := range uploads {
		if strings.HasPrefix(u.Key, prefix) {
			if aborted := o.folder.AbortUpload(bucket, u.Key, u.ID); !errors.Is(aborted, folder.ErrNoUpload) {
				err = errors.Join(err, aborted)
			}
		}
	}
	return storeError(err)
}

// removeFiles removes the job's files below prefix that unwanted picks.
func (o *Store) removeFiles(ctx context.Context, id job.ID, prefix string, unwanted func(name string) bool) error {
	bucket, below := o.layout.Place(id)
	var keys []string
	flush := func() error {
		err := o.observed(ctx, "delete", func() error {
			errs := o.folder.Delete(ctx, bucket, keys, nil)
			if err := ctx.Err(); err != nil {
				return err // rather than once for each file
			}
			return errors.Join(errs...)
		})
		keys = keys[:0]
		return err
	}
	for e, err := range o.entries(ctx, id, prefix) {
		if err != nil {
			return err
		}
		if !unwanted(e.Name) {
			continue
		}
		if keys = append(keys, below+e.Name); len(keys) == listPage {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return flush()
}

// Ping returns nil when the folder is there.
func (o *Store) Ping(ctx context.Context) error {
	return o.observed(ctx, "ping", func() error {
		if o.layout.Bucket == "" {
			return o.folder.Ping()
		}
		_, err := o.folder.StatBucket(o.layout.Bucket)
		return err
	})
}
