package s3

import (
	"cmp"
	"context"
	"io"
	"os"
	"sync"

	"github.com/iterait/shepherd/storage/internal/workdir"
)

const (
	// rangeSize is how many bytes of a large object one request fetches.
	rangeSize = 8 << 20
	// maxRanges is how many ranges all downloads of a Store fetch at a time at most, besides
	// one of each download.
	maxRanges = 8
)

// ranges copies a large object to a file with several requests at a time, because one
// connection often reaches only a part of what the network and the server can do. Each range is
// written to its place in the file as it arrives, so no range is held in memory.
type ranges struct {
	objects           *objects
	bucket, key, etag string
	file              *os.File

	mu    sync.Mutex
	next  int64   // the offset of the first byte that no request fetches yet
	end   int64   // of the object
	spans []*span // the ranges that were taken
	err   error   // the first error of a range
}

// span is a range on its way into the file.
type span struct{ at, end int64 }

// copyRanges writes the bytes of the version etag of an object from offset to end to file, at
// the same offsets. If it fails, the file ends where the first missing byte would be. A process
// that is killed leaves a file in which any bytes may be missing.
func (o *objects) copyRanges(ctx context.Context, bucket, key, etag string, offset, end int64, file *os.File) error {
	r := &ranges{objects: o, bucket: bucket, key: key, etag: etag, file: file, next: offset, end: end}
	var others sync.WaitGroup
	for r.left() {
		for r.acquire() {
			others.Go(func() {
				defer r.release()
				r.copyNext(ctx)
			})
		}
		r.copyNext(ctx)
	}
	others.Wait()
	return r.finish()
}

// left reports whether there are bytes that a request should fetch: after an error those under
// way end, and no others begin.
func (r *ranges) left() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next < r.end && r.err == nil
}

// acquire reports whether one more range is left and may be fetched at this time. release ends
// that.
func (r *ranges) acquire() bool {
	if !r.left() {
		return false
	}
	select {
	case r.objects.ranges <- struct{}{}:
		return true
	default:
		return false
	}
}

func (r *ranges) release() { <-r.objects.ranges }

// copyNext copies the next range, if one is left.
func (r *ranges) copyNext(ctx context.Context) {
	s := r.take()
	if s == nil {
		return
	}
	body := r.objects.continued(ctx, r.bucket, r.key, r.etag, nil, s.at, s.end)
	defer body.Close()
	if err := copyTo(&spanWriter{r, s}, body); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = cmp.Or(r.err, err)
	}
}

// take returns the next range, or nil if none is left.
func (r *ranges) take() *span {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next >= r.end || r.err != nil {
		return nil
	}
	s := &span{at: r.next, end: min(r.next+r.objects.rangeSize, r.end)}
	r.next = s.end
	r.spans = append(r.spans, s)
	return s
}

// spanWriter writes a range to its place.
type spanWriter struct {
	ranges *ranges
	span   *span
}

func (w *spanWriter) Write(p []byte) (int, error) {
	n, err := w.ranges.file.WriteAt(p, w.span.at)
	w.ranges.mu.Lock()
	defer w.ranges.mu.Unlock()
	w.span.at += int64(n)
	return n, err
}

// finish sets the offset of the file to its end. After an error it first cuts off what lies
// behind the first missing byte.
func (r *ranges) finish() error {
	whole := r.next
	for _, s := range r.spans {
		if s.at < s.end {
			whole = min(whole, s.at)
		}
	}
	if r.err != nil {
		if err := r.file.Truncate(whole); err != nil {
			return workdir.Error(err)
		}
	}
	if _, err := r.file.Seek(whole, io.SeekStart); err != nil {
		return workdir.Error(err)
	}
	return r.err
}
