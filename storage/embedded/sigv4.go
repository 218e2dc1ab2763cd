package embedded

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// AWS Signature Version 4, as described at
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
const (
	algorithm    = "AWS4-HMAC-SHA256"
	amzTime      = "20060102T150405Z"
	scopeDate    = "20060102"
	maxSkew      = 15 * time.Minute
	maxPresigned = 7 * 24 * time.Hour

	hashHeader      = "X-Amz-Content-Sha256"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	emptySHA256     = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// verifier checks signatures made with one pair of keys.
type verifier struct {
	accessKey string
	secretKey string
	now       func() time.Time
	last      atomic.Pointer[signingKey]
}

// signingKey is the key that the secret gives for a day and region. Clients ask
// with the same one all day.
type signingKey struct {
	scope string
	key   []byte
}

// signature is what a valid request was signed with. The chunks of its body
// may go on from there.
type signature struct {
	key     []byte
	time    string
	scope   string
	value   string
	payload string // what the signature says of the body: a hash, or how it is sent

	presigned bool     // it is in the URL
	params    []string // the query parameters that belong to it
}

// v4Params belong to the signature of a presigned URL.
var v4Params = []string{
	"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature", hashHeader,
}

// claim is what a request says about its signature.
type claim struct {
	accessKey string
	scope     string // date/region/service/aws4_request
	headers   []string
	value     string
	time      string
	presigned bool
}

// verify returns an error unless the request is signed with the keys. query is
// that of its URL, and bucket the one that its host names, or "".
func (v *verifier) verify(r *http.Request, query params, bucket string) (*signature, *apiError) {
	if isV2(r, query) {
		return v.verifyV2(r, query, bucket)
	}
	if strings.HasPrefix(r.Header.Get("Authorization"), v2Scheme) {
		return v.verifyV2Header(r, query, bucket)
	}
	c, f := readClaim(r, query)
	if f != nil {
		return nil, f
	}
	if subtle.ConstantTimeCompare([]byte(c.accessKey), []byte(v.accessKey)) != 1 {
		return nil, errUnknownKey()
	}
	if f := v.checkTime(c, query); f != nil {
		return nil, f
	}
	headers, f := canonicalHeaders(r, c.headers)
	if f != nil {
		return nil, f
	}
	payload := r.Header.Get(hashHeader)
	if payload == "" {
		if !c.presigned {
			return nil, badRequest(codeInvalidRequest, "Missing required header for this request: x-amz-content-sha256")
		}
		payload = unsignedPayload
		if hash := query.get(hashHeader); hash != "" {
			payload = hash
		}
	}
	canonical := sha256.Sum256([]byte(strings.Join([]string{
		r.Method,
		escapePath(r.URL.Path),
		query.canonical(),
		headers,
		strings.Join(c.headers, ";"),
		payload,
	}, "\n")))
	key := v.signingKey(c.scope)
	s := &signature{key: key, time: c.time, scope: c.scope, payload: payload, presigned: c.presigned, params: v4Params}
	s.value = s.sign(algorithm, hex.EncodeToString(canonical[:]))
	if e := compareSignatures(s.value, c.value); e != nil {
		return nil, e
	}
	return s, nil
}

func compareSignatures(want, got string) *apiError {
	if subtle.ConstantTimeCompare([]byte(want), []byte(got)) != 1 {
		return newError(http.StatusForbidden, codeSignatureMismatch, "The request signature we calculated does not match the signature you provided. Check your key and signing method.")
	}
	return nil
}

func errUnknownKey() *apiError {
	return newError(http.StatusForbidden, codeInvalidAccessKey, "The AWS Access Key Id you provided does not exist in our records.")
}

// sign signs the lines that follow time and scope.
func (s *signature) sign(kind string, lines ...string) string {
	text := strings.Join(append([]string{kind, s.time, s.scope}, lines...), "\n")
	return hex.EncodeToString(mac(s.key, text))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func (v *verifier) signingKey(scope string) []byte {
	if k := v.last.Load(); k != nil && k.scope == scope {
		return k.key
	}
	key := []byte("AWS4" + v.secretKey)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	v.last.Store(&signingKey{scope: scope, key: key})
	return key
}

// readClaim reads the Authorization header or a presigned URL's parameters.
func readClaim(r *http.Request, query params) (c claim, f *apiError) {
	header := r.Header.Get("Authorization")
	var credential, signed string
	switch {
	case header != "":
		code := codeBadAuthorization
		rest, ok := strings.CutPrefix(header, algorithm)
		if !ok {
			return c, badRequest(codeInvalidArgument, "Unsupported Authorization Type")
		}
		for field := range strings.SplitSeq(rest, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
			switch name {
			case "Credential":
				credential = value
			case "SignedHeaders":
				signed = value
			case "Signature":
				c.value = value
			}
		}
		if f := c.fill(code, credential, signed); f != nil {
			return c, f
		}
		if c.time = r.Header.Get("X-Amz-Date"); c.time == "" {
			if t, err := http.ParseTime(r.Header.Get("Date")); err == nil {
				c.time = t.UTC().Format(amzTime)
			}
		}
	case query.get("X-Amz-Signature") != "" || query.get("X-Amz-Algorithm") != "":
		if query.get("X-Amz-Algorithm") != algorithm {
			return c, badRequest(codeBadQueryAuth, "X-Amz-Algorithm must be %s.", algorithm)
		}
		c.presigned, c.value, c.time = true, query.get("X-Amz-Signature"), query.get("X-Amz-Date")
		if f := c.fill(codeBadQueryAuth, query.get("X-Amz-Credential"), query.get("X-Amz-SignedHeaders")); f != nil {
			return c, f
		}
	default:
		return c, newError(http.StatusForbidden, codeAccessDenied, "Access denied: the request is not signed.")
	}
	return c, nil
}

func (c *claim) fill(code string, credential, signed string) *apiError {
	parts := strings.Split(credential, "/")
	n := len(parts) - 4 // an access key may hold slashes
	if n < 1 || c.value == "" || signed == "" {
		return badRequest(code, "The request needs Credential (ACCESS-KEY/YYYYMMDD/REGION/s3/aws4_request), SignedHeaders and Signature.")
	}
	if parts[n+2] != "s3" || parts[n+3] != "aws4_request" {
		return badRequest(code, "The credential's scope must end in s3/aws4_request.")
	}
	if _, err := time.Parse(scopeDate, parts[n]); err != nil {
		return badRequest(code, "The date of the credential's scope, %q, is not of the form YYYYMMDD.", parts[n])
	}
	c.accessKey = strings.Join(parts[:n], "/")
	c.scope = strings.Join(parts[n:], "/")
	c.headers = strings.Split(signed, ";")
	return nil
}

// checkTime returns an error for a signature that is not valid now.
func (v *verifier) checkTime(c claim, query params) *apiError {
	at, err := time.Parse(amzTime, c.time)
	switch {
	case err != nil && c.presigned:
		return badRequest(codeBadQueryAuth, "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
	case err != nil:
		return errNoDate()
	case !strings.HasPrefix(c.scope, c.time[:8]+"/"):
		code := codeBadAuthorization
		if c.presigned {
			code = codeBadQueryAuth
		}
		return badRequest(code, "The date of the credential's scope is not that of the request.")
	}
	if !c.presigned {
		return v.checkSkew(at)
	}
	now := v.now()
	seconds, err := strconv.ParseInt(query.get("X-Amz-Expires"), 10, 64)
	if err != nil || seconds < 1 || seconds > int64(maxPresigned/time.Second) {
		return badRequest(codeBadQueryAuth, "X-Amz-Expires must be less than a week (in seconds): a number from 1 to %d.", int64(maxPresigned/time.Second))
	}
	if at.Sub(now) > maxSkew {
		return newError(http.StatusForbidden, codeAccessDenied, "Request is not yet valid")
	}
	if now.After(at.Add(time.Duration(seconds) * time.Second)) {
		return newError(http.StatusForbidden, codeAccessDenied, "Request has expired")
	}
	return nil
}

// checkSkew returns an error for a request that was not sent about now.
func (v *verifier) checkSkew(sent time.Time) *apiError {
	if v.now().Sub(sent).Abs() > maxSkew {
		return newError(http.StatusForbidden, codeTimeSkewed, "The difference between the request time and the server's time is too large: the clocks are more than %s apart.", maxSkew)
	}
	return nil
}

func errNoDate() *apiError {
	return newError(http.StatusForbidden, codeAccessDenied, "AWS authentication requires a valid Date or x-amz-date header")
}

// canonicalHeaders returns the signed headers as they are signed. The host must
// be among them, and so must every x-amz- header: one that was added later
// could make another request of it.
func canonicalHeaders(r *http.Request, signed []string) (string, *apiError) {
	for name := range r.Header {
		if len(name) > 6 && name[:6] == "X-Amz-" && !slices.Contains(signed, strings.ToLower(name)) {
			return "", newError(http.StatusForbidden, codeAccessDenied, "There were headers present in the request which were not signed: %s", strings.ToLower(name))
		}
	}
	if !slices.Contains(signed, "host") {
		return "", newError(http.StatusForbidden, codeAccessDenied, "There were headers present in the request which were not signed: host")
	}
	var b strings.Builder
	for _, name := range signed {
		b.WriteString(name)
		b.WriteByte(':')
		values := r.Header.Values(name)
		switch {
		case name == "host":
			values = []string{r.Host}
		case name == "content-length" && len(values) == 0:
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		case name == "transfer-encoding" && len(values) == 0:
			values = r.TransferEncoding
		case name == "expect" && len(values) == 0:
			values = []string{"100-continue"}
		}
		for i, value := range values {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(trimSpaces(value))
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// trimSpaces removes spaces at both ends and makes one of several.
func trimSpaces(s string) string {
	s = strings.TrimSpace(s)
	if !strings.Contains(s, "  ") {
		return s
	}
	return strings.Join(strings.FieldsFunc(s, func(c rune) bool { return c == ' ' }), " ")
}

// params are a query's parameters, decoded.
type params [][2]string

func parseQuery(raw string) (params, bool) {
	var p params
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		if err1 != nil || err2 != nil {
			return nil, false
		}
		p = append(p, [2]string{name, value})
	}
	return p, true
}

func (p params) get(name string) string {
	for _, pair := range p {
		if pair[0] == name {
			return pair[1]
		}
	}
	return ""
}

// has reports whether the query has a parameter.
func (p params) has(name string) bool {
	return slices.ContainsFunc(p, func(pair [2]string) bool { return pair[0] == name })
}

// without leaves out the parameters of these names.
func (p params) without(names []string) params {
	return slices.DeleteFunc(slices.Clone(p), func(pair [2]string) bool { return slices.Contains(names, pair[0]) })
}

// canonical is the query as it is signed: escaped again and sorted.
func (p params) canonical() string {
	escaped := make(params, 0, len(p))
	for _, pair := range p {
		if pair[0] != "X-Amz-Signature" {
			escaped = append(escaped, [2]string{escape(pair[0], false), escape(pair[1], false)})
		}
	}
	slices.SortFunc(escaped, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	var b strings.Builder
	for i, pair := range escaped {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(pair[0] + "=" + pair[1])
	}
	return b.String()
}

func escapePath(path string) string { return escape(path, true) }

// escape writes all but letters, digits and "-._~" (and, in a path, "/") as %XX.
func escape(s string, path bool) string {
	plain := func(c byte) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '-' || c == '.' || c == '_' || c == '~' || c == '/' && path
	}
	special := 0
	for i := range len(s) {
		if !plain(s[i]) {
			special++
		}
	}
	if special == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*special)
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return string(b)
}
