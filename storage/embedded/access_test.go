package embedded_test

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/iterait/shepherd/internal/claims"
)

func TestNothingWithoutTheKeys(t *testing.T) {
	claims.Hold(t, "S1")
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "private")
	put(t, c, b, "x", []byte("secret"))

	for name, creds := range map[string]*credentials.Credentials{
		"AccessDenied":          credentials.NewStatic("", "", "", credentials.SignatureAnonymous),
		"SignatureDoesNotMatch": credentials.NewStaticV4(accessKey, "wrong", ""),
		"InvalidAccessKeyId":    credentials.NewStaticV4("somebody", secretKey, ""),
	} {
		other := &minio.Core{Client: s.client(func(o *minio.Options) { o.Creds, o.Region = creds, "us-east-1" })}
		_, _, _, err := other.GetObject(t.Context(), b, "x", minio.GetObjectOptions{})
		wantCode(t, err, 403, name)
		_, err = other.PutObject(t.Context(), b, "x", strings.NewReader("y"), 1, "", "", minio.PutObjectOptions{})
		wantCode(t, err, 403, name)
		_, err = other.ListBuckets(t.Context())
		wantCode(t, err, 403, name)
		_, err = other.NewMultipartUpload(t.Context(), b, "x", minio.PutObjectOptions{})
		wantCode(t, err, 403, name)
	}

	signed := func(change func(*http.Request)) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.addr+"/"+b+"/x?response-expires=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		r = signer.SignV4(*r, accessKey, secretKey, "", "us-east-1")
		change(r)
		return r
	}
	answer, text := s.send(signed(func(*http.Request) {}))
	wantAnswer(t, answer, text, 200, "secret")
	auth := func(old, new string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, new, 1))
		}
	}
	for name, change := range map[string]func(*http.Request){
		"another key":    func(r *http.Request) { r.URL.Path += "y" },
		"another method": func(r *http.Request) { r.Method = "DELETE" },
		"another query":  func(r *http.Request) { r.URL.RawQuery = "response-expires=2" },
		"no query":       func(r *http.Request) { r.URL.RawQuery = "" },
		"another host":   func(r *http.Request) { r.Host = "example.org" },
		"another time": func(r *http.Request) {
			r.Header.Set("X-Amz-Date", time.Now().UTC().Add(time.Minute).Format("20060102T150405Z"))
		},
		"no time":            func(r *http.Request) { r.Header.Del("X-Amz-Date") },
		"another payload":    func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", strings.Repeat("0", 64)) },
		"an unsigned header": func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/private/x") },
		"another region":     auth("us-east-1", "eu-west-1"),
		"another service":    auth("/s3/", "/ec2/"),
		"no host signed":     auth("SignedHeaders=host;", "SignedHeaders="),
		"no signature":       auth("Signature=", "Signature=&"),
		"half a signature":   func(r *http.Request) { r.Header.Set("Authorization", r.Header.Get("Authorization")[:100]) },
		"an empty signature": func(r *http.Request) {
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", a[:strings.LastIndex(a, "=")+1])
		},
		"an impossible date":  auth("/20", "/21x"),
		"signature version 2": func(r *http.Request) { r.Header.Set("Authorization", "AWS "+accessKey+":AAAA") },
		"basic":               func(r *http.Request) { r.SetBasicAuth(accessKey, secretKey) },
		"preflight": func(r *http.Request) {
			r.Method = "OPTIONS"
			r.Header.Del("Authorization")
			r.Header.Set("Origin", "http://example.org")
		},
	} {
		answer, text := s.send(signed(change))
		if answer.StatusCode != 403 && answer.StatusCode != 400 || bytes.Contains(text, []byte("secret<")) || answer.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %s %s %v", name, answer.Status, text, answer.Header)
		}
		if code := map[string]string{
			"another key": "SignatureDoesNotMatch", "no time": "AccessDenied", "another service": "AuthorizationHeaderMalformed",
			"an impossible date": "AuthorizationHeaderMalformed", "signature version 2": "SignatureDoesNotMatch", "basic": "InvalidArgument",
		}[name]; !bytes.Contains(text, []byte("<Code>"+code)) {
			t.Errorf("%s: %s, want code %s", name, text, code)
		}
	}
	if string(get(t, c, b, "x")) != "secret" {
		t.Error("the object was changed")
	}
}

