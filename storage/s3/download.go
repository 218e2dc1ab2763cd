package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// download reads one version of a stored file from offset to end, and reconnects where
// a connection broke. The reader closes it.
type download struct {
	// canceled returns the error of the caller's context, or nil. The transport itself
	// may still yield what it had received before the cancellation.
	canceled func() error
	// reopen opens the rest of the file, from the byte at offset on.
	reopen func(offset int64) (*stream, error)
	// retry is called with the error of a broken stream and returns nil to reconnect.
	retry  func(failures int, err error) error
	stream *stream
	offset int64
	end    int64
	// failures counts the consecutive connections that brought no bytes.
	failures int
}

// stream is the body of one GET.
type stream struct {
	body  io.ReadCloser
	watch *watch
	info  minio.ObjectInfo
	head  http.Header
}

func (st *stream) Close() {
	st.watch.stop() // first, so that Close does not wait for the rest of the body
	_ = st.body.Close()
}

// get sends one GET. The stream is watched only while it is read: a slow reader is not
// a stalled server.
func (o *objects) get(ctx context.Context, bucket, key string, opts minio.GetObjectOptions) (*stream, error) {
	var answer *stream
	err := o.try(ctx, "get", o.stall, func(ctx context.Context, w *watch) error {
		body, info, head, err := o.client.GetObject(ctx, bucket, key, opts)
		if err != nil {
			return err
		}
		w.pause()
		w.kept = true
		answer = &stream{body: body, watch: w, info: info, head: head}
		return nil
	})
	return answer, err
}

// continued returns a download of the bytes from offset to end, which begins with an
// opened stream of them, or nil.
func (o *objects) continued(ctx context.Context, bucket, key, etag string, first *stream, offset, end int64) *download {
	return &download{
		canceled: ctx.Err,
		stream:   first, offset: offset, end: end,
		reopen: func(offset int64) (*stream, error) {
			var opts minio.GetObjectOptions
			if err := opts.SetRange(offset, end-1); err != nil {
				return nil, err
			}
			if etag != "" {
				opts.Set("If-Match", `"`+etag+`"`)
			}
			st, err := o.get(ctx, bucket, key, opts)
			if err != nil {
				return nil, err
			}
			if first, _, _, err := parseContentRange(st.head.Get("Content-Range")); offset > 0 && (err != nil || first != offset) {
				st.Close()
				return nil, &requestError{
					text:  fmt.Sprintf("storage at %s answered other bytes of %q than those from %d on", o.url, key, offset),
					class: errdefs.ErrUnavailable, cause: err,
				}
			}
			if etag == "" {
				etag = st.info.ETag // the rest must be of the same version
			}
			return st, nil
		},
		retry: func(failures int, err error) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if failures >= o.tries {
				return o.unreachable(err)
			}
			o.log.Debug("a download broke off and is continued", "bucket", bucket, "key", key, "error", err)
			return rest(ctx, failures)
		},
	}
}

