package embedded

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// etagListHolds reports whether a list of ETags, or "*", holds etag. A weak one
// stands for the same bytes here.
func etagListHolds(list, etag string) bool {
	for tag := range strings.SplitSeq(list, ",") {
		tag = strings.Trim(strings.TrimPrefix(strings.TrimSpace(tag), "W/"), `"`)
		if tag == "*" || tag == etag {
			return true
		}
	}
	return false
}

// checkRead checks the conditions of a read, in the order of RFC 9110, section
// 13.2.2. prefix is before the headers' names.
func checkRead(h http.Header, prefix string, info *folder.Info) *apiError {
	modified := info.Modified.Truncate(time.Second)
	date := func(name string) (time.Time, bool) {
		t, err := http.ParseTime(h.Get(prefix + name))
		return t, err == nil
	}
	if match := h.Get(prefix + "If-Match"); match != "" {
		if !etagListHolds(match, info.ETag) {
			return preconditionFailed(prefix + "If-Match")
		}
	} else if t, ok := date("If-Unmodified-Since"); ok && modified.After(t) {
		return preconditionFailed(prefix + "If-Unmodified-Since")
	}
	if none := h.Get(prefix + "If-None-Match"); none != "" {
		if etagListHolds(none, info.ETag) {
			return errNotModified
		}
	} else if t, ok := date("If-Modified-Since"); ok && !modified.After(t) {
		return errNotModified
	}
	return nil
}

// checkCopySource checks the conditions on the source of a copy, for which
// there is no "not modified".
func checkCopySource(h http.Header, info *folder.Info) error {
	if e := checkRead(h, "X-Amz-Copy-Source-", info); e != nil {
		return preconditionFailed("x-amz-copy-source-if-*")
	}
	return nil
}

// writeCheck makes of If-Match and If-None-Match what a write demands of the
// object it replaces; nil for nothing.
func writeCheck(match, noneMatch string) folder.Check {
	if match == "" && noneMatch == "" {
		return nil
	}
	return func(current *folder.Info) error {
		switch {
		case match != "" && current == nil:
			return folder.ErrNoKey
		case match != "" && !etagListHolds(match, current.ETag):
			return preconditionFailed("If-Match")
		case noneMatch != "" && current != nil && etagListHolds(noneMatch, current.ETag):
			return preconditionFailed("If-None-Match")
		}
		return nil
	}
}

// headerCheck is writeCheck for a request's headers.
func headerCheck(h http.Header) folder.Check {
	return writeCheck(h.Get("If-Match"), h.Get("If-None-Match"))
}

// deleteCondition is what a deletion demands of the object.
type deleteCondition struct {
	etag     string // If-Match
	modified string // a time
	size     string // a number
}

func (c deleteCondition) check(current *folder.Info) error {
	if c == (deleteCondition{}) {
		return nil
	}
	if current == nil {
		return folder.ErrNoKey
	}
	if c.etag != "" && !etagListHolds(c.etag, current.ETag) {
		return preconditionFailed("If-Match")
	}
	if c.size != "" {
		n, err := strconv.ParseInt(c.size, 10, 64)
		if err != nil {
			return badRequest(codeInvalidArgument, "The size of a condition must be a number.")
		}
		if n != current.Size {
			return preconditionFailed("x-amz-if-match-size")
		}
	}
	if c.modified != "" {
		t, err := http.ParseTime(c.modified)
		if err != nil {
			if t, err = time.Parse(time.RFC3339, c.modified); err != nil {
				return badRequest(codeInvalidArgument, "The time of a condition cannot be read.")
			}
		}
		if !current.Modified.Truncate(time.Second).Equal(t.Truncate(time.Second)) {
			return preconditionFailed("x-amz-if-match-last-modified-time")
		}
	}
	return nil
}

// byteRange is a part of an object.
type byteRange struct{ offset, size int64 }

// parseRange reads a Range header of a request for an object of a size. It
// returns nil when the whole object is the answer: for units other than bytes,
// for several ranges, and for what cannot be read (RFC 9110, section 14.2).
func parseRange(text string, size int64) (*byteRange, *apiError) {
	unit, spec, _ := strings.Cut(text, "=")
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !strings.EqualFold(strings.TrimSpace(unit), "bytes") || !ok || strings.Contains(spec, ",") {
		return nil, nil
	}
	first, last = strings.TrimSpace(first), strings.TrimSpace(last)
	unsatisfiable := newError(http.StatusRequestedRangeNotSatisfiable, codeInvalidRange, "The object has %d bytes.", size)
	if first == "" { // the last bytes
		n, err := strconv.ParseUint(last, 10, 63)
		switch {
		case err != nil && !tooLarge(err):
			return nil, nil
		case err == nil && n == 0, size == 0:
			return nil, unsatisfiable
		case err != nil || int64(n) > size:
			return &byteRange{0, size}, nil
		}
		return &byteRange{size - int64(n), int64(n)}, nil
	}
	from, err := strconv.ParseUint(first, 10, 63)
	if err != nil {
		if tooLarge(err) {
			return nil, unsatisfiable
		}
		return nil, nil
	}
	to := uint64(1<<63 - 1)
	if last != "" {
		if to, err = strconv.ParseUint(last, 10, 63); err != nil && !tooLarge(err) || to < from {
			return nil, nil
		}
	}
	if int64(from) >= size {
		return nil, unsatisfiable
	}
	return &byteRange{int64(from), min(int64(to), size-1) - int64(from) + 1}, nil
}

// tooLarge reports whether a number was one, but too large.
func tooLarge(err error) bool {
	n, ok := err.(*strconv.NumError)
	return ok && n.Err == strconv.ErrRange
}