func TestPresigned(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "presigned")
	key := "a b/ü+%/x"
	fetch := func(method string, u *url.URL, change func(*http.Request)) (*http.Response, []byte) {
		r, err := http.NewRequestWithContext(t.Context(), method, u.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if method == "PUT" {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("hello")), 5
		}
		if change != nil {
			change(r)
		}
		return s.send(r)
	}
	u, err := c.PresignedPutObject(t.Context(), b, key, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	answer, text := fetch("PUT", u, nil)
	wantAnswer(t, answer, text, 200, "")
	answer, text = fetch("GET", u, nil)
	wantAnswer(t, answer, text, 403, "SignatureDoesNotMatch")
	if u, err = c.PresignedGetObject(t.Context(), b, key, time.Minute, url.Values{"response-content-type": {"text/x"}}); err != nil {
		t.Fatal(err)
	}
	answer, text = fetch("GET", u, nil)
	wantAnswer(t, answer, text, 200, "hello")
	if answer.Header.Get("Content-Type") != "text/x" {
		t.Errorf("content type %q", answer.Header.Get("Content-Type"))
	}
	answer, text = fetch("GET", u, func(r *http.Request) { r.Header.Set("Range", "bytes=1-2") })
	wantAnswer(t, answer, text, 206, "el")
	for _, change := range [][2]string{{"X-Amz-Expires=60", "X-Amz-Expires=61"}, {"text", "texT"}, {"a%20b", "a%20c"}, {accessKey, "other"}} {
		other := *u
		other.RawQuery = strings.Replace(u.RawQuery, change[0], change[1], 1)
		other.RawPath = ""
		other.Path = strings.Replace(u.Path, "a b", strings.ReplaceAll(change[1], "a%20c", "a c"), map[bool]int{true: 1}[change[0] == "a%20b"])
		answer, text := fetch("GET", &other, nil)
		wantAnswer(t, answer, text, 403, "")
	}
	// Signed some time ago, or with an impossible expiry.
	for _, test := range []struct {
		ago     time.Duration
		expires int64
		status  int
	}{{0, 1000, 200}, {900 * time.Second, 1000, 200}, {1001 * time.Second, 1000, 403}, {-20 * time.Minute, 1000, 403}, {0, 0, 400}, {0, 604801, 400}} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.addr+"/"+b+"/"+(&url.URL{Path: key}).EscapedPath(), nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, text := s.send(presign(r, time.Now().Add(-test.ago), test.expires))
		wantAnswer(t, answer, text, test.status, "")
	}
	// A checksum in the URL is verified, unless it is that of no data, which is what a
	// signer has that does not know the data.
	for sum, status := range map[string]int{"NhCmhg==": 200, "NhCmhA==": 400, "AAAAAA==": 200} {
		u := &url.URL{Scheme: "http", Host: s.addr, Path: "/" + b + "/sum", RawQuery: url.Values{"x-amz-checksum-crc32": {sum}, "x-amz-sdk-checksum-algorithm": {"CRC32"}}.Encode()}
		r, err := http.NewRequestWithContext(t.Context(), "PUT", u.String(), strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		answer, text := s.send(presign(r, time.Now(), 60))
		wantAnswer(t, answer, text, status, "")
	}
}

