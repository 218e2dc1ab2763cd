package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
)

const (
	// largePart is the part size of a large local file. Its parts are read from the
	// file while they are sent and take no memory.
	largePart = 32 << 20
	// bufferedPart is the part size of a large reader. Each part is sent from a
	// buffer, so that it can be sent again.
	bufferedPart = 8 << 20
	// copiedPart is the part size of a copy within storage.
	copiedPart = 256 << 20
	// smallFile is the size up to which a file is read into memory at once.
	smallFile = 64 << 10
	// maxParts is S3's limit on the parts of one file.
	maxParts = 10_000
	// completion is how long a server may take to join the parts of an upload.
	completion = 5 * time.Minute
)

var (
	copyBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}
	partBuffers = sync.Pool{New: func() any { return new([bufferedPart]byte) }}
)

// hash returns the SHA-256, in hex, of the size bytes of src from offset on. Hashing is
// bound by the CPU: a job with large outputs could occupy all processors and delay the
// clients of the API. So it uses at most half of them, and yields after each buffer.
func (o *objects) hash(ctx context.Context, src io.ReaderAt, offset, size int64) (string, error) {
	select {
	case o.hashing <- struct{}{}:
		defer func() { <-o.hashing }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	sum := sha256.New()
	buffer := copyBuffers.Get().(*[128 << 10]byte)
	defer copyBuffers.Put(buffer)
	for end := offset + size; offset < end && ctx.Err() == nil; runtime.Gosched() {
		part := buffer[:min(int64(len(buffer)), end-offset)]
		if err := readAt(src, part, offset); err != nil {
			return "", err
		}
		sum.Write(part)
		offset += int64(len(part))
	}
	return hex.EncodeToString(sum.Sum(nil)), ctx.Err()
}

// readAt fills p from a local file.
func readAt(src io.ReaderAt, p []byte, offset int64) error {
	switch n, err := src.ReadAt(p, offset); {
	case n == len(p):
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return errShrunk
	default:
		return localError(err)
	}
}

// errShrunk says that a local file became shorter while it was sent.
var errShrunk = fmt.Errorf("the file became shorter while it was copied: %w", errdefs.ErrUnavailable)

// bodied is a request that sends a body with its hash.
type bodied func(ctx context.Context, body io.Reader, hash string, unsure bool) error

// send runs one request whose body is a part of src. If reading src fails, it returns
// that error rather than the request's.
func (o *objects) send(ctx context.Context, src io.ReaderAt, offset, size int64, request bodied) error {
	if size <= smallFile {
		return o.sendSmall(ctx, src, offset, size, request)
	}
	return o.tryFrom(ctx, "put", o.stall, func(ctx context.Context, w *watch, unsure bool) error {
		w.pause() // the limit is the server's, not that of the hash
		hash, err := o.hash(ctx, src, offset, size)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return &requestError{text: err.Error(), class: errdefs.ErrUnavailable, cause: err}
		}
		body := &partReader{r: io.NewSectionReader(src, offset, size), left: size}
		w.restart()
		err = request(ctx, w.body(body), hash, unsure)
		if local := body.end(); err != nil && local != nil {
			return &requestError{text: local.Error(), class: errdefs.ErrUnavailable, cause: local}
		}
		return err
	})
}

// sendSmall is send for a body that is read into memory at once. net/http gets it as a
// bytes.Reader, which does not block, and so sends head and body with one write.
func (o *objects) sendSmall(ctx context.Context, src io.ReaderAt, offset, size int64, request bodied) error {
	data := make([]byte, size)
	if err := readAt(src, data, offset); err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	hash := hex.EncodeToString(sum[:])
	return o.tryFrom(ctx, "put", o.stall, func(ctx context.Context, _ *watch, unsure bool) error {
		return request(ctx, bytes.NewReader(data), hash, unsure)
	})
}

// partReader is the body of one request. net/http may go on reading a body after the
// request has failed: end waits for the Read under way and lets none follow, so that the
// source may be closed, or its buffer used anew.
type partReader struct {
	mu    sync.Mutex
	r     io.Reader
	left  int64
	err   error // of r
	ended bool
}

func (p *partReader) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return 0, errEnded
	}
	n, err := p.r.Read(b)
	p.left -= int64(n)
	switch {
	case err == io.EOF && p.left > 0:
		p.err = errShrunk
	case err != nil && err != io.EOF:
		p.err = localError(err)
	}
	return n, err
}

// end ends reading, and returns the error of the reader.
func (p *partReader) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	return p.err
}

