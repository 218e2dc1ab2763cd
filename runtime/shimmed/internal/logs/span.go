package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/logspan"
	"github.com/iterait/shepherd/runtime"
)

// OpenSpan opens a span of logs, which has a position in each log. Parts that rotation
// has removed are missing; if nothing is left the error is of class errdefs.ErrNotFound. A
// span without an end is read up to the present end of the logs or, with Follow, until
// JobLog.End is called or ctx ends. See Open.
func OpenSpan(ctx context.Context, span logspan.Span, o Options, files ...File) (runtime.JobLog, error) {
	r := newReader(ctx, o.Follow && span.End == nil)
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
		found, err := s.seekSpan(span.Begin[i], end, o.Tail)
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

// End returns the present ends of the logs; the zero Position for one that does not exist.
func End(files ...File) logspan.Mark {
	mark := make(logspan.Mark, len(files))
	for i, f := range files {
		if info, err := os.Stat(f.Path); err == nil {
			mark[i] = logspan.Position{Inode: logspan.Inode(info), Offset: info.Size()}
		}
	}
	return mark
}

// seekSpan opens the files of a span in one log and seeks to its begin, or to its last
// lines. It reports whether any of the span exists; if not, the source is empty. A zero
// begin is the beginning of the log.
func (s *source) seekSpan(begin logspan.Position, end *logspan.Position, tail int) (found bool, err error) {
	if err := s.gather(); err != nil || len(s.open) == 0 {
		s.gone = end != nil && *end != logspan.Position{}
		return !s.gone, err
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
	if begin == (logspan.Position{}) {
		first = 0
	}
	if last < 0 || first > last {
		s.gone = true
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
		first, begin.Offset = 0, 0
	}
	if tail >= 0 {
		file, at, err := s.tail(tail)
		if err != nil {
			return false, err
		}
		if file > first || file == first && at > begin.Offset {
			first, begin.Offset = file, at
		}
	}
	return true, s.start(first, begin.Offset)
}