// TestVersion2 signs requests as old clients do, in the header by Signature Version 2.
func TestVersion2(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(func(o *minio.Options) { o.Creds = credentials.NewStaticV2(accessKey, secretKey, "") })
	b := s.bucket(c, "version2")
	ctx := t.Context()
	key := "a b/ü+%/x"
	meta := map[string]string{"A": "1", "A-B": "2  or   3", "_a": "3"}
	if _, err := c.PutObject(ctx, b, key, strings.NewReader("hello"), 5, minio.PutObjectOptions{ContentType: "text/x", UserMetadata: meta, SendContentMd5: true}); err != nil {
		t.Fatal(err)
	}
	if string(get(t, c, b, key)) != "hello" {
		t.Error("the object is not what was stored")
	}
	large := random(1, 11<<20)
	if _, err := c.PutObject(ctx, b, "large", bytes.NewReader(large), int64(len(large)), minio.PutObjectOptions{PartSize: 5 << 20}); err != nil { // in parts
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, c, b, "large"), large) {
		t.Error("the large object is not what was stored")
	}
	var keys []string
	for o := range c.ListObjects(ctx, b, minio.ListObjectsOptions{Prefix: "a b/", Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	if len(keys) != 1 || keys[0] != key {
		t.Errorf("the listing has %q", keys)
	}
	if _, err := c.CopyObject(ctx, minio.CopyDestOptions{Bucket: b, Object: "copy"}, minio.CopySrcOptions{Bucket: b, Object: key}); err != nil {
		t.Error(err)
	}
	objects := make(chan minio.ObjectInfo, 2)
	objects <- minio.ObjectInfo{Key: "copy"}
	objects <- minio.ObjectInfo{Key: "large"}
	close(objects)
	for failed := range c.RemoveObjects(ctx, b, objects, minio.RemoveObjectsOptions{}) {
		t.Error(failed.Err)
	}

	key = "ü %/x" // url.URL writes + in a path otherwise than the signer
	put(t, c, b, key, []byte("hello"))
	for _, test := range []struct {
		name          string
		query         string
		before, after func(*http.Request) // the signature
		status        int
		code          string
	}{
		{"right", "", nil, nil, 200, ""},
		{"response header", "response-content-type=a%2Fb", nil, nil, 200, ""},
		{"virtual host", "", nil, nil, 200, ""},
		{"date with an offset", "", func(r *http.Request) { r.Header.Set("Date", time.Now().Format(time.RFC1123Z)) }, nil, 200, ""},
		{"date of UTC", "", func(r *http.Request) { r.Header.Set("Date", time.Now().UTC().Format(time.RFC1123)) }, nil, 200, ""},
		{"no date", "", nil, func(r *http.Request) { r.Header.Del("Date") }, 403, "AccessDenied"},
		{"old", "", func(r *http.Request) {
			r.Header.Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		}, nil, 403, "RequestTimeTooSkewed"},
		{"early", "", func(r *http.Request) {
			r.Header.Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		}, nil, 403, "RequestTimeTooSkewed"},
		{"another key", "", nil, func(r *http.Request) { r.URL.Path += "x" }, 403, "SignatureDoesNotMatch"},
		{"another method", "", nil, func(r *http.Request) { r.Method = "DELETE" }, 403, "SignatureDoesNotMatch"},
		{"another operation", "", nil, func(r *http.Request) { r.URL.RawQuery = "tagging" }, 403, "SignatureDoesNotMatch"},
		{"a parameter that says nothing", "x-id=GetObject", nil, nil, 200, ""},
		{"a parameter that is not signed", "annotation", nil, nil, 400, "InvalidRequest"},
		{"a header as a parameter", "x-amz-meta-a=b", nil, nil, 400, "InvalidRequest"},
		{"a header that was added", "", nil, func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/x/y") }, 403, "SignatureDoesNotMatch"},
		{"signed chunks", "", func(r *http.Request) {
			r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
		}, nil, 400, "InvalidRequest"},
		{"unknown key", "", nil, func(r *http.Request) {
			r.Header.Set("Authorization", "AWS some"+strings.TrimPrefix(r.Header.Get("Authorization"), "AWS "))
		}, 403, "InvalidAccessKeyId"},
		{"no signature", "", nil, func(r *http.Request) { r.Header.Set("Authorization", "AWS "+accessKey) }, 400, "InvalidArgument"},
		{"an empty signature", "", nil, func(r *http.Request) { r.Header.Set("Authorization", "AWS "+accessKey+":") }, 403, "SignatureDoesNotMatch"},
	} {
		r, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path, r.URL.RawQuery = "/"+b+"/"+key, test.query
		virtual := test.name == "virtual host"
		if virtual {
			r.URL.Path, r.Host = "/"+key, b+".localhost"
		}
		if test.before != nil {
			test.before(r)
		}
		r = signer.SignV2(*r, accessKey, secretKey, virtual)
		if test.after != nil {
			test.after(r)
		}
		answer, text := s.send(r)
		wantAnswer(t, answer, text, test.status, cmp.Or(test.code, "hello"))
	}
	for _, listing := range []string{
		"/?bucket-region=us-east-1&prefix=v&max-buckets=2", "/" + b + "?versions&key-marker=a&version-id-marker=null", "/" + b + "/?list-type=2&start-after=a",
	} {
		r, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr+listing, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, text := s.send(signer.SignV2(*r, accessKey, secretKey, false))
		wantAnswer(t, answer, text, 200, "")
	}
}

// TestVersion2AmzDate sends the date as one of S3's own headers: the place of Date is empty in
// what is signed then, whatever Date says.
func TestVersion2AmzDate(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "version2")
	put(t, c, b, "x", []byte("hello"))
	date := time.Now().UTC().Format(http.TimeFormat)
	sign := func(signedDate string) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.addr+"/"+b+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha1.New, []byte(secretKey))
		fmt.Fprintf(mac, "GET\n\n\n%s\nx-amz-date:%s\n/%s/x", signedDate, date, b)
		r.Header.Set("Date", "Thu, 01 Jan 1970 00:00:00 GMT")
		r.Header.Set("X-Amz-Date", date)
		r.Header.Set("Authorization", "AWS "+accessKey+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		return r
	}
	answer, text := s.send(sign(""))
	wantAnswer(t, answer, text, 200, "hello")
	answer, text = s.send(sign("Thu, 01 Jan 1970 00:00:00 GMT"))
	wantAnswer(t, answer, text, 403, "SignatureDoesNotMatch")
}

