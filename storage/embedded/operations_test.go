package embedded_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/storage/embedded"
)

// precious makes bucket b with object o, and returns what checks that both are
// as they were.
func precious(t *testing.T, s *server, b string) (unchanged func(what string)) {
	t.Helper()
	c := s.client(nil)
	s.bucket(c, b)
	put(t, c, b, "o", []byte("precious"))
	return func(what string) {
		t.Helper()
		if got := get(t, c, b, "o"); string(got) != "precious" {
			t.Errorf("%s: the object holds %q", what, got)
		}
	}
}

// TestUnknownRequestsDoNothing asks for what is not in the table of operations.
func TestUnknownRequestsDoNothing(t *testing.T) {
	s := start(t, t.TempDir())
	b := "table"
	unchanged := precious(t, s, b)
	for _, q := range []string{
		"annotation", "annotation=x", "renameObject", "metadataConfiguration", "unknown", "torrent", "restore", "select&select-type=2",
		"lifecycle", "website", "versioning", "policy", "cors", "replication", "object-lock", "encryption", "intelligent-tiering&id=x",
		"inventory&id=x", "metrics&id=x", "analytics&id=x", "session", "x=1%3By=2", "partNumber=1", "versionId=null&unknown", "abac",
	} {
		for _, method := range []string{"PUT", "POST", "DELETE", "PATCH"} {
			for _, path := range []string{"/" + b, "/" + b + "/o"} {
				answer, text := s.do(method, path, q, nil, []byte("x"))
				if answer.StatusCode != 501 && !(answer.StatusCode == 400 && q == "versionId=null&unknown") {
					t.Errorf("%s %s?%s: %s %.200s", method, path, q, answer.Status, text)
				}
				if !bytes.HasPrefix(text, []byte("<?xml")) {
					t.Errorf("%s %s?%s: the answer is not XML: %.200s", method, path, q, text)
				}
				unchanged(method + " " + path + "?" + q)
			}
		}
	}
	for _, q := range []string{"unknown", "annotation", "select", "torrent"} {
		for _, path := range []string{"/", "/" + b, "/" + b + "/o"} {
			answer, text := s.do("GET", path, q, nil, nil)
			wantAnswer(t, answer, text, 501, "NotImplemented")
		}
	}
	for _, h := range [][2]string{
		{"X-Amz-Write-Offset-Bytes", "8"}, {"X-Amz-Rename-Source", "/" + b + "/o"}, {"X-Amz-Grant-Read", "id=x"}, {"X-Amz-Object-Lock-Legal-Hold", "ON"},
		{"X-Amz-Object-Lock-Retain-Until-Date", "2030-01-01T00:00:00Z"}, {"X-Amz-Server-Side-Encryption-Customer-Key", "x"}, {"If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"},
		{"X-Amz-Something-New", "x"}, {"Content-Range", "bytes 0-7/8"}, {"X-Amz-Copy-Source-Range", "bytes=0-1"},
	} {
		answer, text := s.do("PUT", "/"+b+"/o", "", http.Header{h[0]: {h[1]}}, []byte("x"))
		wantAnswer(t, answer, text, 501, "NotImplemented")
		unchanged("PUT with " + h[0])
		if h[0] == "Content-Range" {
			continue // it says nothing of a request without a body
		}
		answer, text = s.do("DELETE", "/"+b+"/o", "", http.Header{h[0]: {h[1]}}, nil)
		wantAnswer(t, answer, text, 501, "NotImplemented")
		unchanged("DELETE with " + h[0])
	}
	answer, text := s.do("PUT", "/"+b+"-new", "", http.Header{"If-None-Match": {"*"}}, nil)
	wantAnswer(t, answer, text, 501, "if-none-match")
}

