package embedded

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// recorded is a ResponseWriter that keeps the answer.
type recorded struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *recorded) Header() http.Header { return a.header }
func (a *recorded) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}
func (a *recorded) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

// fuzzed is a handler whose errors of its own fail the test.
type fuzzed struct {
	*handler
	t      testing.TB
	logs   bytes.Buffer
	dir    string
	made   string // what is in dir before the first request
	upload string // the id of an upload of bucket/key
}

func newFuzzed(t testing.TB, dir string) *fuzzed {
	t.Helper()
	store, err := folder.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f := &fuzzed{t: t, dir: dir}
	f.handler = newHandler(store, Config{AccessKey: testAccessKey, SecretKey: testSecretKey})
	f.log = slog.New(slog.NewTextHandler(&f.logs, &slog.HandlerOptions{Level: slog.LevelError}))
	return f
}

func (f *fuzzed) close() {
	f.t.Helper()
	if err := f.store.Close(); err != nil {
		f.t.Fatal(err)
	}
}

// prepared makes a directory with a bucket "bucket" that has an object "key" and an
// upload, and a bucket whose name no input knows. The function it returns serves a copy
// of it, which the calls share until one changes it: to make these, or a copy for each,
// would be nearly all that a call does.
func prepared(f *testing.F) func(t *testing.T) *fuzzed {
	f.Helper()
	s := newFuzzed(f, f.TempDir())
	for _, bucket := range []string{"bucket", unknownBucket} {
		if err := s.store.CreateBucket(bucket); err != nil {
			f.Fatal(err)
		}
		s.put(bucket, "key", "hello")
	}
	u, err := s.store.CreateUpload(folder.Upload{Bucket: "bucket", Key: "key"})
	if err != nil {
		f.Fatal(err)
	}
	s.close()
	made, copies := os.DirFS(s.dir), f.TempDir()
	var last *fuzzed
	f.Cleanup(func() {
		if last != nil {
			last.store.Close()
		}
	})
	return func(t *testing.T) *fuzzed {
		t.Helper()
		if last != nil && last.logs.Len() == 0 && last.content() == last.made {
			last.t = t
			return last
		}
		if last != nil {
			last.store.Close()
			if err := os.RemoveAll(last.dir); err != nil {
				t.Fatal(err)
			}
			last = nil
		}
		dir, err := os.MkdirTemp(copies, "")
		if err == nil {
			err = os.CopyFS(dir, made)
		}
		if err != nil {
			t.Fatal(err)
		}
		last = newFuzzed(t, dir)
		last.made, last.upload = last.content(), u.ID
		return last
	}
}

