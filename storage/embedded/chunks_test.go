package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// FuzzChunks gives the decoder any bytes: it ends, without a panic, with an
// error that is the client's fault or with no more data than came in.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"), int64(5), false)
	f.Add([]byte("5;chunk-signature=00\r\nhello\r\n0;chunk-signature=00\r\n\r\n"), int64(5), true)
	f.Add([]byte("7fffffffffffffff\r\n"), int64(1)<<40, false)
	f.Add([]byte("-5\r\n"), int64(5), false)
	f.Fuzz(func(t *testing.T, text []byte, size int64, signed bool) {
		r, err := http.NewRequest(http.MethodPut, "http://x/b/k", bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		s := &signature{payload: "STREAMING-UNSIGNED-PAYLOAD-TRAILER", key: []byte("key"), time: "t", scope: "s"}
		if signed {
			s.payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
		}
		r.Header.Set(decodedHeader, fmt.Sprint(size))
		r.Header.Set(trailerHeader, "x-amz-checksum-crc32")
		p, refused := newPayload(r, s, sumOfData, func(time.Duration) {})
		if refused != nil {
			return
		}
		defer p.chunks.release()
		data, err := io.ReadAll(p)
		if len(data) > len(text) || err == nil && int64(len(data)) != size {
			t.Fatalf("%d bytes of %d came out of %d: %v", len(data), size, len(text), err)
		}
		if client := new(apiError); err != nil && !errors.As(err, &client) {
			t.Fatalf("not the client's fault: %v", err)
		}
		if signed && err == nil {
			t.Fatal("a forged body passed")
		}
	})
}

// FuzzClaims gives any claim to a signature to the verifier: none may pass.
func FuzzClaims(f *testing.F) {
	now := time.Now().UTC()
	scope := now.Format("20060102") + "/us-east-1/s3/aws4_request"
	good := "AWS4-HMAC-SHA256 Credential=" + testAccessKey + "/" + scope + ", SignedHeaders=host;x-amz-date, Signature=" + strings.Repeat("0", 64)
	f.Add(good, now.Format(amzTime), "", unsignedPayload)
	f.Add("", "", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential="+testAccessKey+"/"+scope+"&X-Amz-Date="+now.Format(amzTime)+"&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=00", "")
	f.Add("AWS4-HMAC-SHA256 ,,,=", "x", "a=%&%zz;&&=", "y")
	f.Add("", "", "AWSAccessKeyId="+testAccessKey+"&Expires=99999999999&Signature=AAAA&x-amz-meta-a=b&content-type=c&uploadId=d%26acl", "")
	f.Add("AWS "+testAccessKey+":AAAA", now.Format(http.TimeFormat), "prefix=x&uploads&metadata=true", "")
	v := &verifier{accessKey: testAccessKey, secretKey: testSecretKey, now: time.Now}
	f.Fuzz(func(t *testing.T, auth, date, query, payload string) {
		r, err := http.NewRequest(http.MethodGet, "http://x/b/k", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.RawQuery = query
		r.Header = http.Header{"Authorization": {auth}, "X-Amz-Date": {date}, hashHeader: {payload}}
		parsed, ok := parseQuery(query)
		if !ok {
			return
		}
		if s, refused := v.verify(r, parsed, ""); refused == nil {
			t.Fatalf("passed: %+v", s)
		} else if refused.status < 400 || refused.status >= 500 {
			t.Fatalf("refused with %d", refused.status)
		}
	})
}

// TestPanicIsContained makes a request panic.
func TestPanicIsContained(t *testing.T) {
	f := newTestHandler(t)
	for _, op := range f.operations[target{http.MethodGet, onObject}] {
		op.do = func(*handler, *request) error { panic("a fault of ours") }
	}
	r := signedRequest(t, http.MethodGet, "http://127.0.0.1/bucket/key")
	a := &answer{header: http.Header{}}
	f.ServeHTTP(a, r)
	if a.status != http.StatusInternalServerError {
		t.Errorf("answered with %d", a.status)
	}
}
