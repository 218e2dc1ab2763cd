// Package logs reads log files while others write, rotate, truncate and remove
// them. It holds a few open files and no memory beyond its caller's buffer,
// however much there is to read.
package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/internal/logspan"
)

// interval is the time between two looks at files that have nothing new.
const interval = 250 * time.Millisecond

// File is a log. One that is rotated moves to PATH.1, PATH.1 to PATH.2 and so on
// up to PATH.KEEP.
type File struct {
	Path string
	Keep int
}

// Options say which part of the logs is read.
type Options struct {
	// Tail is how many of the last lines of each file are read, rotated ones
	// included; all, where negative.
	Tail int
	// Follow goes on with what is written later, until the context ends.
	Follow bool
}

// Open opens logs, which need not exist. What several hold at the beginning
// comes one file after the other, what is written later as it comes, by whole
// lines where the writer writes those.
//
// Read returns io.EOF at the end of what there was when Open was called or,
// following, ctx's error. Read and Close are not called at the same time: to end
// a Read, end ctx.
func Open(ctx context.Context, o Options, files ...File) (io.ReadCloser, error) {
	r := newReader(ctx, o.Follow)
	for _, f := range files {
		s, err := open(f, o.Tail)
		if err != nil {
			r.Close()
			return nil, err
		}
		s.whole = len(files) > 1
		r.sources = append(r.sources, s)
	}
	return r, nil
}

type reader struct {
	done    <-chan struct{}
	cause   func() error
	follow  bool
	sources []*source
	turn    int  // the source to be asked next
	begun   bool // all that there was at the beginning is read

	limit   atomic.Pointer[logspan.Mark] // nothing after it is read
	limited chan struct{}                // closed when limit is set
}

func newReader(ctx context.Context, follow bool) *reader {
	return &reader{done: ctx.Done(), cause: func() error { return context.Cause(ctx) }, follow: follow, limited: make(chan struct{})}
}

// End ends the following at the end of a span, all of which is written. A span
// without an end changes nothing, nor does a second one.
func (r *reader) End(text string) {
	span, err := logspan.Parse(text)
	if err == nil && len(span.End) >= len(r.sources) && r.limit.CompareAndSwap(nil, &span.End) {
		close(r.limited)
	}
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.begun && !r.follow {
		return 0, io.EOF
	}
	for {
		select {
		case <-r.done:
			return 0, r.cause()
		default:
		}
		limit := r.limit.Load()
		for range r.sources {
			if r.turn == len(r.sources) {
				r.turn = 0
			}
			if limit != nil {
				r.sources[r.turn].limit = &(*limit)[r.turn]
			}
			n, err := r.sources[r.turn].read(p, !r.begun)
			if n == 0 || r.begun { // the beginning comes file by file
				r.turn++
			}
			if n > 0 || err != nil {
				return n, err
			}
			if !r.begun && r.turn == len(r.sources) {
				break
			}
		}
		if !r.begun {
			r.begun = true
			if !r.follow {
				return 0, io.EOF
			}
			continue
		}
		if limit != nil { // all there is was written before the limit was known
			return 0, io.EOF
		}
		select {
		case <-r.done:
		case <-r.limited:
		case <-time.After(interval):
		}
	}
}