// content is the names in the store's directory, and which file has each.
func (f *fuzzed) content() string {
	f.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(f.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		b.WriteString(path)
		if !e.IsDir() {
			info, err := e.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %d %d", info.Sys().(*syscall.Stat_t).Ino, info.Size(), info.ModTime().UnixNano())
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return b.String()
}

const unknownBucket = "not-in-any-input-7f3a91c2"

func (f *fuzzed) put(bucket, key, text string) {
	f.t.Helper()
	if a := f.do(http.MethodPut, "127.0.0.1", "/"+bucket+"/"+key, "", nil, []byte(text)); a.status != http.StatusOK {
		f.t.Fatalf("put %s/%s: %d %s", bucket, key, a.status, &a.body)
	}
}

// do has a signed request answered. An answer that blames the server fails the
// test, as does a document that is no XML.
func (f *fuzzed) do(method, host, path, query string, header http.Header, body []byte) *recorded {
	f.t.Helper()
	r := (&http.Request{
		Method: method, Host: host, URL: &url.URL{Scheme: "http", Host: host, Path: path, RawQuery: query},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, RemoteAddr: "127.0.0.1:1",
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}).WithContext(f.t.Context())
	for name, values := range header {
		r.Header[name] = values
	}
	if r.Header.Get(hashHeader) == "" {
		r.Header.Set(hashHeader, unsignedPayload)
	}
	r = signer.SignV4(*r, testAccessKey, testSecretKey, "", "us-east-1")
	a := &recorded{header: http.Header{}}
	f.ServeHTTP(a, r)
	if a.status == http.StatusInternalServerError || f.logs.Len() > 0 {
		f.t.Fatalf("%s %q?%q is answered with %d %s\n%s", method, path, query, a.status, &a.body, &f.logs)
	}
	if a.status < 200 || a.status > 599 {
		f.t.Fatalf("status %d", a.status)
	}
	if a.header.Get("Content-Type") == "application/xml" && a.body.Len() > 0 {
		if err := xml.Unmarshal(a.body.Bytes(), new(struct{ XMLName xml.Name })); err != nil && a.status >= 300 {
			f.t.Fatalf("an answer is no XML: %v\n%s", err, &a.body)
		}
	}
	return a
}

// untouched fails the test unless the bucket that no input knows is as it was.
func (f *fuzzed) untouched() {
	f.t.Helper()
	if a := f.do(http.MethodGet, "127.0.0.1", "/"+unknownBucket+"/key", "", nil, nil); a.body.String() != "hello" {
		f.t.Fatalf("another bucket's object is now %d %q", a.status, &a.body)
	}
}

// FuzzRequest answers any request that is signed with the right keys: never with
// an error of the server's own, without touching another bucket, and without a change
// where it only reads or is refused. The headers are lines of NAME: VALUE.
func FuzzRequest(f *testing.F) {
	type seed struct{ method, host, path, query, headers, body string }
	for _, s := range []seed{
		{"GET", "127.0.0.1", "/", "", "", ""},
		{"GET", "127.0.0.1", "/", "max-buckets=1&prefix=b", "", ""},
		{"PUT", "127.0.0.1", "/other", "", "X-Amz-Acl: private", "<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>"},
		{"DELETE", "127.0.0.1", "/bucket", "", "", ""},
		{"DELETE", "127.0.0.1", "/bucket", "metadataConfiguration", "", ""},
		{"GET", "127.0.0.1", "/bucket", "list-type=2&max-keys=1&delimiter=/&prefix=k&encoding-type=url", "", ""},
		{"GET", "127.0.0.1", "/bucket", "versions&key-marker=a", "", ""},
		{"GET", "127.0.0.1", "/bucket", "uploads&upload-id-marker=x&key-marker=k", "", ""},
		{"POST", "127.0.0.1", "/bucket", "delete", "", "<Delete><Object><Key>key</Key></Object></Delete>"},
		{"POST", "127.0.0.1", "/bucket", "", "Content-Type: multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--b--\r\n"},
		{"GET", "bucket.localhost", "/key", "partNumber=1", "Range: bytes=1-2\nIf-Range: \"x\"", ""},
		{"HEAD", "127.0.0.1", "/bucket/key", "versionId=null", "X-Amz-Checksum-Mode: ENABLED", ""},
		{"GET", "127.0.0.1", "/bucket/key", "attributes", "X-Amz-Object-Attributes: ETag,Checksum,ObjectParts", ""},
		{"PUT", "127.0.0.1", "/bucket/key", "", "Content-Md5: XUFAKrxLKna5cZ2REBfFkg==\nIf-Match: *\nX-Amz-Tagging: a=b&c=d\nX-Amz-Meta-A: =?utf-8?b?w6k=?=", "hello"},
		{"PUT", "127.0.0.1", "/bucket/copy", "", "X-Amz-Copy-Source: /bucket/key%2B+\nX-Amz-Metadata-Directive: REPLACE", ""},
		{"PUT", "127.0.0.1", "/bucket/key", "", "X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\nX-Amz-Decoded-Content-Length: 5\nX-Amz-Trailer: x-amz-checksum-crc32", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"},
		{"DELETE", "127.0.0.1", "/bucket/key", "annotation", "If-Match: \"x\"", ""},
		{"POST", "127.0.0.1", "/bucket/new", "uploads", "X-Amz-Checksum-Algorithm: CRC32\nX-Amz-Checksum-Type: FULL_OBJECT", ""},
		{"PUT", "127.0.0.1", "/bucket/key", "tagging", "", "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"},
		{"OPTIONS", "127.0.0.1", "/bucket/key", "", "Origin: http://x\nAccess-Control-Request-Method: PUT", ""},
	} {
		f.Add(s.method, s.host, s.path, s.query, s.headers, []byte(s.body))
	}
	open := prepared(f)
	f.Fuzz(func(t *testing.T, method, host, path, query, headers string, body []byte) {
		if strings.Contains(path+query+headers+string(body), unknownBucket) {
			t.Skip()
		}
		header := http.Header{}
		for line := range strings.SplitSeq(headers, "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok {
				header.Add(name, strings.TrimSpace(value))
			}
		}
		if len(header["Transfer-Encoding"]) > 0 {
			t.Skip() // net/http keeps it out of Header
		}
		s := open(t)
		a := s.do(method, host, "/"+strings.TrimPrefix(path, "/"), query, header, body)
		if reads := method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions; (reads || a.status >= 400) && s.content() != s.made {
			t.Errorf("answered with %d, and there is\n%snow; there was\n%s", a.status, s.content(), s.made)
		}
		s.untouched()
	})
}

// FuzzDocument sends any document where one is read.
func FuzzDocument(f *testing.F) {
	for i, text := range []string{
		`<Delete><Quiet>true</Quiet><Object><Key>key</Key><ETag>x</ETag><Size>5</Size><LastModifiedTime>Mon, 02 Jan 2006 15:04:05 GMT</LastModifiedTime></Object></Delete>`,
		`<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"x"</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>`,
		`<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>`,
		`<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>`,
		`<AccessControlPolicy><Owner><ID>x</ID></Owner></AccessControlPolicy>`,
		`<CreateBucketConfiguration><LocationConstraint>x</LocationConstraint></CreateBucketConfiguration>`,
	} {
		f.Add(uint8(i), []byte(text))
		f.Add(uint8(i), []byte("<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY e \"eee\">]>"+strings.Replace(text, "key", "&e;", 1)))
	}
	open := prepared(f)
	f.Fuzz(func(t *testing.T, where uint8, document []byte) {
		if bytes.Contains(document, []byte(unknownBucket)) {
			t.Skip()
		}
		s := open(t)
		to := []struct{ method, path, query string }{
			{"POST", "/bucket", "delete"},
			{"POST", "/bucket/key", "uploadId=" + url.QueryEscape(s.upload)},
			{"PUT", "/bucket/key", "tagging"},
			{"PUT", "/bucket", "tagging"},
			{"PUT", "/bucket", "acl"},
			{"PUT", "/new-bucket", ""},
		}[int(where)%6]
		header := http.Header{}
		if to.query == "delete" {
			header.Set("X-Amz-Checksum-Crc32", crc32Of(document))
		}
		s.do(to.method, "127.0.0.1", to.path, to.query, header, document)
		s.untouched()
	})
}

func crc32Of(data []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(data)))
}