// errEnded is for who reads the body of a request that has ended.
var errEnded = errors.New("the request has ended")

// putOnce stores one object with a single PUT.
func (o *objects) putOnce(ctx context.Context, bucket, key string, src io.ReaderAt, size int64) error {
	return o.put(ctx, bucket, key, src, size, minio.PutObjectOptions{})
}

// putNew is putOnce for an object that must not exist; else it returns errCondition.
func (o *objects) putNew(ctx context.Context, bucket, key string, src io.ReaderAt, size int64) error {
	if !o.features.noConditions.Load() {
		var opts minio.PutObjectOptions
		opts.SetMatchETagExcept("*")
		err := o.put(ctx, bucket, key, src, size, opts)
		if !unsupported(err) {
			return err
		}
		o.lacks(&o.features.noConditions, "conditional PUT", "two submissions of one id at the same moment are told apart by what is there before each")
	}
	err := o.try(ctx, "exists", o.stall, func(ctx context.Context, _ *watch) error {
		_, err := o.client.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
		return err
	})
	switch {
	case err == nil:
		return errCondition
	case !errdefs.IsNotFound(err):
		return err
	}
	return o.putOnce(ctx, bucket, key, src, size)
}

func (o *objects) put(ctx context.Context, bucket, key string, src io.ReaderAt, size int64, opts minio.PutObjectOptions) error {
	opts.DisableContentSha256 = true // it is given, not made chunk by chunk
	return o.send(ctx, src, 0, size, func(ctx context.Context, body io.Reader, hash string, _ bool) error {
		_, err := o.client.PutObject(ctx, bucket, key, body, size, "", hash, opts)
		return err
	})
}

// upload is a multipart upload.
type upload struct {
	objects     *objects
	bucket, key string
	id          string

	mu    sync.Mutex
	parts []minio.CompletePart
}

func (o *objects) newUpload(ctx context.Context, bucket, key string, parts int) (*upload, error) {
	u := &upload{objects: o, bucket: bucket, key: key, parts: make([]minio.CompletePart, parts)}
	err := o.try(ctx, "begin_upload", o.stall, func(ctx context.Context, _ *watch) (err error) {
		u.id, err = o.client.NewMultipartUpload(ctx, bucket, key, minio.PutObjectOptions{})
		return err
	})
	return u, err
}

// resumeUpload returns the latest unfinished upload to the key with those of its parts
// that equal src; nil if there is none, or if storage cannot list uploads.
func (o *objects) resumeUpload(ctx context.Context, bucket, key string, count int, src io.ReaderAt, partSize, size int64) (*upload, error) {
	if o.features.noUploadList.Load() {
		return nil, nil
	}
	found, err := o.uploads(ctx, bucket, key)
	if err != nil {
		if ctx.Err() != nil || errdefs.IsUnavailable(err) && !unsupported(err) {
			return nil, err
		}
		o.lacks(&o.features.noUploadList, "listing of multipart uploads", "a large upload that breaks off begins again")
		return nil, nil
	}
	var latest minio.ObjectMultipartInfo
	for _, u := range found {
		if u.Key == key && !u.Initiated.Before(latest.Initiated) {
			latest = u
		}
	}
	if latest.UploadID == "" {
		return nil, nil
	}
	u := &upload{objects: o, bucket: bucket, key: key, id: latest.UploadID, parts: make([]minio.CompletePart, count)}
	for marker := 0; ; {
		var page minio.ListObjectPartsResult
		err := o.try(ctx, "list_parts", o.stall, func(ctx context.Context, _ *watch) (err error) {
			page, err = o.client.ListObjectParts(ctx, bucket, key, u.id, marker, 1000)
			return err
		})
		if errors.Is(err, errNoSuchParts) || errdefs.IsNotFound(err) {
			return nil, nil // it was completed or aborted meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, p := range page.ObjectParts {
			offset := int64(p.PartNumber-1) * partSize
			if p.PartNumber < 1 || p.PartNumber > count || p.Size != min(partSize, size-offset) {
				continue
			}
			if err := ctx.Err(); err != nil { // hashing a large file takes its time
				return nil, err
			}
			sum := md5.New()
			if _, err := io.Copy(sum, io.NewSectionReader(src, offset, p.Size)); err != nil {
				return nil, localError(err)
			}
			if etag := strings.Trim(p.ETag, `"`); etag == hex.EncodeToString(sum.Sum(nil)) {
				u.parts[p.PartNumber-1] = minio.CompletePart{PartNumber: p.PartNumber, ETag: etag}
			}
		}
		if !page.IsTruncated || page.NextPartNumberMarker <= marker {
			return u, nil
		}
		marker = page.NextPartNumberMarker
	}
}

