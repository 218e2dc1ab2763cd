package embedded

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AWS Signature Version 2, which old clients use in the header, and which boto3 uses in
// presigned URLs unless it is told otherwise:
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html
const (
	v2Scheme    = "AWS " // of the Authorization header, before ACCESS-KEY:SIGNATURE
	v2Key       = "AWSAccessKeyId"
	v2Signature = "Signature"
	v2Expires   = "Expires"
	v2MD5       = "content-md5"
	v2Type      = "content-type"
)

// v2SubResources are the query parameters that Version 2 signs.
var v2SubResources = []string{
	"accelerate", "acl", "analytics", "cors", "delete", "encryption", "inventory", "legal-hold", "lifecycle", "location",
	"logging", "metrics", "notification", "object-lock", "partNumber", "policy", "replication", "requestPayment",
	"response-cache-control", "response-content-disposition", "response-content-encoding", "response-content-language",
	"response-content-type", "response-expires", "restore", "retention", "select", "select-type", "tagging", "torrent",
	"uploadId", "uploads", "versionId", "versioning", "versions", "website",
}

// v2Unsigned are the query parameters that Version 2 does not sign and that only choose what a
// listing shows, or nothing (x-id). A request with any other unsigned parameter is refused: what
// it would do is not what was signed.
var v2Unsigned = []string{
	"bucket-region", "continuation-token", "delimiter", "encoding-type", "fetch-owner", "key-marker", "list-type", "marker",
	"max-buckets", "max-keys", "max-parts", "max-uploads", "metadata", "part-number-marker", "prefix", "start-after",
	"upload-id-marker", "version-id-marker", "x-id",
}

// v2Params are the signature's own, and those that stand for headers which are signed.
// (S3's own headers may be parameters, too.)
var v2Params = []string{v2Key, v2Signature, v2Expires, v2MD5, v2Type}

// signsV2 reports whether Version 2 signs a query parameter, "name" or "name=value".
func signsV2(parameter string) bool {
	name, _, _ := strings.Cut(parameter, "=")
	return slices.Contains(v2SubResources, name)
}

// isV2 reports whether a request's URL is presigned by Version 2.
func isV2(r *http.Request, query params) bool {
	return r.Header.Get("Authorization") == "" && query.has(v2Signature) && !query.has("X-Amz-Signature") && !query.has("X-Amz-Algorithm")
}

// verifyV2 returns an error unless a URL is presigned with the keys. bucket is the one
// that the host names, or "". Query parameters that Version 2 does not sign are refused:
// another could have added them. What the URL says in place of headers becomes headers.
func (v *verifier) verifyV2(r *http.Request, query params, bucket string) (*signature, *apiError) {
	if subtle.ConstantTimeCompare([]byte(query.get(v2Key)), []byte(v.accessKey)) != 1 {
		return nil, errUnknownKey()
	}
	expires, err := strconv.ParseInt(query.get(v2Expires), 10, 64)
	if err != nil {
		return nil, newError(http.StatusForbidden, codeAccessDenied, "Invalid date (should be seconds since epoch): %s", query.get(v2Expires))
	}
	if v.now().Unix() > expires {
		return nil, newError(http.StatusForbidden, codeAccessDenied, "Request has expired")
	}
	var signed params
	for _, p := range query {
		name := strings.ToLower(p[0])
		switch {
		case p[0] == v2Key || p[0] == v2Signature || p[0] == v2Expires:
		case strings.HasPrefix(name, "x-amz-") || p[0] == v2MD5 || p[0] == v2Type:
			if strings.ContainsAny(name, ": \t\r\n") || strings.ContainsAny(p[1], "\r\n") {
				return nil, badRequest(codeInvalidArgument, "The query parameter %q is no header.", p[0])
			}
			if header := http.CanonicalHeaderKey(name); r.Header.Get(header) == "" {
				r.Header.Set(header, p[1])
			}
		default:
			signed = append(signed, p)
		}
	}
	s := &signature{presigned: true, params: v2Params}
	return s, v.checkV2(r, s, signed, bucket, query.get(v2Expires), query.get(v2Signature))
}

