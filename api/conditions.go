package api

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// askedFile is an opened file and the status that the request's conditions and
// range lead to. Body is what is sent with a 200 or 206.
type askedFile struct {
	*job.File
	status int
}

// openFile opens what r asks for: the file, or the part that its Range header
// names, subject to its conditions (RFC 9110, sections 13 and 14). Storage is
// asked once, except where a range cannot be met or If-Range rules it out.
func openFile(r *http.Request, id job.ID, name string, open opener) (*askedFile, error) {
	part, unmet := parseRange(r.Header.Get("Range"))
	file, err := open(r.Context(), id, name, part)
	if part != nil && errors.Is(err, job.ErrRange) {
		unmet, part = true, nil
		file, err = open(r.Context(), id, name, nil)
	}
	if err != nil {
		return nil, err
	}
	asked := &askedFile{File: file, status: precondition(r.Header, file)}
	if asked.status != http.StatusOK || part == nil && !unmet {
		return asked, nil
	}
	if ifRange := r.Header.Get("If-Range"); ifRange != "" && !unchanged(ifRange, file) {
		if part == nil {
			return asked, nil // the whole file is open already
		}
		_ = file.Body.Close() // nothing was read
		asked.File, err = open(r.Context(), id, name, nil)
		if err != nil {
			return nil, err
		}
		return asked, nil
	}
	asked.status = http.StatusPartialContent
	if unmet || file.Length <= 0 {
		asked.status = http.StatusRequestedRangeNotSatisfiable
	}
	return asked, nil
}

// parseRange reads a Range header. It returns nil for what RFC 9110 allows a server to
// ignore (other units, malformed ranges, several ranges); the whole file is served then.
// unmet means that no file can have the range.
func parseRange(header string) (part *job.Range, unmet bool) {
	unit, list, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return nil, false
	}
	first, last, ok := strings.Cut(strings.TrimSpace(list), "-")
	if !ok || !digits(first) || !digits(last) || first == "" && last == "" {
		return nil, false
	}
	to, toFits := number(last)
	if first == "" { // the last bytes
		if to == 0 {
			return nil, true
		}
		return &job.Range{Offset: -to, Length: -1}, false
	}
	from, fromFits := number(first)
	switch {
	case !fromFits:
		return nil, true
	case last == "" || !toFits:
		return &job.Range{Offset: from, Length: -1}, false
	case to < from:
		return nil, false
	case to-from == math.MaxInt64:
		return &job.Range{Offset: from, Length: -1}, false
	}
	return &job.Range{Offset: from, Length: to - from + 1}, false
}

func digits(s string) bool {
	for i := range len(s) {
		if !digit(s[i]) {
			return false
		}
	}
	return true
}

// number is the value of digits, or the largest number when that does not fit.
func number(digits string) (n int64, fits bool) {
	n, err := strconv.ParseInt(digits, 10, 64)
	return n, !errors.Is(err, strconv.ErrRange)
}

// setValidators sets the ETag and Last-Modified of file.
func setValidators(h http.Header, file *job.File) {
	if file.ETag != "" {
		h.Set("ETag", file.ETag)
	}
	if !file.Modified.IsZero() {
		h.Set("Last-Modified", file.Modified.UTC().Format(http.TimeFormat))
	}
}

// precondition is the status that the If- headers lead to, in their order of
// precedence: 200 to go on.
func precondition(h http.Header, file *job.File) int {
	if want := h.Values("If-Match"); len(want) > 0 {
		if !listed(want, file.ETag, strong) {
			return http.StatusPreconditionFailed
		}
	} else if since, ok := date(h.Get("If-Unmodified-Since"), file); ok && modifiedAfter(file, since) {
		return http.StatusPreconditionFailed
	}
	if have := h.Values("If-None-Match"); len(have) > 0 {
		if listed(have, file.ETag, weak) {
			return http.StatusNotModified
		}
	} else if since, ok := date(h.Get("If-Modified-Since"), file); ok && !modifiedAfter(file, since) {
		return http.StatusNotModified
	}
	return http.StatusOK
}

// unchanged reports whether file is still the one that an If-Range header
// names.
func unchanged(ifRange string, file *job.File) bool {
	if strings.HasPrefix(ifRange, `"`) {
		return strong(ifRange, file.ETag)
	}
	since, ok := date(ifRange, file)
	return ok && file.Modified.Truncate(time.Second).Equal(since)
}

// date reads an HTTP date, where the file has one to compare it with.
func date(header string, file *job.File) (time.Time, bool) {
	if header == "" || file.Modified.IsZero() {
		return time.Time{}, false
	}
	t, err := http.ParseTime(header)
	return t, err == nil
}

// modifiedAfter compares with the precision of HTTP dates, a second.
func modifiedAfter(file *job.File, t time.Time) bool {
	return file.Modified.Truncate(time.Second).After(t)
}

// listed reports whether tag is in a list of entity tags, or the list is "*".
func listed(headers []string, tag string, same func(a, b string) bool) bool {
	for _, header := range headers {
		rest := strings.TrimSpace(header)
		if rest == "*" {
			return true
		}
		for rest != "" {
			var candidate string
			if candidate, rest = cutTag(rest); candidate != "" && same(candidate, tag) {
				return true
			}
		}
	}
	return false
}

// cutTag takes the first entity tag off a list. A tag may hold commas. Where
// there is none, the rest of the list is dropped.
func cutTag(list string) (tag, rest string) {
	list = strings.TrimLeft(list, ", \t")
	opaque := strings.TrimPrefix(list, "W/")
	if !strings.HasPrefix(opaque, `"`) {
		return "", ""
	}
	end := strings.IndexByte(opaque[1:], '"')
	if end < 0 {
		return "", ""
	}
	length := len(list) - len(opaque) + end + 2
	return list[:length], list[length:]
}

func strong(a, b string) bool { return a == b && strings.HasPrefix(a, `"`) }

func weak(a, b string) bool {
	return b != "" && strings.TrimPrefix(a, "W/") == strings.TrimPrefix(b, "W/")
}