// FuzzListing compares a listing, followed page by page, with what S3's rules say
// of the keys.
func FuzzListing(f *testing.F) {
	keys := []string{"a", "a/", "a/b", "a/b/c", "a//", "a//b", "a-b", "a0", "b/é/x", "b/鍵", "b/+ %", "c\x01d", "d/" + strings.Repeat("k", 300), "🐑", "~"}
	slices.Sort(keys)
	f.Add("", "/", "", 3, true)
	f.Add("a", "", "a/b", 1, false)
	f.Add("a/", "b", "a//", 2, true)
	f.Add("b/é", "/x", "", 1, true)
	f.Add("\xff", "\xc3", "\xf0\x9f", 2, true)
	s := newFuzzed(f, f.TempDir()) // one for all: nothing is changed
	defer s.store.Close()
	if err := s.store.CreateBucket("listed"); err != nil {
		f.Fatal(err)
	}
	for _, key := range keys {
		s.put("listed", key, "")
	}
	f.Fuzz(func(t *testing.T, prefix, delimiter, after string, most int, encoded bool) {
		if most < 1 || most > 1000 {
			t.Skip()
		}
		s.t = t
		var want []string
		for _, key := range keys {
			item := key
			if rest, ok := strings.CutPrefix(key, prefix); !ok || key <= after {
				continue
			} else if i := strings.Index(rest, delimiter); delimiter != "" && i >= 0 {
				common := key[:len(prefix)+i+len(delimiter)]
				if common == after { // the page before ended with it
					continue
				}
				item = common + "\x00prefix"
			}
			if slices.Contains(want, item) {
				continue
			}
			want = append(want, item)
		}
		got, token := []string{}, ""
		for range 2 * len(keys) {
			q := url.Values{"list-type": {"2"}, "prefix": {prefix}, "delimiter": {delimiter}, "start-after": {after}, "max-keys": {strconv.Itoa(most)}}
			if encoded {
				q.Set("encoding-type", "url")
			}
			if token != "" {
				q.Set("continuation-token", token)
			}
			a := s.do(http.MethodGet, "127.0.0.1", "/listed", q.Encode(), nil, nil)
			if a.status != http.StatusOK {
				t.Fatalf("listed with %d %s", a.status, &a.body)
			}
			var page struct {
				IsTruncated           bool
				NextContinuationToken string
				KeyCount              int
				Contents              []struct{ Key string }
				CommonPrefixes        []struct{ Prefix string }
			}
			if err := xml.Unmarshal(a.body.Bytes(), &page); err != nil {
				t.Fatalf("%v\n%s", err, &a.body)
			}
			if n := len(page.Contents) + len(page.CommonPrefixes); n != page.KeyCount || n > most {
				t.Fatalf("a page of %d, said to be %d, of at most %d", n, page.KeyCount, most)
			}
			for _, o := range page.Contents {
				got = append(got, plain(t, o.Key, encoded))
			}
			for _, p := range page.CommonPrefixes {
				got = append(got, plain(t, p.Prefix, encoded)+"\x00prefix")
			}
			if token = page.NextContinuationToken; page.IsTruncated != (token != "") {
				t.Fatalf("truncated: %t, continued by %q", page.IsTruncated, token)
			}
			if token == "" {
				break
			}
		}
		if token != "" {
			t.Fatal("the listing does not end")
		}
		slices.Sort(got)
		if !encoded {
			for i := range want {
				want[i] = inXML(want[i])
			}
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("prefix %q, delimiter %q, after %q: listed %q, want %q", prefix, delimiter, after, got, want)
		}
	})
}

