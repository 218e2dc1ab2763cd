package api

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// preferredWait is how long a client lets the answer take, as `Prefer: wait=N` says
// (RFC 7240), at most limit; 0 where it does not say. What is malformed is ignored,
// as the standard demands.
func preferredWait(r *http.Request, limit time.Duration) time.Duration {
	for _, header := range r.Header.Values("Prefer") {
		for preference := range strings.SplitSeq(header, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(preference), "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			value, _, _ = strings.Cut(value, ";") // parameters, of which there are none
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil {
				return 0
			}
			return min(time.Duration(seconds)*time.Second, limit) // the first counts
		}
	}
	return 0
}

// applied tells the client that its wait was respected.
func applied(h http.Header, wait time.Duration) {
	if wait > 0 {
		h.Set("Preference-Applied", "wait="+strconv.FormatInt(int64(wait/time.Second), 10))
	}
}
