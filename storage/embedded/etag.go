package embedded

import (
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/rclone/gofakes3"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// The ETag of a multipart object is "<MD5 of the parts' MD5s>-<their number>".
// gofakes3 knows ETags only as bytes that it writes in hex, so within it the
// number is two more bytes; on the wire it is as everywhere else.

// hashOf returns an ETag as gofakes3 wants it.
func hashOf(etag string) []byte {
	sum, parts, multi := strings.Cut(etag, "-")
	hash, err := hex.DecodeString(sum)
	if err != nil {
		return nil
	}
	if multi {
		n, err := strconv.ParseUint(parts, 10, 16)
		if err != nil {
			return nil
		}
		hash = binary.BigEndian.AppendUint16(hash, uint16(n))
	}
	return hash
}

// wireETag makes of gofakes3's ETag, quoted, what the client gets.
func wireETag(etag string) string {
	inner := strings.Trim(etag, `"`)
	if len(inner) != 36 {
		return etag
	}
	hash, err := hex.DecodeString(inner)
	if err != nil {
		return etag
	}
	return `"` + inner[:32] + "-" + strconv.Itoa(int(binary.BigEndian.Uint16(hash[16:]))) + `"`
}

var multipartETag = regexp.MustCompile(`[0-9a-f]{32}-[0-9]{1,5}`)

// exposeETags rewrites the ETags in a request's conditions to gofakes3's form.
func exposeETags(h http.Header) {
	for _, name := range []string{"If-Match", "If-None-Match", "X-Amz-Copy-Source-If-Match", "X-Amz-Copy-Source-If-None-Match"} {
		if value := h.Get(name); strings.Contains(value, "-") {
			h.Set(name, multipartETag.ReplaceAllStringFunc(value, func(etag string) string {
				return hex.EncodeToString(hashOf(etag))
			}))
		}
	}
}

// writeCheck makes of If-Match and If-None-Match what a write demands of the
// object it replaces; nil for nothing.
func writeCheck(h http.Header) folder.Check {
	match, noneMatch := h.Get("If-Match"), h.Get("If-None-Match")
	if match == "" && noneMatch == "" {
		return nil
	}
	return func(current *folder.Info) error {
		switch {
		case match != "" && current == nil:
			return gofakes3.ErrNoSuchKey
		case match != "" && !matches(match, current.ETag),
			noneMatch != "" && current != nil && matches(noneMatch, current.ETag):
			return gofakes3.ErrPreconditionFailed
		}
		return nil
	}
}

// matches reports whether a list of ETags, or "*", holds etag.
func matches(list, etag string) bool {
	for tag := range strings.SplitSeq(list, ",") {
		tag = strings.Trim(strings.TrimPrefix(strings.TrimSpace(tag), "W/"), `"`)
		if tag == "*" || tag == etag {
			return true
		}
	}
	return false
}
