package embedded

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Presigned URLs of AWS Signature Version 2, which boto3 makes unless it is told
// otherwise: https://docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html#RESTAuthenticationQueryStringAuth
const (
	v2Key       = "AWSAccessKeyId"
	v2Signature = "Signature"
	v2Expires   = "Expires"
	v2MD5       = "content-md5"
	v2Type      = "content-type"
)

// v2SubResources are the query parameters that Version 2 signs.
var v2SubResources = []string{
	"acl", "cors", "delete", "lifecycle", "location", "logging", "notification", "partNumber", "policy",
	"requestPayment", "response-cache-control", "response-content-disposition", "response-content-encoding",
	"response-content-language", "response-content-type", "response-expires", "tagging", "uploadId", "uploads",
	"versionId", "versioning", "versions", "website",
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
	resource, e := v2Resource(r, query, bucket)
	if e != nil {
		return nil, e
	}
	payload := r.Header.Get(hashHeader)
	switch {
	case payload == "":
		payload = unsignedPayload
	case strings.HasPrefix(payload, "STREAMING-AWS4-"):
		return nil, badRequest(codeInvalidRequest, "Chunks are signed together with a request by %s.", algorithm)
	}
	text := strings.Join([]string{
		r.Method, r.Header.Get("Content-Md5"), r.Header.Get("Content-Type"), query.get(v2Expires), v2AmzHeaders(r.Header) + resource,
	}, "\n")
	if e := compareSignatures(v.signV2(text), query.get(v2Signature)); e != nil {
		return nil, e
	}
	return &signature{payload: payload, presigned: true, params: v2Params}, nil
}

// signV2 signs a text as Version 2 does.
func (v *verifier) signV2(text string) string {
	mac := hmac.New(sha1.New, []byte(v.secretKey))
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// v2Resource is the path and the parameters as they are signed: the path as it was sent,
// values decoded, sorted by name.
func v2Resource(r *http.Request, query params, bucket string) (string, *apiError) {
	var signed []string
	for _, p := range query {
		name := strings.ToLower(p[0])
		switch {
		case p[0] == v2Key || p[0] == v2Signature || p[0] == v2Expires:
		case strings.HasPrefix(name, "x-amz-") || p[0] == v2MD5 || p[0] == v2Type:
			if strings.ContainsAny(name, ": \t\r\n") || strings.ContainsAny(p[1], "\r\n") {
				return "", badRequest(codeInvalidArgument, "The query parameter %q is no header.", p[0])
			}
			if header := http.CanonicalHeaderKey(name); r.Header.Get(header) == "" {
				r.Header.Set(header, p[1])
			}
		case signsV2(p[0]):
			text := p[0]
			if p[1] != "" {
				text += "=" + p[1]
			}
			if _, more, _ := strings.Cut(p[1], "&"); slices.ContainsFunc(strings.Split(more, "&"), signsV2) {
				// The text that is signed does not tell this from two parameters.
				return "", badRequest(codeInvalidRequest, "Signature Version 2 cannot sign this value of %s. Please use %s.", p[0], algorithm)
			}
			signed = append(signed, text)
		default:
			return "", badRequest(codeInvalidRequest, "Signature Version 2 does not sign the query parameter %s. Please use %s.", p[0], algorithm)
		}
	}
	slices.SortStableFunc(signed, func(a, b string) int {
		nameA, _, _ := strings.Cut(a, "=")
		nameB, _, _ := strings.Cut(b, "=")
		return strings.Compare(nameA, nameB)
	})
	resource := r.URL.EscapedPath()
	if bucket != "" {
		resource = "/" + bucket + resource
	}
	if len(signed) > 0 {
		resource += "?" + strings.Join(signed, "&")
	}
	return resource, nil
}

// v2AmzHeaders are S3's own headers as they are signed, all of them.
func v2AmzHeaders(h http.Header) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if strings.HasPrefix(name, "X-Amz-") {
			b.WriteString(strings.ToLower(name) + ":" + trimSpaces(strings.Join(h[name], ",")) + "\n")
		}
	}
	return b.String()
}