// TestPresignedByVersion2 sends what boto3 presigns unless it is told otherwise. (TestBoto3
// has boto3 do it.)
func TestPresignedByVersion2(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "version2")
	later := time.Now().Add(time.Minute)
	send := func(method, path, query string, at time.Time, text string, change func(*http.Request)) (*http.Response, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.addr+path+"?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		if method == "PUT" {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("hello")), 5
		}
		r = presignV2(r, at, text)
		if change != nil {
			change(r)
		}
		return s.send(r)
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	key := "/" + b + "/a%20b%2F%C3%BC+c"
	object := "%s\n\n\n%d\n" + strings.ReplaceAll(key, "%", "%%")

	answer, text := send("PUT", key, "content-type=text%2Fx&x-amz-meta-a-b=1&x-amz-meta-a=2", later,
		"%s\n\ntext/x\n%d\nx-amz-meta-a:2\nx-amz-meta-a-b:1\n"+strings.ReplaceAll(key, "%", "%%"), nil)
	wantAnswer(t, answer, text, 200, "")
	answer, text = send("GET", key, "", later, object, nil)
	wantAnswer(t, answer, text, 200, "hello")
	if h := answer.Header; h.Get("Content-Type") != "text/x" || h.Get("X-Amz-Meta-A") != "2" || h.Get("X-Amz-Meta-A-B") != "1" {
		t.Errorf("the headers that the URL gave became %v", h)
	}
	answer, text = send("GET", key, "response-content-type=a%2Fb&response-content-disposition=x%20%26%20y", later,
		object+"?response-content-disposition=x & y&response-content-type=a/b", header("Range", "bytes=1-2"))
	wantAnswer(t, answer, text, 206, "el")
	if h := answer.Header; h.Get("Content-Type") != "a/b" || h.Get("Content-Disposition") != "x & y" {
		t.Errorf("answered with the headers %v", h)
	}
	answer, text = send("GET", "/a%20b%2F%C3%BC+c", "", later, object, func(r *http.Request) { r.Host = b + ".localhost" })
	wantAnswer(t, answer, text, 200, "hello")

	for _, test := range []struct {
		name, method, path, query string
		at                        time.Time
		text                      string
		change                    func(*http.Request)
		status                    int
		code                      string
	}{
		{"expired", "GET", key, "", time.Now().Add(-2 * time.Second), object, nil, 403, "AccessDenied"},
		{"another key", "GET", key + "x", "", later, object, nil, 403, "SignatureDoesNotMatch"},
		{"another operation", "GET", key, "tagging", later, object, nil, 403, "SignatureDoesNotMatch"},
		{"another method", "DELETE", key, "", later, "GET" + strings.TrimPrefix(object, "%s") + "%.0s", nil, 403, "SignatureDoesNotMatch"},
		{"another time", "GET", key, "", later, object, func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "Expires=", "Expires=9", 1)
		}, 403, "SignatureDoesNotMatch"},
		{"no time", "GET", key, "", later, object, func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "Expires=", "Expires=x", 1)
		}, 403, "AccessDenied"},
		{"somebody else", "GET", key, "", later, object, func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, accessKey, "x", 1)
		}, 403, "InvalidAccessKeyId"},
		{"a type that is not signed", "PUT", key, "", later, object, header("Content-Type", "a/b"), 403, "SignatureDoesNotMatch"},
		{"a header that is not signed", "PUT", key, "", later, object, header("X-Amz-Meta-A", "b"), 403, "SignatureDoesNotMatch"},
		{"a copy", "PUT", key, "x-amz-copy-source=" + url.QueryEscape(key), later, object, nil, 403, "SignatureDoesNotMatch"},
		{"a parameter that is not signed", "GET", "/" + b, "prefix=x", later, "%s\n\n\n%d\n/" + b, nil, 400, "InvalidRequest"},
		{"a value that is two parameters", "GET", key, "response-expires=1%26tagging", later, object + "?response-expires=1&tagging", nil, 400, "InvalidRequest"},
		{"a line break", "PUT", key, "x-amz-meta-a=b%0Ax-amz-meta-c:d", later, "%s\n\n\n%d\nx-amz-meta-a:b\nx-amz-meta-c:d\n" + key, nil, 400, "InvalidArgument"},
		{"signed chunks", "PUT", key, "", later, object, header("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), 400, "InvalidRequest"},
	} {
		answer, text := send(test.method, test.path, test.query, test.at, test.text, test.change)
		if answer.StatusCode != test.status || !bytes.Contains(text, []byte("<Code>"+test.code+"</Code>")) {
			t.Errorf("%s: %s %s, want %d %s", test.name, answer.Status, text, test.status, test.code)
		}
	}
}

