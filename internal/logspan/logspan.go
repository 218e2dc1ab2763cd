// Package logspan identifies parts of log files that are rotated by renaming: files are
// identified by inode.
package logspan

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Position is a place in a file. The zero Position is not known.
type Position struct {
	Inode  uint64
	Offset int64
}

// Mark is a place in each of a runner's logs.
type Mark []Position

// Span is a part of the logs. One without an end has not ended.
type Span struct{ Begin, End Mark }

// At returns the position of the end of a file.
func At(f *os.File) Position {
	info, err := f.Stat()
	if err != nil {
		return Position{}
	}
	return Position{Inode: Inode(info), Offset: info.Size()}
}

// Inode returns a file's inode number.
func Inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// String formats a span for Parse. It is empty if no position is known.
func (s Span) String() string {
	if len(s.Begin) == 0 {
		return ""
	}
	text := s.Begin.String()
	if s.End != nil {
		text += "/" + s.End.String()
	}
	return text
}

// String formats a mark: INODE:OFFSET, separated by commas.
func (m Mark) String() string {
	parts := make([]string, len(m))
	for i, p := range m {
		parts[i] = fmt.Sprintf("%d:%d", p.Inode, p.Offset)
	}
	return strings.Join(parts, ",")
}

var errSpan = errors.New("not a part of a log")

// Parse reads what String wrote.
func Parse(text string) (Span, error) {
	begin, end, ended := strings.Cut(text, "/")
	var s Span
	var err error
	if s.Begin, err = parseMark(begin); err != nil {
		return Span{}, err
	}
	if ended {
		if s.End, err = parseMark(end); err != nil {
			return Span{}, err
		}
		if len(s.End) != len(s.Begin) {
			return Span{}, errSpan
		}
	}
	return s, nil
}

// maxLogs is the largest number of logs of a mark.
const maxLogs = 4

func parseMark(text string) (Mark, error) {
	parts := strings.Split(text, ",")
	if len(parts) > maxLogs {
		return nil, errSpan
	}
	m := make(Mark, len(parts))
	for i, part := range parts {
		inode, offset, ok := strings.Cut(part, ":")
		var err1, err2 error
		m[i].Inode, err1 = strconv.ParseUint(inode, 10, 64)
		m[i].Offset, err2 = strconv.ParseInt(offset, 10, 64)
		if !ok || err1 != nil || err2 != nil || m[i].Offset < 0 {
			return nil, errSpan
		}
	}
	return m, nil
}
