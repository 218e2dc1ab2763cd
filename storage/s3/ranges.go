package s3

import (
	"context"
	"io"
	"os"
	"sync"

	"github.com/iterait/shepherd/storage/internal/workdir"
)

const (
	// rangeSize is how many bytes of a large object one request fetches; at most the
	// size of a buffer.
	rangeSize = bufferedPart
	// maxPrefetches is how many ranges of all downloads of a Store are in memory at most.
	maxPrefetches = 4
)

// ranges copies a large object to a file with several requests at a time, because one
// connection often reaches only a part of what the network and the server can do. The
// bytes are written in their order, so that a download that breaks off can be resumed at
// the end of the file.
type ranges struct {
	objects           *objects
	bucket, key, etag string
	end               int64

	next    int64       // the offset of the first byte that no request fetches yet
	pending []*prefetch // ranges that are fetched into memory, in their order
}

// prefetch is a range that is fetched into memory before it can be written.
type prefetch struct {
	buffer *[bufferedPart]byte
	size   int64
	done   chan struct{} // closed when err is set and the buffer is not used any more
	err    error
}

// copyRanges appends the bytes of the version etag of an object from offset to end to
// file.
func (o *objects) copyRanges(ctx context.Context, bucket, key, etag string, offset, end int64, file *os.File) error {
	r := &ranges{objects: o, bucket: bucket, key: key, etag: etag, end: end, next: offset}
	ctx, cancel := context.WithCancel(ctx)
	var fetching sync.WaitGroup
	defer func() {
		cancel()
		fetching.Wait()
		for _, a := range r.pending {
			r.release(a)
		}
	}()
	for r.next < end || len(r.pending) > 0 {
		var write func() error
		if len(r.pending) == 0 {
			first, last := r.take()
			write = func() error { return r.stream(ctx, first, last, file) }
		} else {
			write = func() error { return r.writeFirst(file) }
		}
		for r.next < end {
			a, ok := r.acquire()
			if !ok {
				break
			}
			first, last := r.take()
			a.size = last - first
			r.pending = append(r.pending, a)
			fetching.Go(func() { r.fetch(ctx, a, first, last) })
		}
		if err := write(); err != nil {
			return err
		}
	}
	return nil
}

// take returns the next range.
func (r *ranges) take() (first, last int64) {
	first = r.next
	r.next = min(first+r.objects.rangeSize, r.end)
	return first, r.next
}

// stream copies a range to file without a buffer of its size.
func (r *ranges) stream(ctx context.Context, first, last int64, file *os.File) error {
	body := r.objects.continued(ctx, r.bucket, r.key, r.etag, nil, first, last)
	defer body.Close()
	return copyTo(file, body)
}

// acquire returns a range with a buffer, if fewer than maxPrefetches are in use.
func (r *ranges) acquire() (*prefetch, bool) {
	select {
	case r.objects.prefetches <- struct{}{}:
		return &prefetch{buffer: partBuffers.Get().(*[bufferedPart]byte), done: make(chan struct{})}, true
	default:
		return nil, false
	}
}

func (r *ranges) release(a *prefetch) {
	partBuffers.Put(a.buffer)
	<-r.objects.prefetches
}

// fetch reads a range into memory.
func (r *ranges) fetch(ctx context.Context, a *prefetch, first, last int64) {
	defer close(a.done)
	body := r.objects.continued(ctx, r.bucket, r.key, r.etag, nil, first, last)
	defer body.Close()
	_, a.err = io.ReadFull(body, a.buffer[:a.size])
}

// writeFirst writes the first of the ranges that are fetched into memory.
func (r *ranges) writeFirst(file *os.File) error {
	a := r.pending[0]
	<-a.done
	if a.err != nil {
		return a.err
	}
	if _, err := file.Write(a.buffer[:a.size]); err != nil {
		return workdir.Error(err)
	}
	r.pending = r.pending[1:]
	r.release(a)
	return nil
}