func TestForgedChunks(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "forged")
	data := random(1, 150_000)
	body := func() (*http.Request, []byte) {
		r, err := http.NewRequestWithContext(t.Context(), "PUT", "http://"+s.addr+"/"+b+"/x", bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		r.Trailer = http.Header{"X-Amz-Checksum-Crc32c": {crc32c(data)}}
		r = signer.StreamingSignV4(r, accessKey, secretKey, "", "us-east-1", int64(len(data)), time.Now().UTC(), hasher{sha256.New()})
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r, text
	}
	send := func(r *http.Request, text []byte) (*http.Response, []byte) {
		r.Body, r.ContentLength, r.Trailer = io.NopCloser(bytes.NewReader(text)), int64(len(text)), nil
		return s.send(r)
	}
	r, text := body()
	for _, at := range []int{0, 6, 30, 90, 2000, 65_600, 65_700, 100_000, len(text) - 250, len(text) - 150, len(text) - 60, len(text) - 10} {
		r, text := body()
		text[at] ^= 1
		answer, said := send(r, text)
		if answer.StatusCode != 403 && answer.StatusCode != 400 {
			t.Errorf("byte %d changed: %s %s", at, answer.Status, said)
		}
	}
	second := bytes.Index(text[100:], []byte("10000;chunk-signature=")) + 100
	for name, forged := range map[string][]byte{
		"a chunk left out": append(bytes.Clone(text[:second]), text[second+65_536+5+82:]...),
		"cut short":        text[:len(text)-40],
		"cut in half":      text[:len(text)/2],
		"without an end":   text[:bytes.LastIndex(text, []byte("\r\n0;chunk"))+2],
		"nothing":          {},
	} {
		r, _ := body()
		answer, said := send(r, forged)
		if answer.StatusCode < 400 || answer.StatusCode >= 500 {
			t.Errorf("%s: %s %s", name, answer.Status, said)
		}
	}
	if _, err := c.StatObject(t.Context(), b, "x", minio.StatObjectOptions{}); minio.ToErrorResponse(err).Code != "NoSuchKey" {
		t.Errorf("a forged body was stored: %v", err)
	}
	answer, said := send(r, text)
	wantAnswer(t, answer, said, 200, "")
	if !bytes.Equal(get(t, c, b, "x"), data) {
		t.Error("the right body came back changed")
	}
}

