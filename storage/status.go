package storage

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Bounds of a job_status.json, in bytes.
const (
	// MaxStatus is how large one that is read may be. What shepherd writes stays
	// far below: job.(*Failure).Clip bounds its texts. The original stored
	// tracebacks of any length.
	MaxStatus = 64 << 20
	// maxShortStatus is how much of it is kept in memory, texts cut short.
	maxShortStatus = 4 << 20
	// maxText is how much is kept of the beginning of a text, and at least of its
	// end: more than Clip keeps, though every character is written as an escape.
	maxText = 6 * job.MaxTraceback
)

// ReadStatus decodes a job_status.json in bounded memory: the middle of long
// texts is left out. What is no status, or larger than MaxStatus, is an error of
// class errdefs.ErrDataLoss; an error of r is returned wrapped.
func ReadStatus(r io.Reader) (job.Status, error) {
	limited := &io.LimitedReader{R: r, N: MaxStatus + 1}
	data, err := shortJSON(bufio.NewReader(limited))
	switch {
	case errors.Is(err, errTooLarge), limited.N == 0:
		return job.Status{}, fmt.Errorf("%s %w: %w", job.StatusFile, errTooLarge, errdefs.ErrDataLoss)
	case err != nil:
		return job.Status{}, fmt.Errorf("read %s: %w", job.StatusFile, err)
	}
	var status job.Status
	if err := json.Unmarshal(data, &status); err != nil {
		return job.Status{}, fmt.Errorf("%s is not the status of a job: %w: %w", job.StatusFile, err, errdefs.ErrDataLoss)
	}
	return status, nil
}

var errTooLarge = errors.New("is larger than a status can be")

// shortJSON reads JSON to its end and leaves out the middle of long strings. What
// is no JSON comes out as what is no JSON.
func shortJSON(in *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		b, err := in.ReadByte()
		if err == nil {
			if out = append(out, b); b == '"' {
				out, err = appendShort(out, in)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, err
		case len(out) > maxShortStatus:
			return nil, errTooLarge
		}
	}
}

// appendShort appends the rest of a string, to its closing quote, to out. It
// holds at most twice maxText of its end.
func appendShort(out []byte, in *bufio.Reader) ([]byte, error) {
	var tail []byte
	begin, border, cut := len(out), 0, false
	for unit := make([]byte, 0, 6); ; {
		var err error
		unit, err = appendUnit(unit[:0], in)
		if err != nil || unit[0] == '"' {
			if cut {
				out = append(out, `\n[…]\n`...)
			}
			out = append(out, tail...)
			return append(out, unit...), err
		}
		if tail == nil && len(out)-begin < maxText {
			out = append(out, unit...)
			continue
		}
		switch {
		case len(tail) >= 2*maxText:
			tail = append(tail[:0], tail[border:]...)
			border, cut = len(tail), true
		case border == 0 && len(tail) >= maxText:
			border = len(tail)
		}
		tail = append(tail, unit...)
	}
}

// appendUnit appends one character of a JSON string, or one escape sequence,
// which must not be cut.
func appendUnit(unit []byte, in *bufio.Reader) ([]byte, error) {
	b, err := in.ReadByte()
	if err != nil {
		return unit, err
	}
	unit = append(unit, b)
	more := 0
	switch {
	case b == '\\':
		if b, err = in.ReadByte(); err != nil {
			return unit, err
		}
		if unit = append(unit, b); b == 'u' {
			more = 4
		}
	case b >= utf8.RuneSelf:
		for len(unit) < utf8.UTFMax {
			next, err := in.Peek(1)
			if err != nil || utf8.RuneStart(next[0]) {
				break
			}
			unit = append(unit, next[0])
			_, _ = in.Discard(1)
		}
	}
	for range more {
		if b, err = in.ReadByte(); err != nil {
			return unit, err
		}
		unit = append(unit, b)
	}
	return unit, nil
}