// inXML is an item as XML without an encoding shows it, which cannot hold control characters
// and parts of characters: a delimiter may be one byte of several.
func inXML(item string) string {
	item, prefix := strings.CutSuffix(item, "\x00prefix")
	var shown strings.Builder
	for _, r := range item { // an invalid byte is read as U+FFFD
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' {
			r = utf8.RuneError
		}
		shown.WriteRune(r)
	}
	if prefix {
		shown.WriteString("\x00prefix")
	}
	return shown.String()
}

// plain is a key as it was before it was written into a listing.
func plain(t *testing.T, key string, encoded bool) string {
	t.Helper()
	if !encoded {
		return key
	}
	text, err := url.PathUnescape(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// FuzzRange reads any Range header: what comes out lies in the object.
func FuzzRange(f *testing.F) {
	for _, text := range []string{"bytes=0-3", "bytes=-5", "bytes=3-", "bytes=0-0,1-1", "items=0-1", "bytes=9223372036854775807-", "bytes=1-99999999999999999999", "bytes=-0", "bytes = 1 - 2"} {
		f.Add(text, int64(10))
		f.Add(text, int64(0))
	}
	f.Fuzz(func(t *testing.T, text string, size int64) {
		if size < 0 {
			t.Skip()
		}
		part, refused := parseRange(text, size)
		if part != nil && (refused != nil || part.offset < 0 || part.size < 1 && size > 0 || part.offset+part.size > size) {
			t.Fatalf("%q of %d bytes is %+v, %v", text, size, part, refused)
		}
		if refused != nil && refused.status != http.StatusRequestedRangeNotSatisfiable {
			t.Fatalf("refused with %d", refused.status)
		}
	})
}

// FuzzQuery reads any query: what is signed of it reads as the same parameters.
func FuzzQuery(f *testing.F) {
	for _, raw := range []string{"a=b&c", "a=1+2%2B3&&a==4", "prefix=a;b", "%", "=&=", "é=%C3%A9", "X-Amz-Signature=1&a"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, ok := parseQuery(raw)
		if !ok {
			return
		}
		canonical := p.canonical()
		again, ok := parseQuery(canonical)
		if !ok || again.canonical() != canonical {
			t.Fatalf("%q is signed as %q, which is signed as %q", raw, canonical, again.canonical())
		}
		for _, pair := range p {
			if pair[0] != "X-Amz-Signature" && pair != [2]string{} && !slices.Contains(again, pair) {
				t.Fatalf("%q is not signed of %q: %q", pair, raw, canonical)
			}
		}
	})
}

// FuzzHost reads any Host and path: the bucket and key are all of the path, or,
// below a domain of the server's, the host's first name and the path.
func FuzzHost(f *testing.F) {
	f.Add("bucket.localhost:7000", "/key")
	f.Add("bucket.s3.example.com", "/a/b")
	f.Add("s3.example.com.", "/bucket/key")
	f.Add("[::1]:80", "//")
	h := newHosts([]string{"s3.example.com", "example.com"})
	f.Fuzz(func(t *testing.T, host, path string) {
		bucket, key := h.resolve(host, path)
		rest := strings.TrimPrefix(path, "/")
		inPath := bucket+"/"+key == rest || bucket == rest && key == ""
		inHost := folder.ValidBucket(bucket) && strings.HasPrefix(hostname(host), bucket+".") && key == rest
		if !inPath && !inHost {
			t.Fatalf("%q %q is read as %q %q", host, path, bucket, key)
		}
	})
}

// FuzzPolicy checks a form against any policy: one that passes has not expired,
// and names every field.
func FuzzPolicy(f *testing.F) {
	later := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	for _, conditions := range []string{
		`[{"bucket":"b"},["eq","$key","k"],["starts-with","$Content-Type",""],["content-length-range",1,10]]`,
		`[["content-length-range","1","1e3"],{"key":"k"}]`, `[[]]`, `[{}]`, `[null]`, `[["content-length-range",-1,9e99]]`, `{}`,
	} {
		f.Add(fmt.Sprintf(`{"expiration":%q,"conditions":%s}`, later, conditions), "k", "text/plain")
	}
	f.Add(`{"expiration":"2000-01-01T00:00:00Z","conditions":[]}`, "", "")
	f.Fuzz(func(t *testing.T, policy, key, contentType string) {
		form := &form{fields: map[string]string{
			"bucket": "b", "key": key, "content-type": contentType, "policy": base64.StdEncoding.EncodeToString([]byte(policy)),
		}}
		now := time.Now()
		limits, err := checkPolicy(form, now)
		if err != nil {
			if refused, ok := err.(*apiError); !ok || refused.status < 400 || refused.status > 499 {
				t.Fatalf("not the client's fault: %v", err)
			}
			return
		}
		if limits.least < 0 || limits.most > maxPost || limits.least > limits.most {
			t.Fatalf("limits %+v", limits)
		}
		var read struct{ Expiration string }
		if err := json.Unmarshal([]byte(policy), &read); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(policy, "key") && !strings.Contains(policy, `\u`) && !strings.Contains(strings.ToLower(policy), "key") {
			t.Fatalf("a policy that does not name the key passed: %s", policy)
		}
	})
}