// TestVirtualHosts addresses buckets by host name.
func TestVirtualHosts(t *testing.T) {
	s := start(t, t.TempDir(), func(c *embedded.Config) { c.Domains = []string{"s3.example.com", "S3.Eu.example.com."} })
	c := s.client(nil)
	s.bucket(c, "first")
	s.bucket(c, "a.dotted")
	send := func(method, host, path, query, body string) (*http.Response, []byte) {
		t.Helper()
		u := &url.URL{Scheme: "http", Host: s.addr, Path: path, RawQuery: query}
		r, err := http.NewRequestWithContext(t.Context(), method, u.String(), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		sum := sha256.Sum256([]byte(body))
		r.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
		return s.send(sign(r))
	}
	port := s.addr[strings.LastIndex(s.addr, ":"):]
	for i, host := range []string{"first.localhost" + port, "first.s3.example.com", "FIRST.s3.example.com:80", "first.s3.eu.example.com", "a.dotted.s3.example.com"} {
		bucket := strings.ToLower(strings.Split(host, ".")[0])
		if bucket == "a" {
			bucket = "a.dotted"
		}
		key := fmt.Sprintf("deep/key-%d", i)
		answer, text := send("PUT", host, "/"+key, "", host)
		wantAnswer(t, answer, text, 200, "")
		if got := get(t, c, bucket, key); string(got) != host {
			t.Errorf("%s stored %q", host, got)
		}
		answer, text = send("GET", host, "/", "list-type=2", "")
		wantAnswer(t, answer, text, 200, "<Key>"+key+"</Key>")
		answer, text = send("PUT", host, "/topkey", "", "x")
		wantAnswer(t, answer, text, 200, "")
		answer, text = send("DELETE", host, "/topkey", "", "")
		wantAnswer(t, answer, text, 204, "")
	}
	// The domain itself, other names and addresses are path style.
	for _, host := range []string{"s3.example.com", s.addr, "[::1]" + port, "storage.internal", "localhost"} {
		answer, text := send("GET", host, "/first", "list-type=2", "")
		wantAnswer(t, answer, text, 200, "<Name>first</Name>")
	}
	// Of an unknown domain, buckets are neither made nor removed in place of keys.
	s.bucket(c, "victim")
	for _, method := range []string{"PUT", "DELETE"} {
		answer, text := send(method, "first.other.example.com", "/victim", "", "")
		wantAnswer(t, answer, text, 400, "ath style")
		answer, text = send(method, "first.other.example.com", "/new-bucket", "", "")
		wantAnswer(t, answer, text, 400, "ath style")
	}
	if there, err := c.BucketExists(t.Context(), "victim"); err != nil || !there {
		t.Errorf("the bucket is gone: %v", err)
	}
	listed, err := c.ListBuckets(t.Context())
	if err != nil || len(listed) != 3 {
		t.Errorf("buckets: %v, %v", listed, err)
	}
	answer, text := send("PUT", "server.example.com", "/another", "", "")
	wantAnswer(t, answer, text, 200, "")
}

// TestCompletionIsVerified gives an upload's completion wrong claims, each of
// which leaves no object.
func TestCompletionIsVerified(t *testing.T) {
	s := start(t, t.TempDir())
	core := s.core()
	b := s.bucket(core.Client, "completion")
	first, second := random(1, 5<<20), random(2, 1000)
	whole := append(bytes.Clone(first), second...)
	sum := func(sha bool, data ...[]byte) string {
		if !sha {
			return crc32c(bytes.Join(data, nil))
		}
		h := sha256.New()
		for _, d := range data {
			h.Write(d)
		}
		return base64.StdEncoding.EncodeToString(h.Sum(nil))
	}
	raw := func(d []byte) []byte { h := sha256.Sum256(d); return h[:] }
	for name, kind := range map[string]struct {
		algorithm, kind, object string
		part                    [2]string
	}{
		"Crc32c": {"CRC32C", "FULL_OBJECT", sum(false, whole), [2]string{sum(false, first), sum(false, second)}},
		"Sha256": {"SHA256", "COMPOSITE", sum(true, raw(first), raw(second)) + "-2", [2]string{sum(true, first), sum(true, second)}},
	} {
		t.Run(name, func(t *testing.T) {
			key, header := "object-"+name, "X-Amz-Checksum-"+name
			begin := func() string {
				answer, text := s.do("POST", "/"+b+"/"+key, "uploads", http.Header{"X-Amz-Checksum-Algorithm": {kind.algorithm}, "X-Amz-Checksum-Type": {kind.kind}}, nil)
				wantAnswer(t, answer, text, 200, "UploadId")
				var in struct{ UploadId string }
				if err := xml.Unmarshal(text, &in); err != nil {
					t.Fatal(err)
				}
				if answer.Header.Get("X-Amz-Checksum-Algorithm") != kind.algorithm || answer.Header.Get("X-Amz-Checksum-Type") != kind.kind {
					t.Errorf("begun with %v", answer.Header)
				}
				return in.UploadId
			}
			id := begin()
			etags := make([]string, 2)
			for i, data := range [][]byte{first, second} {
				answer, text := s.do("PUT", "/"+b+"/"+key, fmt.Sprintf("partNumber=%d&uploadId=%s", i+1, id), http.Header{header: {kind.part[i]}}, data)
				wantAnswer(t, answer, text, 200, "")
				etags[i] = answer.Header.Get("ETag")
				if answer.Header.Get(header) != kind.part[i] {
					t.Errorf("part %d: checksum %q, want %q", i+1, answer.Header.Get(header), kind.part[i])
				}
			}
			answer, text := s.do("GET", "/"+b+"/"+key, "uploadId="+id, nil, nil)
			wantAnswer(t, answer, text, 200, "<Checksum"+kind.algorithm+">"+strings.ReplaceAll(kind.part[1], "+", "&#43;"))
			list := func(partSums ...string) []byte {
				var body strings.Builder
				body.WriteString("<CompleteMultipartUpload>")
				for i, etag := range etags {
					fmt.Fprintf(&body, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag>", i+1, strings.Trim(etag, `"`))
					if partSums != nil {
						fmt.Fprintf(&body, "<Checksum%s>%s</Checksum%[1]s>", kind.algorithm, partSums[i])
					}
					body.WriteString("</Part>")
				}
				return []byte(body.String() + "</CompleteMultipartUpload>")
			}
			for what, wrong := range map[string]struct {
				header http.Header
				body   []byte
			}{
				"the object's checksum": {http.Header{header: {kind.part[0]}}, list()},
				"another algorithm":     {http.Header{"X-Amz-Checksum-Crc32": {"NhCmhg=="}}, list()},
				"the size":              {http.Header{"X-Amz-Mp-Object-Size": {"99"}}, list()},
				"no size":               {http.Header{"X-Amz-Mp-Object-Size": {"x"}}, list()},
				"a part's checksum":     {nil, list(kind.part[0], kind.part[0])},
				"the type":              {http.Header{"X-Amz-Checksum-Type": {map[string]string{"COMPOSITE": "FULL_OBJECT", "FULL_OBJECT": "COMPOSITE"}[kind.kind]}}, list()},
				"no XML":                {nil, []byte("x")},
				"no parts":              {nil, []byte("<CompleteMultipartUpload></CompleteMultipartUpload>")},
			} {
				answer, text := s.do("POST", "/"+b+"/"+key, "uploadId="+id, wrong.header, wrong.body)
				if answer.StatusCode != 400 {
					t.Errorf("%s: %s %s", what, answer.Status, text)
				}
				answer, text = s.do("GET", "/"+b+"/"+key, "", nil, nil)
				wantAnswer(t, answer, text, 404, "NoSuchKey")
			}
			answer, text = s.do("POST", "/"+b+"/"+key, "uploadId="+id,
				http.Header{header: {kind.object}, "X-Amz-Mp-Object-Size": {fmt.Sprint(len(whole))}, "X-Amz-Checksum-Type": {kind.kind}}, list(kind.part[0], kind.part[1]))
			wantAnswer(t, answer, text, 200, kind.kind)
			answer, _ = s.do("HEAD", "/"+b+"/"+key, "", http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}, nil)
			if answer.Header.Get(header) != kind.object || answer.Header.Get("X-Amz-Checksum-Type") != kind.kind {
				t.Errorf("HEAD tells %q of type %q, want %q", answer.Header.Get(header), answer.Header.Get("X-Amz-Checksum-Type"), kind.object)
			}
			answer, text = s.do("GET", "/"+b+"/"+key, "attributes", http.Header{"X-Amz-Object-Attributes": {"ETag,Checksum,ObjectParts,ObjectSize,StorageClass"}, "X-Amz-Max-Parts": {"1"}}, nil)
			wantAnswer(t, answer, text, 200, "<PartsCount>2</PartsCount>")
			value, _, _ := strings.Cut(kind.object, "-")
			for _, want := range []string{"<Checksum" + kind.algorithm + ">" + strings.ReplaceAll(value, "+", "&#43;") + "<", fmt.Sprintf("<ObjectSize>%d</ObjectSize>", len(whole)), "<IsTruncated>true</IsTruncated>", "<StorageClass>STANDARD</StorageClass>", kind.kind} {
				if !bytes.Contains(text, []byte(want)) {
					t.Errorf("attributes lack %s: %s", want, text)
				}
			}
			answer, text = s.do("PUT", "/"+b+"/copy-"+name, "", http.Header{"X-Amz-Copy-Source": {b + "/" + key}}, nil)
			wantAnswer(t, answer, text, 200, "<ChecksumType>FULL_OBJECT</ChecksumType>")
			answer, _ = s.do("HEAD", "/"+b+"/copy-"+name, "", http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}, nil)
			if want := sum(name == "Sha256", whole); answer.Header.Get(header) != want {
				t.Errorf("the copy has checksum %q, want %q", answer.Header.Get(header), want)
			}
		})
	}

	// A part below 5 MiB in the middle.
	id, err := core.NewMultipartUpload(t.Context(), b, "small", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var parts []minio.CompletePart
	for i := range 2 {
		p, err := core.PutObjectPart(t.Context(), b, "small", id, i+1, bytes.NewReader(first[1:]), 5<<20-1, minio.PutObjectPartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, minio.CompletePart{PartNumber: i + 1, ETag: p.ETag})
	}
	_, err = core.CompleteMultipartUpload(t.Context(), b, "small", id, parts, minio.PutObjectOptions{})
	wantCode(t, err, 400, "EntityTooSmall")

	// A condition that the upload was begun with holds to its end.
	answer, text := s.do("POST", "/"+b+"/conditional", "uploads", http.Header{"If-None-Match": {"*"}}, nil)
	wantAnswer(t, answer, text, 200, "UploadId")
	var begun struct{ UploadId string }
	if err := xml.Unmarshal(text, &begun); err != nil {
		t.Fatal(err)
	}
	p, err := core.PutObjectPart(t.Context(), b, "conditional", begun.UploadId, 1, strings.NewReader("x"), 1, minio.PutObjectPartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, core.Client, b, "conditional", []byte("first"))
	_, err = core.CompleteMultipartUpload(t.Context(), b, "conditional", begun.UploadId, []minio.CompletePart{{PartNumber: 1, ETag: p.ETag}}, minio.PutObjectOptions{})
	wantCode(t, err, 412, "PreconditionFailed")
	answer, text = s.do("POST", "/"+b+"/conditional", "uploads", http.Header{"If-None-Match": {"*"}}, nil)
	wantAnswer(t, answer, text, 412, "PreconditionFailed")
}

// TestChecksumsAreKept stores objects with and without a checksum of the client's.
func TestChecksumsAreKept(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "checksums")
	for _, given := range [][2]string{{"X-Amz-Checksum-Sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ00="}, {"X-Amz-Checksum-Crc64nvme", "M3eFcAZSQlc="}} {
		header := http.Header{given[0]: {given[1]}}
		if strings.HasSuffix(given[0], "nvme") {
			header = nil // S3's own choice
		}
		answer, text := s.do("PUT", "/"+b+"/o", "", header, []byte("hello"))
		wantAnswer(t, answer, text, 200, "")
		answer, text = s.do("PUT", "/"+b+"/copy", "", http.Header{"X-Amz-Copy-Source": {b + "/o"}}, nil)
		wantAnswer(t, answer, text, 200, given[1])
		for _, key := range []string{"o", "copy"} {
			for _, method := range []string{"GET", "HEAD"} {
				answer, _ := s.do(method, "/"+b+"/"+key, "", http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}, nil)
				if got := answer.Header.Get(given[0]); got != given[1] || answer.Header.Get("X-Amz-Checksum-Type") != "FULL_OBJECT" {
					t.Errorf("%s %s: %s is %q, want %q", method, key, given[0], got, given[1])
				}
			}
			answer, _ := s.do("GET", "/"+b+"/"+key, "", http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}, "Range": {"bytes=0-1"}}, nil)
			if got := answer.Header.Get(given[0]); got != "" {
				t.Errorf("the whole object's checksum comes with a part: %q", got)
			}
		}
	}
}

// TestRangesOfOtherKinds asks for ranges that are answered with the whole.
func TestRangesOfOtherKinds(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "ranges")
	answer, _ := s.do("PUT", "/"+b+"/o", "", nil, []byte("old content"))
	old := answer.Header.Get("ETag")
	answer, _ = s.do("PUT", "/"+b+"/o", "", nil, []byte("new content!"))
	current := answer.Header.Get("ETag")
	for _, test := range []struct {
		spec, ifRange string
		status        int
		body          string
	}{
		{"bytes=4-", old, 200, "new content!"},
		{"bytes=4-", current, 206, "content!"},
		{"bytes=4-", "W/" + current, 200, "new content!"},
		{"bytes=4-", "Thu, 01 Jan 1970 00:00:00 GMT", 200, "new content!"},
		{"items=0-1", "", 200, "new content!"},
		{"bytes=0-1,4-5", "", 200, "new content!"},
		{"bytes=5-2", "", 200, "new content!"},
		{"bytes=x", "", 200, "new content!"},
		{"Bytes=0-2", "", 206, "new"},
		{"bytes=-8", "", 206, "content!"},
		{"bytes=-99", "", 206, "new content!"},
		{"bytes=99-", "", 416, "InvalidRange"},
		{"bytes=-0", "", 416, "InvalidRange"},
		{"bytes=4-99999999999999999999", "", 206, "content!"},
	} {
		h := http.Header{"Range": {test.spec}}
		if test.ifRange != "" {
			h.Set("If-Range", test.ifRange)
		}
		answer, text := s.do("GET", "/"+b+"/o", "", h, nil)
		if answer.StatusCode != test.status || (test.status < 300 && string(text) != test.body) || !strings.Contains(string(text), test.body) {
			t.Errorf("Range %q, If-Range %q: %s %q", test.spec, test.ifRange, answer.Status, text)
		}
	}
}

// TestManyBuckets lists more buckets than S3 puts in a page.
func TestManyBuckets(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	const n = 10_050
	makeBuckets(t, dir, n)
	c := s.client(nil)
	listed, err := c.ListBuckets(t.Context())
	if err != nil || len(listed) != n {
		t.Fatalf("%d buckets listed of %d: %v", len(listed), n, err)
	}
	var names []string
	for token := ""; ; {
		answer, text := s.do("GET", "/", "max-buckets=4000&continuation-token="+token, nil, nil)
		wantAnswer(t, answer, text, 200, "<Buckets>")
		var page struct {
			Buckets           struct{ Bucket []struct{ Name string } }
			ContinuationToken string
		}
		if err := xml.Unmarshal(text, &page); err != nil {
			t.Fatal(err)
		}
		for _, b := range page.Buckets.Bucket {
			names = append(names, b.Name)
		}
		if token = page.ContinuationToken; token == "" {
			break
		}
	}
	if len(names) != n || !slices.IsSorted(names) {
		t.Errorf("%d buckets in pages", len(names))
	}
	answer, text := s.do("GET", "/", "prefix=job-0000", nil, nil)
	if wantAnswer(t, answer, text, 200, "job-00000"); strings.Count(string(text), "<Name>") != 10 {
		t.Errorf("with a prefix: %d buckets", strings.Count(string(text), "<Name>"))
	}
}

// TestQueriesAreReadOnce sends a ";", which belongs to a value.
func TestQueriesAreReadOnce(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "queries")
	for _, key := range []string{"a;b/x", "a", "b"} {
		put(t, c, b, key, []byte("x"))
	}
	answer, text := s.do("GET", "/"+b, "list-type=2&prefix=a%3Bb", nil, nil)
	wantAnswer(t, answer, text, 200, "<Key>a;b/x</Key>")
	if strings.Count(string(text), "<Key>") != 1 {
		t.Errorf("the prefix was dropped: %s", text)
	}
}

// TestCopySources names sources with characters that URLs give a meaning.
func TestCopySources(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "sources")
	put(t, c, b, "a+b c%d", []byte("right"))
	put(t, c, b, "a b c%d", []byte("wrong"))
	// S3 reads the header as a form's value: s5cmd sends spaces as +, and rclone + as %2B.
	for source, want := range map[string]string{
		"/sources/a%2Bb%20c%25d": "right", "sources/a%2Bb+c%25d": "right", "sources/a%2Bb%20c%25d?versionId=null": "right",
		"%2Fsources%2Fa%2Bb%20c%25d": "right", "sources%2Fa%2Bb%20c%25d": "right", "sources/a+b+c%25d": "wrong",
	} {
		answer, text := s.do("PUT", "/"+b+"/copy", "", http.Header{"X-Amz-Copy-Source": {source}}, nil)
		wantAnswer(t, answer, text, 200, "CopyObjectResult")
		if got := get(t, c, b, "copy"); string(got) != want {
			t.Errorf("%s copied %q, want %q", source, got, want)
		}
	}
	put(t, c, b, "copy", []byte("right"))
	for _, source := range []string{"sources/a%2Bb%20c%25d?versionId=abc", "sources/a%2Bb%20c%25d?versionId="} {
		answer, text := s.do("PUT", "/"+b+"/copy2", "", http.Header{"X-Amz-Copy-Source": {source}}, nil)
		wantAnswer(t, answer, text, 400, "InvalidArgument")
	}
	for _, method := range []string{"GET", "HEAD", "DELETE"} {
		answer, text := s.do(method, "/"+b+"/copy", "versionId=abc", nil, nil)
		wantAnswer(t, answer, text, 400, "")
	}
	get(t, c, b, "copy")
	answer, text := s.do("GET", "/"+b+"/copy", "versionId=null", nil, nil)
	wantAnswer(t, answer, text, 200, "right")
	for _, itself := range []string{"sources/copy", "/sources/copy", "sources%2Fcopy", "sources/c%6fpy"} {
		answer, text = s.do("PUT", "/"+b+"/copy", "", http.Header{"X-Amz-Copy-Source": {itself}}, nil)
		wantAnswer(t, answer, text, 400, "InvalidRequest")
	}
	for name, value := range map[string]string{"X-Amz-Storage-Class": "STANDARD", "X-Amz-Server-Side-Encryption": "AES256", "X-Amz-Website-Redirect-Location": "/x"} {
		answer, text = s.do("PUT", "/"+b+"/copy", "", http.Header{"X-Amz-Copy-Source": {"sources/copy"}, name: {value}}, nil)
		wantAnswer(t, answer, text, 200, "CopyObjectResult")
		if got := get(t, c, b, "copy"); string(got) != "right" {
			t.Errorf("with %s the copy of itself holds %q", name, got)
		}
	}
}

// TestStorageClass keeps the class that a client names, and shows it where S3 does.
func TestStorageClass(t *testing.T) {
	s := start(t, t.TempDir())
	core := s.core()
	b := s.bucket(core.Client, "classes")
	class := func(name string) http.Header { return http.Header{"X-Amz-Storage-Class": {name}} }
	answer, text := s.do("PUT", "/"+b+"/warm", "", class("STANDARD_IA"), []byte("x"))
	wantAnswer(t, answer, text, 200, "")
	answer, text = s.do("PUT", "/"+b+"/standard", "", class("STANDARD"), []byte("x"))
	wantAnswer(t, answer, text, 200, "")
	answer, text = s.do("PUT", "/"+b+"/copied", "", http.Header{"X-Amz-Copy-Source": {b + "/warm"}}, nil) // the class is not
	wantAnswer(t, answer, text, 200, "")
	answer, text = s.do("PUT", "/"+b+"/changed", "", http.Header{"X-Amz-Copy-Source": {b + "/standard"}, "X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}}, nil)
	wantAnswer(t, answer, text, 200, "")
	id, err := core.NewMultipartUpload(t.Context(), b, "parts", minio.PutObjectOptions{StorageClass: "GLACIER_IR"})
	if err != nil {
		t.Fatal(err)
	}
	answer, text = s.do("GET", "/"+b, "uploads", nil, nil)
	wantAnswer(t, answer, text, 200, "<StorageClass>GLACIER_IR</StorageClass>")
	part, err := core.PutObjectPart(t.Context(), b, "parts", id, 1, strings.NewReader("x"), 1, minio.PutObjectPartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	answer, text = s.do("GET", "/"+b+"/parts", "uploadId="+id, nil, nil)
	wantAnswer(t, answer, text, 200, "<StorageClass>GLACIER_IR</StorageClass>")
	if _, err := core.CompleteMultipartUpload(t.Context(), b, "parts", id, []minio.CompletePart{{PartNumber: 1, ETag: part.ETag}}, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"warm": "STANDARD_IA", "standard": "STANDARD", "copied": "STANDARD", "changed": "REDUCED_REDUNDANCY", "parts": "GLACIER_IR"}
	listed := map[string]string{}
	for o := range core.Client.ListObjects(t.Context(), b, minio.ListObjectsOptions{}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		listed[o.Key] = o.StorageClass
	}
	if !maps.Equal(listed, want) {
		t.Errorf("the listing has the classes %v, want %v", listed, want)
	}
	for key, class := range want {
		answer, text := s.do("HEAD", "/"+b+"/"+key, "", nil, nil)
		wantAnswer(t, answer, text, 200, "")
		if got := answer.Header.Get("X-Amz-Storage-Class"); got != class && (got != "" || class != "STANDARD") { // S3 does not say STANDARD
			t.Errorf("the class of %s is %q, want %s", key, got, class)
		}
		answer, text = s.do("GET", "/"+b+"/"+key, "attributes", http.Header{"X-Amz-Object-Attributes": {"StorageClass"}}, nil)
		wantAnswer(t, answer, text, 200, "<StorageClass>"+class+"</StorageClass>")
	}
	for _, name := range []string{"GLACIER", "DEEP_ARCHIVE", "NO_SUCH_CLASS"} { // the first two are not read at once
		answer, text := s.do("PUT", "/"+b+"/o", "", class(name), []byte("x"))
		wantAnswer(t, answer, text, 400, "InvalidStorageClass")
	}
}

// TestOtherMetadata keeps metadata that is not ASCII.
func TestOtherMetadata(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "metadata")
	for _, sent := range []string{"příliš žluťoučký", "=?UTF-8?B?cMWZw61sacWhIMW+bHXFpW91xI1rw70=?="} {
		answer, text := s.do("PUT", "/"+b+"/o", "", http.Header{"X-Amz-Meta-Note": {sent}}, []byte("x"))
		wantAnswer(t, answer, text, 200, "")
		answer, _ = s.do("HEAD", "/"+b+"/o", "", nil, nil)
		if got := answer.Header.Get("X-Amz-Meta-Note"); got != "=?UTF-8?b?cMWZw61sacWhIMW+bHXFpW91xI1rw70=?=" {
			t.Errorf("%q came back as %q", sent, got)
		}
	}
	answer, text := s.do("PUT", "/"+b+"/o", "", http.Header{"X-Amz-Meta-Note": {"\xff\xfe"}}, []byte("x"))
	wantAnswer(t, answer, text, 400, "UTF-8")
}

// TestConditionalDeletion deletes under a condition, one object and several.
func TestConditionalDeletion(t *testing.T) {
	s := start(t, t.TempDir())
	core := s.core()
	b := s.bucket(core.Client, "deletion")
	data := random(1, 6<<20)
	id, err := core.NewMultipartUpload(t.Context(), b, "parts", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var parts []minio.CompletePart
	for i, piece := range [][]byte{data[:5<<20], data[5<<20:]} {
		p, err := core.PutObjectPart(t.Context(), b, "parts", id, i+1, bytes.NewReader(piece), int64(len(piece)), minio.PutObjectPartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, minio.CompletePart{PartNumber: i + 1, ETag: p.ETag})
	}
	done, err := core.CompleteMultipartUpload(t.Context(), b, "parts", id, parts, minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	old := put(t, core.Client, b, "single", []byte("old")).ETag
	put(t, core.Client, b, "single", []byte("new"))
	batch := func(etag string) (*http.Response, []byte) {
		body := fmt.Sprintf("<Delete><Object><Key>single</Key><ETag>%s</ETag></Object><Object><Key>parts</Key><ETag>&quot;%s&quot;</ETag></Object></Delete>", old, etag)
		sum := sha256.Sum256([]byte(body))
		return s.do("POST", "/"+b, "delete", http.Header{"X-Amz-Checksum-Sha256": {base64.StdEncoding.EncodeToString(sum[:])}}, []byte(body))
	}
	answer, text := s.do("DELETE", "/"+b+"/single", "", http.Header{"If-Match": {`"` + old + `"`}}, nil)
	wantAnswer(t, answer, text, 412, "PreconditionFailed")
	answer, text = batch(strings.Repeat("0", 32) + "-2")
	if wantAnswer(t, answer, text, 200, "<Error><Key>parts</Key><Code>PreconditionFailed"); strings.Contains(string(text), "<Deleted>") {
		t.Errorf("deleted in spite of its condition: %s", text)
	}
	if string(get(t, core.Client, b, "single")) != "new" {
		t.Error("the newer object is gone")
	}
	answer, text = batch(done.ETag)
	wantAnswer(t, answer, text, 200, "<Deleted><Key>parts</Key>")
	answer, text = s.do("POST", "/"+b, "delete", http.Header{"Content-Md5": {"XUFAKrxLKna5cZ2REBfFkA=="}}, []byte("<Delete><Object><Key>single</Key></Object></Delete>"))
	wantAnswer(t, answer, text, 400, "BadDigest")
	answer, text = s.do("GET", "/"+b+"/single", "", nil, nil)
	wantAnswer(t, answer, text, 200, "new")

	// Of a writer and a deleter of the old version, the writer's object stays.
	for round := range 20 {
		etag := put(t, core.Client, b, "race", []byte(fmt.Sprint("old ", round))).ETag
		var wg sync.WaitGroup
		wg.Go(func() { put(t, core.Client, b, "race", []byte("newer")) })
		wg.Go(func() { s.do("DELETE", "/"+b+"/race", "", http.Header{"If-Match": {`"` + etag + `"`}}, nil) })
		wg.Wait()
		if got := get(t, core.Client, b, "race"); string(got) != "newer" {
			t.Fatalf("round %d: %q", round, got)
		}
	}
}

// postForm sends an upload by HTML form.
func (s *server) postForm(bucket string, fields [][2]string, fileName, file string) (*http.Response, []byte) {
	s.t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, f := range fields {
		if err := w.WriteField(f[0], f[1]); err != nil {
			s.t.Fatal(err)
		}
	}
	part, err := w.CreateFormFile("file", fileName)
	if err != nil {
		s.t.Fatal(err)
	}
	_, _ = io.WriteString(part, file)
	w.Close()
	r, err := http.NewRequestWithContext(s.t.Context(), "POST", "http://"+s.addr+"/"+bucket, &body)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", w.FormDataContentType())
	return s.send(r)
}

// TestForms uploads by HTML form.
func TestForms(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "forms")
	policy := minio.NewPostPolicy()
	for _, err := range []error{
		policy.SetBucket(b), policy.SetKeyStartsWith("user/"), policy.SetExpires(time.Now().Add(time.Minute)),
		policy.SetContentLengthRange(1, 10), policy.SetContentType("text/x"), policy.SetUserMetadata("note", "ü"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	_, form, err := c.PresignedPostPolicy(t.Context(), policy)
	if err != nil {
		t.Fatal(err)
	}
	fields := func(change ...[2]string) (list [][2]string) {
		with := map[string]string{"key": "user/${filename}"}
		for name, value := range form {
			if name != "key" {
				with[name] = value
			}
		}
		for _, f := range change {
			with[f[0]] = f[1]
		}
		for name, value := range with {
			if value != "-" {
				list = append(list, [2]string{name, value})
			}
		}
		return list
	}
	answer, text := s.postForm(b, fields(), "name.txt", "hello")
	wantAnswer(t, answer, text, 204, "")
	info, err := c.StatObject(t.Context(), b, "user/name.txt", minio.StatObjectOptions{})
	if err != nil || string(get(t, c, b, "user/name.txt")) != "hello" || info.ContentType != "text/x" {
		t.Errorf("stored %+v, %v", info, err)
	}
	for what, test := range map[string]struct {
		fields [][2]string
		file   string
		status int
		code   string
	}{
		"another key":       {fields([2]string{"key", "other/x"}), "hello", 403, "AccessDenied"},
		"too large":         {fields(), "hello world", 400, "EntityTooLarge"},
		"too small":         {fields(), "", 400, "EntityTooSmall"},
		"another type":      {fields([2]string{"Content-Type", "text/y"}), "hello", 403, "AccessDenied"},
		"an extra field":    {fields([2]string{"x-amz-meta-more", "x"}), "hello", 403, "Extra input fields"},
		"another policy":    {fields([2]string{"policy", "e30="}), "hello", 403, "SignatureDoesNotMatch"},
		"no policy":         {[][2]string{{"key", "user/x"}}, "hello", 403, "AccessDenied"},
		"another signature": {fields([2]string{"x-amz-signature", strings.Repeat("0", 64)}), "hello", 403, "SignatureDoesNotMatch"},
		"no key":            {fields([2]string{"key", "-"}), "hello", 400, "InvalidArgument"},
	} {
		answer, text := s.postForm(b, test.fields, "refused", test.file)
		if answer.StatusCode != test.status || !strings.Contains(string(text), test.code) {
			t.Errorf("%s: %s %s", what, answer.Status, text)
		}
	}
	answer, text = s.postForm("another", fields(), "x", "hello")
	wantAnswer(t, answer, text, 403, "AccessDenied")
	if _, err := c.StatObject(t.Context(), b, "user/refused", minio.StatObjectOptions{}); minio.ToErrorResponse(err).Code != "NoSuchKey" {
		t.Errorf("a refused form was stored: %v", err)
	}

	soon := time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	answer, text = s.postForm(b, signForm(fmt.Sprintf(`{"expiration": %q, "conditions": [{"bucket": %q}, ["eq", "$key", "v2"], {"success_action_status": "201"}]}`, soon, b),
		[2]string{"key", "v2"}, [2]string{"success_action_status", "201"}), "x", "by version 2")
	wantAnswer(t, answer, text, 201, "<PostResponse>")
	answer, text = s.postForm(b, signForm(`{"expiration": "2020-01-01T00:00:00Z", "conditions": []}`, [2]string{"key", "v2"}), "x", "x")
	wantAnswer(t, answer, text, 403, "expired")
}

// signForm adds a policy to a form's fields, signed by Version 2, as older clients do it.
func signForm(policy string, fields ...[2]string) [][2]string {
	text := base64.StdEncoding.EncodeToString([]byte(policy))
	mac := hmac.New(sha1.New, []byte(secretKey))
	mac.Write([]byte(text))
	return append(fields, [2]string{"AWSAccessKeyId", accessKey}, [2]string{"policy", text}, [2]string{"signature", base64.StdEncoding.EncodeToString(mac.Sum(nil))})
}

// TestCORS answers to web pages as the configuration says.
func TestCORS(t *testing.T) {
	s := start(t, t.TempDir(), func(c *embedded.Config) { c.AllowedOrigins = []string{"https://app.example.com"} })
	precious(t, s, "cors")
	preflight := func(origin, method string) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), "OPTIONS", "http://"+s.addr+"/cors/o", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", method)
		r.Header.Set("Access-Control-Request-Headers", "authorization,x-amz-date")
		answer, _ := s.send(r)
		return answer
	}
	answer := preflight("https://app.example.com", "PUT")
	if answer.StatusCode != 200 || answer.Header.Get("Access-Control-Allow-Origin") != "https://app.example.com" ||
		answer.Header.Get("Access-Control-Allow-Headers") != "authorization,x-amz-date" || !strings.Contains(answer.Header.Get("Access-Control-Allow-Methods"), "PUT") {
		t.Errorf("preflight: %s %v", answer.Status, answer.Header)
	}
	for _, other := range [][2]string{{"https://evil.example.com", "PUT"}, {"https://app.example.com", "PATCH"}} {
		if answer := preflight(other[0], other[1]); answer.StatusCode != 403 {
			t.Errorf("preflight of %v: %s", other, answer.Status)
		}
	}
	for origin, want := range map[string]string{"https://app.example.com": "https://app.example.com", "https://evil.example.com": ""} {
		answer, text := s.do("GET", "/cors/o", "", http.Header{"Origin": {origin}}, nil)
		wantAnswer(t, answer, text, 200, "precious")
		if got := answer.Header.Get("Access-Control-Allow-Origin"); got != want || !slices.Contains(answer.Header.Values("Vary"), "Origin") {
			t.Errorf("%s may read: %q", origin, got)
		}
	}
}

// TestTags tags a bucket and an object.
func TestTags(t *testing.T) {
	s := start(t, t.TempDir())
	unchanged := precious(t, s, "tags")
	tagging := func(pairs ...string) []byte {
		var b strings.Builder
		for i := 0; i < len(pairs); i += 2 {
			fmt.Fprintf(&b, "<Tag><Key>%s</Key><Value>%s</Value></Tag>", pairs[i], pairs[i+1])
		}
		return []byte("<Tagging><TagSet>" + b.String() + "</TagSet></Tagging>")
	}
	for _, path := range []string{"/tags", "/tags/o"} {
		status := map[string]int{"/tags": 204, "/tags/o": 200}[path]
		answer, text := s.do("PUT", path, "tagging", nil, tagging("a", "1", "b", "ü"))
		wantAnswer(t, answer, text, status, "")
		answer, text = s.do("GET", path, "tagging", nil, nil)
		wantAnswer(t, answer, text, 200, "<Tag><Key>a</Key><Value>1</Value></Tag><Tag><Key>b</Key><Value>ü</Value></Tag>")
		for _, wrong := range [][]byte{tagging("a", "1", "a", "2"), tagging("", "1"), tagging(strings.Repeat("k", 129), ""), tagging("k", strings.Repeat("v", 257)), []byte("x")} {
			answer, text := s.do("PUT", path, "tagging", nil, wrong)
			wantAnswer(t, answer, text, 400, "")
		}
	}
	unchanged("tagging")
	answer, _ := s.do("HEAD", "/tags/o", "", nil, nil)
	if got := answer.Header.Get("X-Amz-Tagging-Count"); got != "2" {
		t.Errorf("%q tags", got)
	}
	for _, path := range []string{"/tags", "/tags/o"} {
		answer, text := s.do("DELETE", path, "tagging", nil, nil)
		wantAnswer(t, answer, text, 204, "")
	}
	answer, text := s.do("GET", "/tags", "tagging", nil, nil)
	wantAnswer(t, answer, text, 404, "NoSuchTagSet")
	unchanged("deleting tags")
}

// TestCORSOfTheSameHost has a page of the host by whose name the server is reached ask, as
// the daemon's own does.
func TestCORSOfTheSameHost(t *testing.T) {
	s := start(t, t.TempDir())
	preflight := func(host, origin string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, "http://"+s.addr+"/bucket/key", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", http.MethodPut)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer
	}
	for _, c := range []struct {
		host, origin string
		allowed      bool
	}{
		{"127.0.0.1:7000", "http://127.0.0.1:5000", true},
		{"gpu1:7000", "https://GPU1", true},
		{"[::1]:7000", "http://[::1]:5000", true},
		{"gpu1:7000", "http://gpu2:5000", false},
		{"gpu1:7000", "http://evil.gpu1:5000", false},
		{"gpu1:7000", "null", false},
		{"gpu1:7000", "file://gpu1", false},
	} {
		answer := preflight(c.host, c.origin)
		if got := answer.Header.Get("Access-Control-Allow-Origin"); c.allowed != (answer.StatusCode == 200) || c.allowed != (got == c.origin) {
			t.Errorf("%+v: %s, %q", c, answer.Status, got)
		}
	}
}