// uploads lists at most a thousand unfinished uploads to keys that begin with prefix.
func (o *objects) uploads(ctx context.Context, bucket, prefix string) ([]minio.ObjectMultipartInfo, error) {
	var found minio.ListMultipartUploadsResult
	err := o.try(ctx, "list_uploads", o.stall, func(ctx context.Context, _ *watch) (err error) {
		found, err = o.client.ListMultipartUploads(ctx, bucket, prefix, "", "", "", 1000)
		return err
	})
	if errors.Is(err, errNoSuchParts) {
		return nil, nil // some servers' answer when there is none
	}
	return found.Uploads, err
}

// abortUploads aborts the unfinished uploads to keys that begin with prefix.
func (o *objects) abortUploads(ctx context.Context, bucket, prefix string) {
	if o.features.noUploadList.Load() {
		return
	}
	found, err := o.uploads(ctx, bucket, prefix)
	if err != nil && !errdefs.IsNotFound(err) {
		o.log.Debug("unfinished uploads stay in storage", "bucket", bucket, "prefix", prefix, "error", err)
	}
	for _, u := range found {
		_ = (&upload{objects: o, bucket: bucket, key: u.Key, id: u.UploadID}).abort(ctx) // which logs its error
	}
}

// part sends part n; the first is 1.
func (u *upload) part(ctx context.Context, n int, src io.ReaderAt, offset, size int64) error {
	return u.objects.send(ctx, src, offset, size, func(ctx context.Context, body io.Reader, hash string, _ bool) error {
		part, err := u.objects.client.PutObjectPart(ctx, u.bucket, u.key, u.id, n, body, size,
			minio.PutObjectPartOptions{Sha256Hex: hash, DisableContentSha256: true})
		if err != nil {
			return err
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.parts[n-1] = minio.CompletePart{PartNumber: n, ETag: part.ETag}
		return nil
	})
}

// complete makes the object of the parts.
func (u *upload) complete(ctx context.Context, size int64) error {
	o := u.objects
	return o.tryFrom(ctx, "complete_upload", completion, func(ctx context.Context, _ *watch, unsure bool) error {
		_, err := o.client.CompleteMultipartUpload(ctx, u.bucket, u.key, u.id, u.parts, minio.PutObjectOptions{})
		var answer minio.ErrorResponse
		if unsure && errors.As(err, &answer) && answer.Code == minio.NoSuchUpload {
			// An earlier try may have completed it and only its answer was lost.
			info, statErr := o.client.StatObject(ctx, u.bucket, u.key, minio.StatObjectOptions{})
			if statErr == nil && info.Size == size && strings.HasSuffix(info.ETag, fmt.Sprintf("-%d", len(u.parts))) {
				return nil
			}
		}
		return err
	})
}

// abort aborts the upload. It is tried once, also after the caller's context has ended;
// servers remove unfinished uploads some day.
func (u *upload) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := u.objects.client.AbortMultipartUpload(ctx, u.bucket, u.key, u.id)
	if err != nil {
		u.objects.log.Debug("an unfinished upload stays in storage", "bucket", u.bucket, "key", u.key, "error", err)
	}
	return err
}

// has reports whether the part with the index n is stored; the first is 0.
func (u *upload) has(n int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.parts[n].ETag != ""
}

// stored returns how many parts are stored.
func (u *upload) stored() int {
	count := 0
	for n := range u.parts {
		if u.has(n) {
			count++
		}
	}
	return count
}

// slots bounds the requests that one call has under way.
type slots chan struct{}

