// Package logs reads log files that other processes write, rotate, truncate and remove
// at the same time. It holds a few open files, and needs no memory beyond its caller's
// buffer, however long the logs are.
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

// pollInterval is the time between two checks for new content.
const pollInterval = 250 * time.Millisecond

// File is a log. Rotation renames PATH to PATH.1, PATH.1 to PATH.2 and so on up to
// PATH.KEEP.
type File struct {
	Path string
	Keep int
}

// Options say which part of the logs is read.
type Options struct {
	// Tail is how many of the last lines of each log are read, including its rotated
	// files; negative is all.
	Tail int
	// Follow reads also what is written later, until the context ends.
	Follow bool
}

// Open opens logs, which need not exist. The present content of several logs is read one
// log after the other, later content in the order in which it is written, by whole lines
// if the writer writes whole lines.
//
// Without Follow, Read returns io.EOF at the end of the content at the time of Open; with
// Follow, ctx's error when ctx ends. Read and Close must not be called at the same time:
// to end a Read, end ctx.
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
	turn    int  // the source to read next
	begun   bool // the content at the time of Open has been read

	limit   atomic.Pointer[logspan.Mark] // where reading ends
	limited chan struct{}                // closed when limit is set
}

func newReader(ctx context.Context, follow bool) *reader {
	return &reader{done: ctx.Done(), cause: func() error { return context.Cause(ctx) }, follow: follow, limited: make(chan struct{})}
}

// End makes a following reader end at the end of a span, which must be written
// completely. A span without an end is ignored, and so are further calls.
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
			if n == 0 || r.begun { // the content at the time of Open is read log by log
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
		if limit != nil { // the span was complete before the limit was set
			return 0, io.EOF
		}
		select {
		case <-r.done:
		case <-r.limited:
		case <-time.After(pollInterval):
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
	whole bool // a read ends at the end of a line, if it contains one

	open []*os.File // oldest first; the first is being read
	at   int64      // offset in the first
	end  int64      // size of the last when the log was opened

	limit *logspan.Position // where reading ends; nil for no limit
	gone  bool              // rotation has removed the whole span
}

// open opens the files of the log that exist, and seeks to its last lines.
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

// gather opens all files of a log, from the newest to the oldest. A file that is rotated
// meanwhile moves to a name that is checked later, so it can be found twice but not be
// missed.
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

// openLog opens a log file. It returns nil if the file does not exist.
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
		err = fmt.Errorf("log %s is not a regular file", path)
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

// tail returns the index of the file, and the offset in it, at which the last lines
// begin, or the log if lines is negative. An incomplete last line counts.
func (s *source) tail(lines int) (file int, at int64, err error) {
	if lines < 0 {
		return 0, 0, nil
	}
	if lines == 0 {
		return len(s.open) - 1, s.end, nil
	}
	buffer := make([]byte, 32<<10)
	last := true // the newest byte has not been read yet
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
				end-- // this newline ends the newest line
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

// startAt is start with the results of tail.
func (s *source) startAt(i int, at int64, err error) error {
	if err != nil {
		return err
	}
	return s.start(i, at)
}

// start makes the source begin at an offset in the file with the index i.
func (s *source) start(i int, at int64) error {
	for _, f := range s.open[:i] {
		if err := f.Close(); err != nil {
			return err
		}
	}
	s.open, s.at = s.open[i:], at
	return nil
}

// read reads what is available, which may be nothing. With beginning, it reads only up to
// the end of the log at the time of open.
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
			return 0, nil // the file was truncated meanwhile
		}
		if more, err := s.advance(); !more || err != nil {
			return 0, err
		}
	}
}

// advance goes to the next file after one was read to its end, and reports whether there
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
	// The next file has content, so no process writes to the old one any more. Read what
	// was written to the old one since.
	if now, err := s.open[0].Stat(); err == nil && now.Size() > s.at {
		return true, next.Close()
	}
	err = s.open[0].Close()
	s.open, s.at = append(s.open[:0], next), 0
	return true, err
}

// place returns the number of a file's name, PATH.N, or -1 if it has no name any more.
func (s *source) place(info os.FileInfo) int {
	for n := 0; n <= s.log.Keep; n++ {
		if other, err := os.Stat(s.log.name(n)); err == nil && os.SameFile(info, other) {
			return n
		}
	}
	return -1
}

// next opens the file after one that was rotated: the next newer one, or the oldest if
// that one was removed. It returns nil if there is none yet.
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
		// Rotation renames older files first: if this file has kept its name, the files
		// after it have, too.
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
			// The process that rotated the log may still write to the old file.
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
