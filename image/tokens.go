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
	// defaultTokenLife is how long a token is good whose server does not say so:
	// the distribution specification's value.
	defaultTokenLife = 60 * time.Second
	// maxTokenLife bounds what a token server says.
	maxTokenLife = 24 * time.Hour
	// maxTokenAnswer bounds a token server's answer.
	maxTokenAnswer = 1 << 20
)

// tokenResponse gives a token server's answer the form that containerd's client
// reads. The client uses the token endpoint of OAuth (POST) where it has
// credentials, and tries the one that every server has (GET) after some refusals
// only; it does not read numbers that are strings or have a fraction, or times that
// are not RFC 3339, and keeps a token without a lifetime for ever.
func tokenResponse(req *http.Request, resp *http.Response) error {
	switch {
	case resp.StatusCode == http.StatusOK:
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer))
		resp.Body.Close()
		if err != nil {
			return fmt.Errorf("read the answer of the token server %s: %w", req.URL.Host, err)
		}
		text = tokenAnswer(text)
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

// tokenAnswer keeps of a token server's answer the tokens and the lifetime, in
// seconds. What is not JSON stays as it is.
func tokenAnswer(text []byte) []byte {
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
	// The client of the OAuth endpoint reads access_token alone.
	if kept["access_token"] == nil && kept["token"] != nil {
		kept["access_token"] = kept["token"]
	}
	normal, err := json.Marshal(kept)
	if err != nil {
		return text
	}
	return normal
}

// tokenLife reads expires_in: a number of seconds, or one in quotes.
func tokenLife(text json.RawMessage) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(text), `"`), 64)
	switch {
	case math.IsInf(seconds, 1): // ParseFloat's answer to what is out of its range, too
		return maxTokenLife
	case err != nil || !(seconds >= 1):
		return defaultTokenLife
	}
	return time.Duration(min(seconds, maxTokenLife.Seconds())) * time.Second
}
