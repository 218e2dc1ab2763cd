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
	// largePart is the size of the parts a large local file is sent in. They
	// are read from the file as they are sent and take no memory.
	largePart = 32 << 20
	// bufferedPart is the size of the parts a large reader is sent in, each from
	// a buffer, so that it can be sent again.
	bufferedPart = 8 << 20
	// copiedPart is the size of the parts a large file is copied in within storage.
	copiedPart = 256 << 20
	// smallFile is what is read into memory at once.
	smallFile = 64 << 10
	// maxParts is S3's limit on the parts of one file.
	maxParts = 10_000
	// completion is how long a server may take to join the parts of a file.
	completion = 5 * time.Minute
)

var (
	copyBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}
	partBuffers = sync.Pool{New: func() any { return new([bufferedPart]byte) }}
)

// hash is the SHA-256, in hex, of the size bytes of src from offset on. Hashing
// is all work and no waiting. A job with large outputs would keep every
// processor with it, and clients of the API waiting for one: so half of the
// processors are left alone, and others go first after each buffer.
func (s *Store) hash(ctx context.Context, src io.ReaderAt, offset, size int64) (string, error) {
	select {
	case s.hashing <- struct{}{}:
		defer func() { <-s.hashing }()
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

// bodied is a request with a body and the body's hash.
type bodied func(ctx context.Context, body io.Reader, hash string, unsure bool) error

// send runs one request whose body is a part of src. An error of src's counts
// for more than what the request made of it.
func (s *Store) send(ctx context.Context, src io.ReaderAt, offset, size int64, request bodied) error {
	if size <= smallFile {
		return s.sendSmall(ctx, src, offset, size, request)
	}
	return s.tryFrom(ctx, "put", s.stall, func(ctx context.Context, w *watch, unsure bool) error {
		w.pause() // the hash takes its time, which is not the server's
		hash, err := s.hash(ctx, src, offset, size)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return &requestError{text: err.Error(), class: errdefs.ErrUnavailable, cause: err}
		}
		body := &partReader{r: io.NewSectionReader(src, offset, size), left: size}
		w.restart()
		err = request(ctx, w.body(body), hash, unsure)
		if err != nil && body.err != nil {
			return &requestError{text: body.err.Error(), class: errdefs.ErrUnavailable, cause: body.err}
		}
		return err
	})
}

// sendSmall is send for a body that is read into memory at once. It goes to
// net/http as what it is, a bytes.Reader: of that it knows that reading does not
// block, and sends head and body with one write.
func (s *Store) sendSmall(ctx context.Context, src io.ReaderAt, offset, size int64, request bodied) error {
	data := make([]byte, size)
	if err := readAt(src, data, offset); err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	hash := hex.EncodeToString(sum[:])
	return s.tryFrom(ctx, "put", s.stall, func(ctx context.Context, _ *watch, unsure bool) error {
		return request(ctx, bytes.NewReader(data), hash, unsure)
	})
}

// partReader remembers why reading failed.
type partReader struct {
	r    io.Reader
	left int64
	err  error
}

func (p *partReader) Read(b []byte) (int, error) {
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

// putOnce writes one file with a single PUT.
func (s *Store) putOnce(ctx context.Context, bucket, key string, src io.ReaderAt, size int64) error {
	return s.put(ctx, bucket, key, src, size, minio.PutObjectOptions{})
}

// putNew is putOnce for a file that must not be there yet; else the error is
// errCondition.
func (s *Store) putNew(ctx context.Context, bucket, key string, src io.ReaderAt, size int64) error {
	if !s.features.noConditions.Load() {
		var opts minio.PutObjectOptions
		opts.SetMatchETagExcept("*")
		err := s.put(ctx, bucket, key, src, size, opts)
		if !unsupported(err) {
			return err
		}
		s.lacks(&s.features.noConditions, "conditional PUT", "two submissions of one id at the same moment are told apart by what is there before each")
	}
	err := s.try(ctx, "exists", s.stall, func(ctx context.Context, _ *watch) error {
		_, err := s.client.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
		return err
	})
	switch {
	case err == nil:
		return errCondition
	case !errdefs.IsNotFound(err):
		return err
	}
	return s.putOnce(ctx, bucket, key, src, size)
}

func (s *Store) put(ctx context.Context, bucket, key string, src io.ReaderAt, size int64, opts minio.PutObjectOptions) error {
	opts.DisableContentSha256 = true // it is given, not made chunk by chunk
	return s.send(ctx, src, 0, size, func(ctx context.Context, body io.Reader, hash string, _ bool) error {
		_, err := s.client.PutObject(ctx, bucket, key, body, size, "", hash, opts)
		return err
	})
}

// upload is a file that is sent in parts.
type upload struct {
	store       *Store
	bucket, key string
	id          string

	mu    sync.Mutex
	parts []minio.CompletePart
}

func (s *Store) newUpload(ctx context.Context, bucket, key string, parts int) (*upload, error) {
	u := &upload{store: s, bucket: bucket, key: key, parts: make([]minio.CompletePart, parts)}
	err := s.try(ctx, "begin_upload", s.stall, func(ctx context.Context, _ *watch) (err error) {
		u.id, err = s.client.NewMultipartUpload(ctx, bucket, key, minio.PutObjectOptions{})
		return err
	})
	return u, err
}

// resumeUpload finds what an earlier try to send the file stored of it. It
// returns nil when there is nothing, or when storage does not say.
func (s *Store) resumeUpload(ctx context.Context, bucket, key string, count int, src io.ReaderAt, partSize, size int64) (*upload, error) {
	if s.features.noUploadList.Load() {
		return nil, nil
	}
	found, err := s.uploads(ctx, bucket, key)
	if err != nil {
		if ctx.Err() != nil || errdefs.IsUnavailable(err) && !unsupported(err) {
			return nil, err
		}
		s.lacks(&s.features.noUploadList, "listing of multipart uploads", "a large upload that breaks off begins again")
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
	u := &upload{store: s, bucket: bucket, key: key, id: latest.UploadID, parts: make([]minio.CompletePart, count)}
	for marker := 0; ; {
		var page minio.ListObjectPartsResult
		err := s.try(ctx, "list_parts", s.stall, func(ctx context.Context, _ *watch) (err error) {
			page, err = s.client.ListObjectParts(ctx, bucket, key, u.id, marker, 1000)
			return err
		})
		if errors.Is(err, errNoSuchParts) || errdefs.IsNotFound(err) {
			return nil, nil // it ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, p := range page.ObjectParts {
			offset := int64(p.PartNumber-1) * partSize
			if p.PartNumber < 1 || p.PartNumber > count || p.Size != min(partSize, size-offset) {
				continue
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

// uploads lists the uploads to keys that begin with prefix, a thousand at most.
func (s *Store) uploads(ctx context.Context, bucket, prefix string) ([]minio.ObjectMultipartInfo, error) {
	var found minio.ListMultipartUploadsResult
	err := s.try(ctx, "list_uploads", s.stall, func(ctx context.Context, _ *watch) (err error) {
		found, err = s.client.ListMultipartUploads(ctx, bucket, prefix, "", "", "", 1000)
		return err
	})
	if errors.Is(err, errNoSuchParts) {
		return nil, nil // how some servers say that there is none
	}
	return found.Uploads, err
}

// abortUploads frees the parts of uploads that were broken off and not sent
// again.
func (s *Store) abortUploads(ctx context.Context, bucket, prefix string) {
	if s.features.noUploadList.Load() {
		return
	}
	found, err := s.uploads(ctx, bucket, prefix)
	if err != nil && !errdefs.IsNotFound(err) {
		s.log.Debug("unfinished uploads stay in storage", "bucket", bucket, "prefix", prefix, "error", err)
	}
	for _, u := range found {
		_ = (&upload{store: s, bucket: bucket, key: u.Key, id: u.UploadID}).abort(ctx) // which logs why it stays
	}
}

// part sends the part with the number n, from 1.
func (u *upload) part(ctx context.Context, n int, src io.ReaderAt, offset, size int64) error {
	return u.store.send(ctx, src, offset, size, func(ctx context.Context, body io.Reader, hash string, _ bool) error {
		part, err := u.store.client.PutObjectPart(ctx, u.bucket, u.key, u.id, n, body, size,
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

// complete makes the parts the file.
func (u *upload) complete(ctx context.Context, size int64) error {
	s := u.store
	return s.tryFrom(ctx, "complete_upload", completion, func(ctx context.Context, _ *watch, unsure bool) error {
		_, err := s.client.CompleteMultipartUpload(ctx, u.bucket, u.key, u.id, u.parts, minio.PutObjectOptions{})
		var answer minio.ErrorResponse
		if unsure && errors.As(err, &answer) && answer.Code == minio.NoSuchUpload {
			// An earlier try may have got through and only its answer been lost.
			info, statErr := s.client.StatObject(ctx, u.bucket, u.key, minio.StatObjectOptions{})
			if statErr == nil && info.Size == size && strings.HasSuffix(info.ETag, fmt.Sprintf("-%d", len(u.parts))) {
				return nil
			}
		}
		return err
	})
}

// abort frees the parts of an upload that failed. It is tried once, also after
// the caller's context has ended; servers drop what is left behind in time.
func (u *upload) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := u.store.client.AbortMultipartUpload(ctx, u.bucket, u.key, u.id)
	if err != nil {
		u.store.log.Debug("an unfinished upload stays in storage", "bucket", u.bucket, "key", u.key, "error", err)
	}
	return err
}

// has reports whether the part with the index n, from 0, is stored.
func (u *upload) has(n int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.parts[n].ETag != ""
}

// stored is the number of parts that are.
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

// putFile writes one file of any size from a local one. What an earlier try has sent of
// it is not sent again.
func (s *Store) putFile(ctx context.Context, bucket, key string, src io.ReaderAt, size int64, slots slots) error {
	if size <= largePart {
		return slots.use(ctx, func() error {
			return s.putOnce(ctx, bucket, key, src, size)
		})
	}
	partSize := partSizeFor(size, largePart)
	count := int((size + partSize - 1) / partSize)
	u, err := s.resumeUpload(ctx, bucket, key, count, src, partSize, size)
	if err != nil {
		return err
	}
	if u != nil {
		before := u.stored()
		err := u.sendFile(ctx, src, partSize, size, slots)
		if err == nil || ctx.Err() != nil || errors.Is(err, errShrunk) || u.stored() > before {
			return err
		}
		// It cannot be resumed: a server may have lost what it keeps of it, or cannot
		// replace a part that was sent with other content.
		if u.abort(ctx) != nil {
			return err // storage is away
		}
		s.log.Info("An upload that broke off cannot be resumed and starts again", "bucket", bucket, "key", key, "error", err)
	}
	if u, err = s.newUpload(ctx, bucket, key, count); err != nil {
		return err
	}
	return u.sendFile(ctx, src, partSize, size, slots)
}

// sendFile sends the parts of a file that are not stored yet, and joins all of them. What
// storage, or the daemon's own end, breaks off can be resumed.
func (u *upload) sendFile(ctx context.Context, src io.ReaderAt, partSize, size int64, slots slots) (err error) {
	defer func() {
		if err != nil && (errors.Is(err, errShrunk) || ctx.Err() == nil && !errdefs.IsUnavailable(err)) {
			_ = u.abort(ctx)
		}
	}()
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(u.store.parallel)
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

// Put writes one file of the given size. Large ones are sent in parts that
// become the file only when r has ended where it should.
func (s *Store) Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error {
	bucket, key, err := s.layout.Key(id, name)
	if err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("put %s of job %s: a size of %d: %w", name, id, size, errdefs.ErrInvalidArgument)
	}
	if err := s.putReader(ctx, bucket, key, r, size); err != nil {
		return fmt.Errorf("put %s of job %s: %w", name, id, err)
	}
	return nil
}

func (s *Store) putReader(ctx context.Context, bucket, key string, r io.Reader, size int64) (err error) {
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
		return s.putOnce(ctx, bucket, key, bytes.NewReader(buffer[:size]), size)
	}
	count := int((size + partSize - 1) / partSize)
	u, err := s.newUpload(ctx, bucket, key, count)
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

// fill reads r until buffer is full; last says that r must end there.
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