// verifyV2Header returns an error unless the Authorization header signs a request with the
// keys. bucket is the one that the host names, or "".
func (v *verifier) verifyV2Header(r *http.Request, query params, bucket string) (*signature, *apiError) {
	claim := strings.TrimPrefix(r.Header.Get("Authorization"), v2Scheme)
	end := strings.LastIndexByte(claim, ':')
	if end < 0 {
		return nil, badRequest(codeInvalidArgument, "AWS authorization header is invalid.  Expected AwsAccessKeyId:signature")
	}
	if subtle.ConstantTimeCompare([]byte(claim[:end]), []byte(v.accessKey)) != 1 {
		return nil, errUnknownKey()
	}
	date := r.Header.Get("Date")
	sent := date
	if own := r.Header.Get("X-Amz-Date"); own != "" {
		date, sent = "", own // it is signed with S3's other headers
	}
	at, err := parseV2Date(sent)
	if err != nil {
		return nil, errNoDate()
	}
	if e := v.checkSkew(at); e != nil {
		return nil, e
	}
	signed := slices.DeleteFunc(slices.Clone(query), func(p [2]string) bool { return slices.Contains(v2Unsigned, p[0]) })
	s := &signature{}
	return s, v.checkV2(r, s, signed, bucket, date, claim[end+1:])
}

// v2Dates are the forms of the time of a request that is signed by Version 2, beside those of
// HTTP: UTC by its name, as rclone has it, or with an offset, as others do, and S3's own.
var v2Dates = []string{"Mon, 02 Jan 2006 15:04:05 UTC", time.RFC1123Z, amzTime}

// parseV2Date reads the time of a request that is signed by Version 2.
func parseV2Date(text string) (time.Time, error) {
	at, err := http.ParseTime(text)
	for _, form := range v2Dates {
		if err == nil {
			break
		}
		at, err = time.Parse(form, text)
	}
	return at, err
}

// checkV2 returns an error unless value is the signature of the request with the query
// parameters and the date, and sets what s says of its body.
func (v *verifier) checkV2(r *http.Request, s *signature, query params, bucket, date, value string) *apiError {
	signed, e := v2Signed(query)
	if e != nil {
		return e
	}
	s.payload = r.Header.Get(hashHeader)
	switch {
	case s.payload == "":
		s.payload = unsignedPayload
	case strings.HasPrefix(s.payload, "STREAMING-AWS4-"):
		return badRequest(codeInvalidRequest, "Chunks are signed together with a request by %s.", algorithm)
	}
	for _, path := range v2Paths(r, bucket) {
		text := strings.Join([]string{
			r.Method, r.Header.Get("Content-Md5"), r.Header.Get("Content-Type"), date, v2AmzHeaders(r.Header) + path + signed,
		}, "\n")
		if e = compareSignatures(v.signV2(text), value); e == nil {
			return nil
		}
	}
	return e
}

// signV2 signs a text as Version 2 does.
func (v *verifier) signV2(text string) string {
	mac := hmac.New(sha1.New, []byte(v.secretKey))
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// v2Paths are the paths that may have been signed: the one that was sent, with the bucket that
// the host names. boto3 signs that of a bucket with a slash at its end, and sends it without.
func v2Paths(r *http.Request, bucket string) []string {
	path := r.URL.EscapedPath()
	if bucket != "" {
		path = "/" + bucket + path
	}
	if strings.LastIndexByte(path, '/') == 0 && path != "/" {
		return []string{path, path + "/"}
	}
	return []string{path}
}

// v2Signed are the parameters as they are signed: values decoded, sorted by name.
func v2Signed(query params) (string, *apiError) {
	var signed []string
	for _, p := range query {
		if !signsV2(p[0]) {
			return "", badRequest(codeInvalidRequest, "Signature Version 2 does not sign the query parameter %s. Please use %s.", p[0], algorithm)
		}
		text := p[0]
		if p[1] != "" {
			text += "=" + p[1]
		}
		if _, more, _ := strings.Cut(p[1], "&"); slices.ContainsFunc(strings.Split(more, "&"), signsV2) {
			// The text that is signed does not tell this from two parameters.
			return "", badRequest(codeInvalidRequest, "Signature Version 2 cannot sign this value of %s. Please use %s.", p[0], algorithm)
		}
		signed = append(signed, text)
	}
	slices.SortStableFunc(signed, func(a, b string) int {
		nameA, _, _ := strings.Cut(a, "=")
		nameB, _, _ := strings.Cut(b, "=")
		return strings.Compare(nameA, nameB)
	})
	if len(signed) == 0 {
		return "", nil
	}
	return "?" + strings.Join(signed, "&"), nil
}

// v2AmzHeaders are S3's own headers as they are signed, all of them. Spaces within a value stay
// as they are, other than for Version 4.
func v2AmzHeaders(h http.Header) string {
	var lines []string
	for name, values := range h {
		if strings.HasPrefix(name, "X-Amz-") {
			lines = append(lines, strings.ToLower(name)+":"+strings.TrimSpace(strings.Join(values, ","))+"\n")
		}
	}
	slices.SortFunc(lines, func(a, b string) int {
		nameA, _, _ := strings.Cut(a, ":")
		nameB, _, _ := strings.Cut(b, ":")
		return strings.Compare(nameA, nameB)
	})
	return strings.Join(lines, "")
}