func (r *reader) Close() error {
	var errs []error
	for _, s := range r.sources {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// source is one log being read.
type source struct {
	log   File
	whole bool // reads end where lines end, as far as lines have ended

	open []*os.File // oldest first; the first is being read
	at   int64      // in it
	end  int64      // of the last one, when the log was opened

	limit *logspan.Position // nothing after it is read; nil for none
	gone  bool              // nothing of what is wanted is kept
}

// open opens the log, as far as it exists, and finds where its last lines begin.
func open(f File, tail int) (*source, error) {
	s := &source{log: f}
	err := s.gather()
	if err == nil && len(s.open) > 0 {
		var info os.FileInfo
		if info, err = s.open[len(s.open)-1].Stat(); err == nil {
			s.end = info.Size()
			err = s.startAt(s.tail(tail))
		}
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("read the log %s: %w", f.Path, err)
	}
	return s, nil
}

// gather opens all files there are of a log. One that moves on meanwhile moves
// to a name not looked at yet: it can be met twice but not be missed.
func (s *source) gather() error {
	for n := 0; n <= s.log.Keep; n++ {
		file, err := openLog(s.log.name(n))
		if err == nil && file != nil && len(s.open) > 0 && same(s.open[0], file) {
			err = file.Close()
			file = nil
		}
		if err != nil {
			return err
		}
		if file != nil {
			s.open = slices.Insert(s.open, 0, file)
		}
	}
	return nil
}

// openLog opens a log file; nil says that there is none.
func openLog(path string) (*os.File, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("log %s is not a file that can be read again", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func (f File) name(n int) string {
	if n == 0 {
		return f.Path
	}
	return fmt.Sprintf("%s.%d", f.Path, n)
}

func same(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// tail finds the beginning of the last lines, or of all where lines is negative: the
// file, and the place in it. A last line that has not ended counts.
func (s *source) tail(lines int) (file int, at int64, err error) {
	if lines < 0 {
		return 0, 0, nil
	}
	if lines == 0 {
		return len(s.open) - 1, s.end, nil
	}
	buffer := make([]byte, 32<<10)
	last := true // nothing of the newest line is seen yet
	for i := len(s.open) - 1; i >= 0; i-- {
		at := s.end
		if i < len(s.open)-1 {
			info, err := s.open[i].Stat()
			if err != nil {
				return 0, 0, err
			}
			at = info.Size()
		}
		for at > 0 {
			n := min(at, int64(len(buffer)))
			chunk := buffer[:n]
			if _, err := s.open[i].ReadAt(chunk, at-n); err != nil && err != io.EOF {
				return 0, 0, err
			}
			end := len(chunk)
			if last && chunk[end-1] == '\n' {
				end-- // ends the newest line and begins none
			}
			last = false
			for {
				newline := bytes.LastIndexByte(chunk[:end], '\n')
				if newline < 0 {
					break
				}
				if lines--; lines == 0 {
					return i, at - n + int64(newline) + 1, nil
				}
				end = newline
			}
			at -= n
		}
	}
	return 0, 0, nil
}

// startAt is start with what tail found.
func (s *source) startAt(i int, at int64, err error) error {
	if err != nil {
		return err
	}
	return s.start(i, at)
}

// start reads from here on.
func (s *source) start(i int, at int64) error {
	for _, f := range s.open[:i] {
		if err := f.Close(); err != nil {
			return err
		}
	}
	s.open, s.at = s.open[i:], at
	return nil
}

// read reads what is available, and nothing where nothing is. At the
// beginning it ends where the log did when it was opened.
func (s *source) read(p []byte, beginning bool) (int, error) {
	for {
		if s.gone {
			return 0, nil
		}
		if len(s.open) == 0 {
			s.at = 0
			if err := s.gather(); len(s.open) == 0 || err != nil {
				return 0, err
			}
		}
		part := p
		bound := func(end int64) { part = part[:max(0, min(int64(len(part)), end-s.at))] }
		if beginning && len(s.open) == 1 {
			bound(s.end)
		}
		if s.limit != nil {
			info, err := s.open[0].Stat()
			if err != nil {
				return 0, fmt.Errorf("read the log %s: %w", s.log.Path, err)
			}
			if logspan.Inode(info) == s.limit.Inode {
				bound(s.limit.Offset)
			}
		}
		if len(part) == 0 {
			return 0, nil
		}
		n, err := s.open[0].ReadAt(part, s.at)
		if n > 0 {
			if s.whole {
				if newline := bytes.LastIndexByte(part[:n], '\n'); newline >= 0 {
					n = newline + 1
				}
			}
			s.at += int64(n)
			return n, nil
		}
		if err != nil && err != io.EOF {
			return 0, fmt.Errorf("read the log %s: %w", s.log.Path, err)
		}
		if beginning && len(s.open) == 1 {
			return 0, nil // it was truncated meanwhile
		}
		if more, err := s.advance(); !more || err != nil {
			return 0, err
		}
	}
}

// advance goes on from a file that is read to its end, and says whether there
// may be more to read.
func (s *source) advance() (bool, error) {
	if len(s.open) > 1 {
		err := s.open[0].Close()
		s.open, s.at = s.open[1:], 0
		return true, err
	}
	info, err := s.open[0].Stat()
	if err != nil {
		return false, fmt.Errorf("read the log %s: %w", s.log.Path, err)
	}
	if info.Size() < s.at { // truncated
		s.at = 0
		return info.Size() > 0, nil
	}
	if s.place(info) == 0 {
		return false, nil
	}
	next, err := s.next(info)
	if next == nil || err != nil {
		return false, err
	}
	// Now nobody writes to the old one any more: what came last in it first.
	if now, err := s.open[0].Stat(); err == nil && now.Size() > s.at {
		return true, next.Close()
	}
	err = s.open[0].Close()
	s.open, s.at = append(s.open[:0], next), 0
	return true, err
}

// place is the number that a file has among the log's, or -1.
func (s *source) place(info os.FileInfo) int {
	for n := 0; n <= s.log.Keep; n++ {
		if other, err := os.Stat(s.log.name(n)); err == nil && os.SameFile(info, other) {
			return n
		}
	}
	return -1
}

// next opens the file that follows one that was rotated: the next younger, or
// the oldest where that one is kept no longer. Nil says that there is none yet.
func (s *source) next(info os.FileInfo) (*os.File, error) {
	for {
		place := s.place(info)
		if place < 0 {
			place = s.log.Keep + 1
		}
		var next *os.File
		for n := place - 1; n >= 0 && next == nil; n-- {
			var err error
			if next, err = openLog(s.log.name(n)); err != nil {
				return nil, err
			}
		}
		if next == nil {
			return nil, nil
		}
		size, err := next.Stat()
		if err != nil {
			return nil, errors.Join(err, next.Close())
		}
		// An older file moves before a younger one: where this one has stayed,
		// next is the next.
		now := s.place(info)
		if now < 0 {
			now = s.log.Keep + 1
		}
		switch {
		case now != place:
			if err := next.Close(); err != nil {
				return nil, err
			}
		case size.Size() == 0:
			// Whoever set the old one aside may still write to it.
			return nil, next.Close()
		default:
			return next, nil
		}
	}
}

func (s *source) close() error {
	var errs []error
	for _, f := range s.open {
		errs = append(errs, f.Close())
	}
	s.open = nil
	return errors.Join(errs...)
}