func (l slots) use(ctx context.Context, f func() error) error {
	select {
	case l <- struct{}{}:
		defer func() { <-l }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// putFile stores a local file of any size. Parts that an earlier try has stored are not
// sent again.
func (o *objects) putFile(ctx context.Context, bucket, key string, src io.ReaderAt, size int64, slots slots) error {
	if size <= largePart {
		return slots.use(ctx, func() error {
			return o.putOnce(ctx, bucket, key, src, size)
		})
	}
	partSize := partSizeFor(size, largePart)
	count := int((size + partSize - 1) / partSize)
	u, err := o.resumeUpload(ctx, bucket, key, count, src, partSize, size)
	if err != nil {
		return err
	}
	if u != nil {
		before := u.stored()
		err := u.sendFile(ctx, src, partSize, size, slots)
		if err == nil || ctx.Err() != nil || u.stored() > before || !declined(err) {
			return err
		}
		// It cannot be resumed: the server may have lost parts of it, or be unable to
		// replace a part by one with other content.
		if u.abort(ctx) != nil {
			return err // storage is away
		}
		o.log.Info("An upload that broke off cannot be resumed and starts again", "bucket", bucket, "key", key, "error", err)
	}
	if u, err = o.newUpload(ctx, bucket, key, count); err != nil {
		return err
	}
	return u.sendFile(ctx, src, partSize, size, slots)
}

// declined reports whether the server has answered with an error that may stay. One that
// does not answer, or is overloaded, may go on with an upload later.
func declined(err error) bool {
	var answer minio.ErrorResponse
	return errors.As(err, &answer) && answer.StatusCode != http.StatusServiceUnavailable && answer.StatusCode != http.StatusTooManyRequests
}

// sendFile sends the parts of src that are not stored yet and completes the upload. It
// leaves an upload that can be resumed, after a failure of storage or when the daemon
// stops, and aborts it otherwise.
func (u *upload) sendFile(ctx context.Context, src io.ReaderAt, partSize, size int64, slots slots) (err error) {
	defer func() {
		if err != nil && (errors.Is(err, errShrunk) || ctx.Err() == nil && !errdefs.IsUnavailable(err)) {
			_ = u.abort(ctx)
		}
	}()
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(u.objects.parallel)
	for n := range u.parts {
		if within.Err() != nil {
			break
		}
		if u.has(n) {
			continue // stored by an earlier try
		}
		group.Go(func() error {
			offset := int64(n) * partSize
			return slots.use(within, func() error { return u.part(within, n+1, src, offset, min(partSize, size-offset)) })
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return u.complete(ctx, size)
}

// partSizeFor is the smallest part size, in whole MiB, at least usual, that
// holds a file of the given size in S3's number of parts.
func partSizeFor(size, usual int64) int64 {
	const mib = 1 << 20
	needed := (size + maxParts - 1) / maxParts
	return max(usual, (needed+mib-1)/mib*mib)
}

// Put stores one file of the given size. A large one is sent in parts, which are joined
// only if r has exactly that size.
func (s *Store) Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error {
	bucket, key, err := s.layout.Key(id, name)
	if err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("put %s of job %s: a size of %d: %w", name, id, size, errdefs.ErrInvalidArgument)
	}
	if err := s.objects.putReader(ctx, bucket, key, r, size); err != nil {
		return fmt.Errorf("put %s of job %s: %w", name, id, err)
	}
	return nil
}

func (o *objects) putReader(ctx context.Context, bucket, key string, r io.Reader, size int64) (err error) {
	partSize := partSizeFor(size, bufferedPart)
	var buffer []byte
	switch {
	case size <= smallFile:
		buffer = make([]byte, size)
	case partSize == bufferedPart:
		pooled := partBuffers.Get().(*[bufferedPart]byte)
		defer partBuffers.Put(pooled)
		buffer = pooled[:]
	default:
		buffer = make([]byte, partSize)
	}
	if size <= bufferedPart {
		if err := fill(buffer[:size], r, true); err != nil {
			return err
		}
		return o.putOnce(ctx, bucket, key, bytes.NewReader(buffer[:size]), size)
	}
	count := int((size + partSize - 1) / partSize)
	u, err := o.newUpload(ctx, bucket, key, count)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = u.abort(ctx)
		}
	}()
	for n := range count {
		length := min(partSize, size-int64(n)*partSize)
		if err := fill(buffer[:length], r, n == count-1); err != nil {
			return err
		}
		if err := u.part(ctx, n+1, bytes.NewReader(buffer[:length]), 0, length); err != nil {
			return err
		}
	}
	return u.complete(ctx, size)
}

// fill reads r until buffer is full; with last, r must end there.
func fill(buffer []byte, r io.Reader, last bool) error {
	_, err := io.ReadFull(r, buffer)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("what is to be stored is shorter than announced: %w", errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("read what is to be stored: %w", err)
	case !last:
		return nil
	}
	var more [1]byte
	switch n, err := io.ReadFull(r, more[:]); {
	case n > 0:
		return fmt.Errorf("what is to be stored is longer than announced: %w", errdefs.ErrInvalidArgument)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read what is to be stored: %w", err)
	}
	return nil
}
