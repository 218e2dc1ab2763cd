package embedded_test

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// presignV2 signs a URL by Signature Version 2, whose text is given without the method and
// the time.
func presignV2(r *http.Request, expires time.Time, text string) *http.Request {
	mac := hmac.New(sha1.New, []byte(secretKey))
	fmt.Fprintf(mac, text, r.Method, expires.Unix())
	if r.URL.RawQuery != "" {
		r.URL.RawQuery += "&"
	}
	r.URL.RawQuery += url.Values{
		"AWSAccessKeyId": {accessKey}, "Expires": {fmt.Sprint(expires.Unix())}, "Signature": {base64.StdEncoding.EncodeToString(mac.Sum(nil))},
	}.Encode()
	return r
}

// presign signs a URL as of any time, which clients do not.
func presign(r *http.Request, at time.Time, expires int64) *http.Request {
	date := at.UTC().Format("20060102T150405Z")
	scope := date[:8] + "/us-east-1/s3/aws4_request"
	query := r.URL.Query()
	for name, value := range map[string]string{
		"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": accessKey + "/" + scope, "X-Amz-Date": date,
		"X-Amz-Expires": fmt.Sprint(expires), "X-Amz-SignedHeaders": "host",
	} {
		query.Set(name, value)
	}
	encoded := strings.ReplaceAll(query.Encode(), "+", "%20")
	canonical := strings.Join([]string{r.Method, strings.ReplaceAll(r.URL.EscapedPath(), "+", "%2B"), encoded, "host:" + r.URL.Host + "\n", "host", "UNSIGNED-PAYLOAD"}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	key := []byte("AWS4" + secretKey)
	for _, text := range append(strings.Split(scope, "/"), strings.Join([]string{"AWS4-HMAC-SHA256", date, scope, hex.EncodeToString(sum[:])}, "\n")) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		key = mac.Sum(nil)
	}
	r.URL.RawQuery = encoded + "&X-Amz-Signature=" + hex.EncodeToString(key)
	return r
}

func crc32c(b []byte) string {
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return base64.StdEncoding.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// hasher is what minio-go's signer takes.
type hasher struct{ hash.Hash }

func (hasher) Close() {}
