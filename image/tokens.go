package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// defaultTokenLife is how long a token without a lifetime is valid, as the
	// distribution specification has it.
	defaultTokenLife = 60 * time.Second
	// maxTokenLife is the longest lifetime that a token server may set.
	maxTokenLife = 24 * time.Hour
	// maxTokenBody is how many bytes of a token server's response are read.
	maxTokenBody = 1 << 20
)

// tokenResponse changes a token server's response for containerd's client, which
//   - uses the OAuth endpoint (POST) if it has credentials, and falls back to the one
//     that every server has (GET) only for some status codes;
//   - does not parse lifetimes that are strings or have a fraction, or times that are not
//     RFC 3339;
//   - keeps a token without a lifetime forever.
func tokenResponse(req *http.Request, resp *http.Response) error {
	switch {
	case resp.StatusCode == http.StatusOK:
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody))
		resp.Body.Close()
		if err != nil {
			return fmt.Errorf("read the response of the token server %s: %w", req.URL.Host, err)
		}
		text = normalizeToken(text)
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	case req.Method == http.MethodPost:
		switch resp.StatusCode {
		case http.StatusForbidden, http.StatusNotAcceptable, http.StatusLengthRequired, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
			resp.StatusCode = http.StatusMethodNotAllowed
			resp.Status = strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode)
		}
	}
	return nil
}

// normalizeToken reduces a token server's response to the tokens and the lifetime in
// seconds. It returns text that is not JSON unchanged.
func normalizeToken(text []byte) []byte {
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil {
		return text
	}
	kept := map[string]any{"expires_in": int(tokenLife(fields["expires_in"]) / time.Second)}
	for _, name := range []string{"token", "access_token", "refresh_token"} {
		var token string
		if json.Unmarshal(fields[name], &token) == nil && token != "" {
			kept[name] = token
		}
	}
	// For the OAuth endpoint the client reads access_token only.
	if kept["access_token"] == nil && kept["token"] != nil {
		kept["access_token"] = kept["token"]
	}
	normal, err := json.Marshal(kept)
	if err != nil {
		return text
	}
	return normal
}

// tokenLife parses expires_in: a number of seconds, or a string with one.
func tokenLife(text json.RawMessage) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(text), `"`), 64)
	switch {
	case math.IsInf(seconds, 1): // ParseFloat returns it for a number out of range, too
		return maxTokenLife
	case err != nil || !(seconds >= 1):
		return defaultTokenLife
	}
	return time.Duration(min(seconds, maxTokenLife.Seconds())) * time.Second
}
