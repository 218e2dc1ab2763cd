// Package bounded keeps a bounded part of the data that is written to it: memory does not
// grow with what a program prints.
package bounded

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

// Tail keeps the last bytes written to it. Writing never fails. It is safe for concurrent
// use.
type Tail struct {
	limit int

	mu    sync.Mutex
	kept  []byte // at most 2*limit bytes
	total int64
}

// NewTail makes a Tail of limit bytes.
func NewTail(limit int) *Tail { return &Tail{limit: limit} }

// Write keeps the end of p. See io.Writer.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	t.total += int64(n)
	if len(p) > t.limit {
		p = p[len(p)-t.limit:]
	}
	if t.kept == nil {
		t.kept = make([]byte, 0, 2*t.limit)
	}
	if len(t.kept)+len(p) > cap(t.kept) {
		t.kept = t.kept[:copy(t.kept, t.kept[len(t.kept)-t.limit:])]
	}
	t.kept = append(t.kept, p...)
	return n, nil
}

// String returns the kept text: at most limit bytes, from the beginning of a line if
// earlier text was dropped.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.kept
	if len(kept) > t.limit {
		kept = kept[len(kept)-t.limit:]
	}
	if t.total > int64(len(kept)) {
		if i := bytes.IndexByte(kept, '\n'); i >= 0 && i < len(kept)-1 {
			kept = kept[i+1:]
		}
	}
	return string(kept)
}

// Total returns the number of bytes written.
func (t *Tail) Total() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// Head keeps the first limit bytes written to it. A Write beyond that fails with
// io.ErrShortWrite, and nothing of it is kept. It is safe for concurrent use.
type Head struct {
	limit int

	mu   sync.Mutex
	kept bytes.Buffer
	over bool
}

// NewHead makes a Head of limit bytes.
func NewHead(limit int) *Head { return &Head{limit: limit} }

// Write keeps p, or fails. See io.Writer.
func (h *Head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kept.Len()+len(p) > h.limit {
		h.over = true
		return 0, io.ErrShortWrite
	}
	return h.kept.Write(p)
}

// Bytes returns the kept data.
func (h *Head) Bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.kept.Bytes())
}

// Over reports whether more than limit bytes were written.
func (h *Head) Over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over
}

// Lines calls each for every line written to it, without the line break. A line longer than
// limit bytes is split. Flush passes on an incomplete last line. It is not safe for
// concurrent use.
type Lines struct {
	limit int
	each  func(line string)
	begun strings.Builder
}

// NewLines makes a Lines.
func NewLines(limit int, each func(line string)) *Lines { return &Lines{limit: limit, each: each} }

// Write splits p into lines. It never fails. See io.Writer.
func (l *Lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		for len(part) > 0 {
			room := min(len(part), l.limit-l.begun.Len())
			l.begun.Write(part[:room])
			part = part[room:]
			if len(part) > 0 {
				l.Flush()
			}
		}
		if i < 0 {
			break
		}
		l.end()
		p = p[i+1:]
	}
	return n, nil
}

// Flush passes on an incomplete last line.
func (l *Lines) Flush() {
	if l.begun.Len() > 0 {
		l.end()
	}
}

func (l *Lines) end() {
	line := l.begun.String()
	l.begun.Reset()
	l.each(line)
}