func TestDigestsAreVerified(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "digests")
	id, err := s.core().NewMultipartUpload(t.Context(), b, "parts", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("hello")
	for _, at := range []struct{ path, query string }{{"/" + b + "/x", ""}, {"/" + b + "/parts", "partNumber=1&uploadId=" + id}} {
		for header, test := range map[string]struct{ right, wrong, code string }{
			"Content-Md5":              {"XUFAKrxLKna5cZ2REBfFkg==", "XUFAKrxLKna5cZ2REBfFkA==", "BadDigest"},
			"X-Amz-Checksum-Crc32":     {"NhCmhg==", "NhCmhA==", "BadDigest"},
			"X-Amz-Checksum-Crc32c":    {"mnG7TA==", "mnG7TQ==", "BadDigest"},
			"X-Amz-Checksum-Crc64nvme": {"M3eFcAZSQlc=", "M3eFcAZSQlg=", "BadDigest"},
			"X-Amz-Checksum-Sha1":      {"qvTGHdzF6KLavt4PO0gs2a6pQ00=", "qvTGHdzF6KLavt4PO0gs2a6pQ0w=", "BadDigest"},
			"X-Amz-Checksum-Md5":       {"XUFAKrxLKna5cZ2REBfFkg==", "XUFAKrxLKna5cZ2REBfFkA==", "BadDigest"},
			"X-Amz-Checksum-Sha512":    {"m3HSJL1i83hdltRq0+o9czGb+8KJDKra4t/3JRlnPKcjI8PZm6XBHXx6zG4UuMXaDEZjR1wuXDre9G9zvN7AQw==", strings.Repeat("A", 86) + "==", "BadDigest"},
			"X-Amz-Checksum-Xxhash64":  {"JseCfYifbaM=", "JseCfYifbaA=", "BadDigest"},
			"X-Amz-Checksum-Xxhash3":   {"lVXoVVxi3P0=", "lVXoVVxi3PA=", "BadDigest"},
			"X-Amz-Checksum-Xxhash128": {"tenBrQcbPn/Hec+qXlI4GA==", "tenBrQcbPn/Hec+qXlI4GQ==", "BadDigest"},
			"X-Amz-Checksum-Sha256":    {"LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=", "MPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=", "BadDigest"},
		} {
			answer, text := s.do("PUT", at.path, at.query, http.Header{header: {test.right}}, data)
			wantAnswer(t, answer, text, 200, "")
			answer, text = s.do("PUT", at.path, at.query, http.Header{header: {test.wrong}}, data)
			wantAnswer(t, answer, text, 400, test.code)
			for _, nonsense := range []string{"nonsense", ""} {
				answer, text = s.do("PUT", at.path, at.query, http.Header{header: {nonsense}}, data)
				wantAnswer(t, answer, text, 400, "Invalid")
			}
			answer, text = s.do("PUT", at.path, at.query, http.Header{header: {test.right}, "X-Amz-Sdk-Checksum-Algorithm": {"SHA3"}}, data)
			if header != "Content-Md5" { // which is none of those that the SDK means
				wantAnswer(t, answer, text, 400, "x-amz-sdk-checksum-algorithm")
			}
			answer, text = s.do("PUT", at.path, at.query, http.Header{header: {test.wrong}}, nil)
			wantAnswer(t, answer, text, 400, test.code)
		}
		answer, text := s.do("PUT", at.path, at.query, http.Header{"X-Amz-Checksum-Md6": {"x"}}, data)
		wantAnswer(t, answer, text, 400, "InvalidRequest")
	}
	r, err := http.NewRequestWithContext(t.Context(), "PUT", "http://"+s.addr+"/"+b+"/y", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Amz-Content-Sha256", fmt.Sprintf("%064x", 1)) // of something else
	answer, text := s.send(signer.SignV4(*r, accessKey, secretKey, "", "us-east-1"))
	wantAnswer(t, answer, text, 400, "XAmzContentSHA256Mismatch")
	answer, text = s.do("GET", "/"+b+"/y", "", nil, nil)
	wantAnswer(t, answer, text, 404, "NoSuchKey")
}

// TestTrailers sends bodies whose trailer is wrong: each checksum in it is verified,
// or refused.
func TestTrailers(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "trailers")
	for name, test := range map[string]struct{ announced, body, code string }{
		"right":          {"x-amz-checksum-crc32", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n", ""},
		"wrong":          {"x-amz-checksum-crc32", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhA==\r\n\r\n", "BadDigest"},
		"not announced":  {"", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhA==\r\n\r\n", "MalformedTrailerError"},
		"another":        {"x-amz-checksum-crc32", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\nx-amz-checksum-sha1:AAAA\r\n\r\n", "MalformedTrailerError"},
		"not there":      {"x-amz-checksum-crc32", "5\r\nhello\r\n0\r\n\r\n", "MalformedTrailerError"},
		"no colon":       {"x-amz-checksum-crc32", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32\r\n\r\n", "MalformedTrailerError"},
		"no last chunk":  {"x-amz-checksum-crc32", "5\r\nhello\r\n", "IncompleteBody"},
		"too much":       {"x-amz-checksum-crc32", "6\r\nhello!\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n", "IncompleteBody"},
		"no chunks":      {"x-amz-checksum-crc32", "hello", "IncompleteBody"},
		"another by SDK": {"x-amz-checksum-crc32", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n", "InvalidRequest"},
	} {
		key := "/" + b + "/" + strings.ReplaceAll(name, " ", "-")
		r, err := http.NewRequestWithContext(t.Context(), "PUT", "http://"+s.addr+key, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Content-Sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
		r.Header.Set("X-Amz-Decoded-Content-Length", "5")
		if test.announced != "" {
			r.Header.Set("X-Amz-Trailer", test.announced)
		}
		if name == "another by SDK" {
			r.Header.Set("X-Amz-Sdk-Checksum-Algorithm", "SHA1")
		}
		answer, text := s.send(sign(r))
		stored := 404
		if test.code == "" {
			stored = 200
			wantAnswer(t, answer, text, 200, "")
		} else {
			wantAnswer(t, answer, text, 400, test.code)
		}
		if answer, _ := s.do("HEAD", key, "", nil, nil); answer.StatusCode != stored {
			t.Errorf("%s: afterwards the object answers %s", name, answer.Status)
		}
	}
}

// TestPromisesNotKeptAreRefused asks for what the server cannot do.
func TestPromisesNotKeptAreRefused(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "plain")
	for header, value := range map[string]string{
		"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Customer-Algorithm": "AES256", "X-Amz-Object-Lock-Mode": "GOVERNANCE",
	} {
		for _, at := range []struct{ method, path, query string }{{"PUT", "/" + b + "/x", ""}, {"POST", "/" + b + "/x", "uploads="}} {
			answer, text := s.do(at.method, at.path, at.query, http.Header{header: {value}}, nil)
			wantAnswer(t, answer, text, 501, "NotImplemented")
		}
	}
	answer, text := s.do("PUT", "/locked", "", http.Header{"X-Amz-Bucket-Object-Lock-Enabled": {"true"}}, nil)
	wantAnswer(t, answer, text, 501, "NotImplemented")
	answer, text = s.do("PUT", "/"+b, "versioning=", nil, []byte("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"))
	wantAnswer(t, answer, text, 501, "NotImplemented")
	answer, text = s.do("GET", "/"+b, "", nil, nil)
	wantAnswer(t, answer, text, 200, "<ListBucketResult")
}