func (d *download) Read(p []byte) (int, error) {
	for {
		if d.offset >= d.end {
			return 0, io.EOF
		}
		if err := d.canceled(); err != nil {
			return 0, err
		}
		if d.stream == nil {
			stream, err := d.reopen(d.offset)
			if err != nil {
				return 0, err
			}
			d.stream = stream
		}
		p = p[:min(int64(len(p)), d.end-d.offset)]
		d.stream.watch.moved()
		n, err := d.stream.body.Read(p)
		d.stream.watch.pause()
		d.offset += int64(n)
		if n > 0 {
			d.failures = 0
			return n, nil // an error comes back with the next Read
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		d.stream.Close()
		d.stream = nil
		d.failures++
		if err := d.retry(d.failures, err); err != nil {
			return 0, err
		}
	}
}

func (d *download) Close() error {
	if d.stream != nil {
		d.stream.Close()
		d.stream = nil
	}
	d.end = d.offset // nothing is read after Close
	return nil
}

// Open opens one file, whole or in part, with a single GET.
func (s *Store) Open(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	bucket, key, err := s.layout.Key(id, name)
	if err != nil {
		return nil, err
	}
	var opts minio.GetObjectOptions
	if part != nil {
		header, err := rangeHeader(*part)
		if err != nil {
			return nil, fmt.Errorf("open %s of job %s: %w", name, id, err)
		}
		opts.Set("Range", header)
	}
	first, err := s.objects.get(ctx, bucket, key, opts)
	if part != nil && part.Offset < 0 && errdefs.IsOutOfRange(err) {
		first, err = s.objects.getShort(ctx, bucket, key, part.Offset, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s of job %s: %w", name, id, err)
	}
	file, err := describe(first, part)
	if err != nil {
		first.Close()
		return nil, fmt.Errorf("open %s of job %s: %w", name, id, err)
	}
	file.Body = s.objects.continued(ctx, bucket, key, first.info.ETag, first, file.Offset, file.Offset+file.Length)
	return file, nil
}

// getShort gets the last bytes of a file that has no more of them, which are the whole
// file. Some servers refuse that with the error outside, as that of an empty file.
func (o *objects) getShort(ctx context.Context, bucket, key string, offset int64, outside error) (*stream, error) {
	first, err := o.get(ctx, bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, err
	}
	size := first.info.Size
	if size <= 0 || size+offset > 0 {
		first.Close()
		return nil, outside
	}
	first.head = http.Header{"Content-Range": {fmt.Sprintf("bytes 0-%d/%d", size-1, size)}}
	return first, nil
}

// rangeHeader is part as the value of an HTTP Range header.
func rangeHeader(part job.Range) (string, error) {
	switch {
	case part.Length == 0:
		return "", fmt.Errorf("a range of no bytes: %w", errdefs.ErrOutOfRange)
	case part.Offset < 0:
		return "bytes=" + strconv.FormatInt(part.Offset, 10), nil // the last bytes; Length is minded by describe
	case part.Length < 0:
		return fmt.Sprintf("bytes=%d-", part.Offset), nil
	case part.Offset+part.Length-1 < part.Offset: // beyond what an int64 holds
		return fmt.Sprintf("bytes=%d-", part.Offset), nil
	}
	return fmt.Sprintf("bytes=%d-%d", part.Offset, part.Offset+part.Length-1), nil
}

// describe reads from an answer which bytes of how large a file it holds.
func describe(st *stream, part *job.Range) (*job.File, error) {
	file := &job.File{Size: st.info.Size, Length: st.info.Size, Modified: st.info.LastModified}
	if st.info.ETag != "" {
		file.ETag = `"` + st.info.ETag + `"`
	}
	if part != nil {
		first, last, size, err := parseContentRange(st.head.Get("Content-Range"))
		if err != nil {
			return nil, &requestError{text: "storage answered a part of a file without saying which", class: errdefs.ErrUnavailable, cause: err}
		}
		file.Offset, file.Length, file.Size = first, last-first+1, size
		if part.Length > 0 {
			file.Length = min(file.Length, part.Length)
		}
	}
	if file.Size < 0 || file.Length < 0 {
		return nil, &requestError{text: "storage answered a file without its size", class: errdefs.ErrUnavailable, cause: errdefs.ErrUnavailable}
	}
	return file, nil
}

// parseContentRange reads "bytes FIRST-LAST/SIZE" (RFC 9110, section 14.4).
func parseContentRange(header string) (first, last, size int64, err error) {
	span, total, ok := strings.Cut(strings.TrimPrefix(header, "bytes "), "/")
	from, to, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return 0, 0, 0, fmt.Errorf("Content-Range %q is not a range", header)
	}
	var numbers [3]int64
	for i, text := range []string{from, to, total} {
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil || numbers[i] < 0 {
			return 0, 0, 0, fmt.Errorf("Content-Range %q is not a range", header)
		}
	}
	if first, last, size = numbers[0], numbers[1], numbers[2]; first > last || last >= size {
		return 0, 0, 0, fmt.Errorf("Content-Range %q is not a range", header)
	}
	return first, last, size, nil
}

// fetchRest appends the bytes of an object from offset on to file.
func (o *objects) fetchRest(ctx context.Context, bucket, key string, info storage.Info, file *os.File, offset int64) error {
	etag := info.ETag
	if o.features.otherETags.Load() {
		etag = ""
	}
	if etag != "" && info.Size-offset > 2*o.rangeSize {
		return o.copyRanges(ctx, bucket, key, etag, offset, info.Size, file)
	}
	body := o.continued(ctx, bucket, key, etag, nil, offset, info.Size)
	defer body.Close()
	return copyTo(file, body)
}

// listsOtherETag reports whether an object, unchanged since it was listed, has another
// ETag than in the listing.
func (o *objects) listsOtherETag(ctx context.Context, bucket, key string, listed storage.Info) bool {
	var info minio.ObjectInfo
	err := o.try(ctx, "exists", o.stall, func(ctx context.Context, _ *watch) (err error) {
		info, err = o.client.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
		return err
	})
	if err != nil || info.ETag == listed.ETag || info.Size != listed.Size || info.LastModified.Unix() != listed.Modified.Unix() {
		return false
	}
	o.lacks(&o.features.otherETags, "ETags of listings", "versions of files are told apart by time and size until they are fetched")
	return true
}

// copyTo copies body to file. Errors of the file wrap storage.ErrWorkDir.
func copyTo(file io.Writer, body io.Reader) error {
	buffer := copyBuffers.Get().(*[128 << 10]byte)
	defer copyBuffers.Put(buffer)
	for {
		n, err := body.Read(buffer[:])
		if _, err := file.Write(buffer[:n]); err != nil {
			return workdir.Error(err)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
