package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/logspan"
)

// OpenSpan opens a part of logs, of which the span has a place in each. What was
// removed of it by rotation is left out; where nothing is left the error is of
// class errdefs.ErrNotFound. A span without an end is read up to now or,
// following, until ctx ends. See Open.
func OpenSpan(ctx context.Context, span logspan.Span, follow bool, files ...File) (io.ReadCloser, error) {
	r := &reader{done: ctx.Done(), cause: func() error { return context.Cause(ctx) }, follow: follow && span.End == nil}
	kept := false
	for i, f := range files {
		if i >= len(span.Begin) {
			break
		}
		s := &source{log: f, whole: len(files) > 1}
		r.sources = append(r.sources, s)
		var end *logspan.Position
		if span.End != nil {
			end = &span.End[i]
		}
		found, err := s.seekSpan(span.Begin[i], end)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read the log %s: %w", f.Path, err), r.Close())
		}
		kept = kept || found
	}
	if !kept {
		return nil, errors.Join(fmt.Errorf("the log of that time is not kept any more: %w", errdefs.ErrNotFound), r.Close())
	}
	return r, nil
}

// seekSpan opens the files of a part and goes to its begin. It reports whether
// something of it is there; else the source is empty.
func (s *source) seekSpan(begin logspan.Position, end *logspan.Position) (found bool, err error) {
	if err := s.gather(); err != nil || len(s.open) == 0 {
		return false, err
	}
	inodes := make([]uint64, len(s.open))
	sizes := make([]int64, len(s.open))
	for i, f := range s.open {
		info, err := f.Stat()
		if err != nil {
			return false, err
		}
		inodes[i], sizes[i] = logspan.Inode(info), info.Size()
	}
	last := len(s.open) - 1
	if end != nil {
		last = slices.Index(inodes, end.Inode)
	}
	first := slices.Index(inodes, begin.Inode)
	if last < 0 || first > last || first < 0 && end == nil {
		return false, s.close()
	}
	for _, f := range s.open[last+1:] {
		if err := f.Close(); err != nil {
			return false, err
		}
	}
	s.open = s.open[:last+1]
	s.end = sizes[last]
	if end != nil {
		s.end = min(s.end, end.Offset)
	}
	if first < 0 { // the begin was rotated away
		return true, s.start(0, 0)
	}
	return true, s.start(first, begin.Offset)
}
