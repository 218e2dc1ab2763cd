package embedded_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// awkwardKeys are legal keys that a server may stumble over.
func awkwardKeys() []string {
	return []string{
		"a/b", "a/b/c", "a", "dir/", "dir/x", "dir//x", "//", "/leading", "trailing//",
		"../../etc/passwd", "..", ".", "./x", "a/../b", "a/./b", "%2e%2e/x", "%00", "100%",
		"space key", " lead and trail ", "plus+plus", "per%20cent", "q?x=1&y=2", "#hash", "semi;colon",
		"quote'\"<>&", "back\\slash", "tilde~", "star*(paren)!", "comma,eq=at@@colon:", "@", "x@", "x+", "+", "%",
		"tab\tkey", "ünïcödé/ключ/鍵/🐑", "e\u0301", "\u00e9",
		strings.Repeat("k", 300), strings.Repeat("k", 300) + "/x", strings.Repeat("k", 199), strings.Repeat("k", 200),
		strings.Repeat("k", 200) + "..", strings.Repeat("k", 200) + "/../y", strings.Repeat("k", 201),
		strings.Repeat("鍵", 341), strings.Repeat("z", 1024), strings.Repeat("d/", 512),
		strings.Repeat("@", 1024),
	}
}

func TestAwkwardKeys(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "awkward")
	keys := awkwardKeys()
	for i, key := range keys {
		answer, text := s.do("PUT", "/"+b+"/"+key, "", nil, fmt.Append(nil, i))
		wantAnswer(t, answer, text, 200, "")
	}
	for i, key := range keys {
		answer, text := s.do("GET", "/"+b+"/"+key, "", nil, nil)
		wantAnswer(t, answer, text, 200, fmt.Sprint(i))
	}
	want := slices.Sorted(slices.Values(keys))
	for name, o := range map[string]minio.ListObjectsOptions{
		"V2": {}, "V2 in pages of 1": {MaxKeys: 1}, "V2 in pages of 7": {MaxKeys: 7}, "V1": {UseV1: true}, "V1 in pages of 3": {UseV1: true, MaxKeys: 3},
	} {
		o.Recursive = true
		var got []string
		for o := range c.ListObjectsIter(t.Context(), b, o) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			got = append(got, o.Key)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d keys listed, want %d in order", name, len(got), len(want))
			for i := range min(len(got), len(want)) {
				if got[i] != want[i] {
					t.Fatalf("%s: at %d: got %.50q, want %.50q", name, i, got[i], want[i])
				}
			}
		}
	}
	outside, err := filepath.Glob(filepath.Join(s.dir, "..", "*"))
	if err != nil || len(outside) != 1 {
		t.Errorf("something was written beside the storage directory: %q, %v", outside, err)
	}
	for _, key := range keys {
		answer, text := s.do("DELETE", "/"+b+"/"+key, "", nil, nil)
		wantAnswer(t, answer, text, 204, "")
	}
	if err := c.RemoveBucket(t.Context(), b); err != nil {
		t.Error(err)
	}
}

func TestKeysThatCannotBe(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "refused")
	for _, key := range []string{strings.Repeat("k", 1025), strings.Repeat("鍵", 342)} {
		for _, method := range []string{"PUT", "GET"} {
			answer, text := s.do(method, "/"+b+"/"+key, "", nil, nil)
			if answer.StatusCode != 400 {
				t.Errorf("%s %.20q: %s %s", method, key, answer.Status, text)
			}
		}
	}
	for _, path := range []string{"/../refused/x", "/./x", "//x", "/tmp/x", "/REFUSED/x", "/refused%00/x"} {
		answer, text := s.do("GET", path, "", nil, nil)
		if answer.StatusCode != 404 {
			t.Errorf("GET %q: %s %s", path, answer.Status, text)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "round-trip")
	for _, size := range []int{0, 1, 100, 32 << 10, 32<<10 + 1, 64 << 10, 256 << 10, 1<<20 + 7} {
		data := random(uint64(size), size)
		sum := md5.Sum(data)
		if info := put(t, c, b, "x", data); info.ETag != hex.EncodeToString(sum[:]) {
			t.Errorf("%d bytes: ETag %s is not the MD5", size, info.ETag)
		}
		if !bytes.Equal(get(t, c, b, "x"), data) {
			t.Errorf("%d bytes came back changed", size)
		}
	}
}

func TestAttributes(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "attributes")
	before := time.Now().Add(-2 * time.Second)
	opts := minio.PutObjectOptions{
		ContentType: "image/png", CacheControl: "no-store", ContentEncoding: "gzip", ContentDisposition: "inline",
		UserMetadata: map[string]string{"Owner": "somebody", "Long-Name": "x y  z"}, UserTags: map[string]string{"a": "b"},
	}
	data := random(1, 17<<20) // in parts
	for key, size := range map[string]int{"single": 100, "parts": len(data)} {
		o := opts
		o.PartSize = 5 << 20
		if key == "parts" {
			o.UserTags = nil
		}
		if _, err := c.PutObject(t.Context(), b, key, bytes.NewReader(data[:size]), int64(size), o); err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{key, "copy of " + key} {
			info, err := c.StatObject(t.Context(), b, at, minio.StatObjectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if info.Size != int64(size) || info.ContentType != "image/png" ||
				info.Metadata.Get("Cache-Control") != "no-store" || info.Metadata.Get("Content-Encoding") != "gzip" ||
				info.Metadata.Get("Content-Disposition") != "inline" ||
				!maps.Equal(map[string]string(info.UserMetadata), map[string]string{"Owner": "somebody", "Long-Name": "x y z"}) &&
					!maps.Equal(map[string]string(info.UserMetadata), map[string]string{"Owner": "somebody", "Long-Name": "x y  z"}) {
				t.Errorf("%s: got %+v", at, info)
			}
			if info.LastModified.Before(before) || info.LastModified.After(time.Now().Add(2*time.Second)) {
				t.Errorf("%s: modified at %s", at, info.LastModified)
			}
			if parts := strings.HasSuffix(info.ETag, "-4"); parts != (key == "parts") {
				t.Errorf("%s: ETag %s", at, info.ETag)
			}
			if at == key {
				if _, err := c.CopyObject(t.Context(), minio.CopyDestOptions{Bucket: b, Object: "copy of " + key}, minio.CopySrcOptions{Bucket: b, Object: key, MatchETag: info.ETag}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(get(t, c, b, "copy of "+key), data[:size]) {
			t.Errorf("the copy of %s differs", key)
		}
	}
	_, err := c.CopyObject(t.Context(), minio.CopyDestOptions{Bucket: b, Object: "single", ReplaceMetadata: true, UserMetadata: map[string]string{"New": "1"}}, minio.CopySrcOptions{Bucket: b, Object: "single"})
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.StatObject(t.Context(), b, "single", minio.StatObjectOptions{})
	if err != nil || len(info.UserMetadata) != 1 || info.UserMetadata["New"] != "1" {
		t.Errorf("metadata after its replacement: %v, %v", info.UserMetadata, err)
	}
}

func TestRanges(t *testing.T) {
	s := start(t, t.TempDir())
	core := s.core()
	b := s.bucket(core.Client, "ranges")
	data := random(2, 100_000)
	put(t, core.Client, b, "x", data)
	for spec, want := range map[string][]byte{
		"bytes=0-0": data[:1], "bytes=10-19": data[10:20], "bytes=99990-": data[99990:], "bytes=-5": data[99995:],
		"bytes=50000-200000": data[50000:], "bytes=0-99999": data, "bytes=-200000": data,
		"bytes=99999-9223372036854775807": data[99999:],
	} {
		var o minio.GetObjectOptions
		o.Set("Range", spec)
		r, info, _, err := core.GetObject(t.Context(), b, "x", o)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, want) || info.Size != int64(len(want)) {
			t.Errorf("%s: got %d bytes (%v), want %d", spec, len(got), err, len(want))
		}
	}
	var o minio.GetObjectOptions
	o.Set("Range", "bytes=100000-")
	_, _, _, err := core.GetObject(t.Context(), b, "x", o)
	wantCode(t, err, http.StatusRequestedRangeNotSatisfiable, "InvalidRange")
}

func TestConditions(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "conditions")
	big := random(3, 11<<20)
	stat := func(key string) minio.ObjectInfo {
		info, err := c.StatObject(t.Context(), b, key, minio.StatObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	write := func(key string, size int, change func(*minio.PutObjectOptions)) error {
		o := minio.PutObjectOptions{PartSize: 5 << 20}
		change(&o)
		_, err := c.PutObject(t.Context(), b, key, bytes.NewReader(big[:size]), int64(size), o)
		return err
	}
	for key, size := range map[string]int{"single": 10} {
		absent := func(o *minio.PutObjectOptions) { o.SetMatchETagExcept("*") }
		if err := write(key, size, func(o *minio.PutObjectOptions) { o.SetMatchETag("0123456789abcdef0123456789abcdef") }); minio.ToErrorResponse(err).Code != "NoSuchKey" {
			t.Errorf("%s: If-Match on nothing: %v", key, err)
		}
		if err := write(key, size, absent); err != nil {
			t.Fatalf("%s: If-None-Match on nothing: %v", key, err)
		}
		wantCode(t, write(key, size, absent), http.StatusPreconditionFailed, "PreconditionFailed")
		etag := stat(key).ETag
		if err := write(key, size, func(o *minio.PutObjectOptions) { o.SetMatchETag(etag) }); err != nil {
			t.Errorf("%s: If-Match %s: %v", key, etag, err)
		}
		wantCode(t, write(key, size, func(o *minio.PutObjectOptions) { o.SetMatchETag(strings.Repeat("0", 32) + etag[32:]) }),
			http.StatusPreconditionFailed, "PreconditionFailed")

		read := func(change func(*minio.StatObjectOptions) error) error {
			var o minio.StatObjectOptions
			if err := change(&o); err != nil {
				t.Fatal(err)
			}
			_, err := c.StatObject(t.Context(), b, key, o)
			return err
		}
		modified := stat(key).LastModified
		for name, test := range map[string]struct {
			change func(*minio.StatObjectOptions) error
			status int
		}{
			"match":            {func(o *minio.StatObjectOptions) error { return o.SetMatchETag(etag) }, 0},
			"no match":         {func(o *minio.StatObjectOptions) error { return o.SetMatchETag("nope") }, 412},
			"none match":       {func(o *minio.StatObjectOptions) error { return o.SetMatchETagExcept("nope") }, 0},
			"not modified":     {func(o *minio.StatObjectOptions) error { return o.SetMatchETagExcept(etag) }, 304},
			"modified since":   {func(o *minio.StatObjectOptions) error { return o.SetModified(modified.Add(-time.Minute)) }, 0},
			"unmodified since": {func(o *minio.StatObjectOptions) error { return o.SetUnmodified(modified.Add(-time.Minute)) }, 412},
		} {
			if got := minio.ToErrorResponse(read(test.change)).StatusCode; got != test.status {
				t.Errorf("%s: %s: status %d, want %d", key, name, got, test.status)
			}
		}
	}
}

func TestOneOfManyWritersWins(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "race")
	for round := range 10 {
		key := fmt.Sprintf("deep/%d", round)
		var mu sync.Mutex
		var winners []string
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				body := fmt.Sprint("writer ", i)
				var o minio.PutObjectOptions
				o.SetMatchETagExcept("*")
				_, err := c.PutObject(t.Context(), b, key, strings.NewReader(body), int64(len(body)), o)
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					winners = append(winners, body)
				} else if minio.ToErrorResponse(err).Code != "PreconditionFailed" {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 || string(get(t, c, b, key)) != winners[0] {
			t.Fatalf("round %d: winners %q, stored %q", round, winners, get(t, c, b, key))
		}
	}
}

// TestRefusedBeforeItIsSent: a client that waits for "100 Continue" is told of a missing
// bucket, or of a condition that does not hold, before it sends a large object.
func TestRefusedBeforeItIsSent(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	put(t, c, s.bucket(c, "bucket"), "there", []byte("x"))
	for _, refused := range []struct {
		path   string
		header http.Header
		status int
		code   string
	}{
		{"/no-such-bucket/key", nil, http.StatusNotFound, "NoSuchBucket"},
		{"/bucket/there", http.Header{"If-None-Match": {"*"}}, http.StatusPreconditionFailed, "PreconditionFailed"},
		{"/bucket/not-there", http.Header{"If-Match": {"x"}}, http.StatusNotFound, "NoSuchKey"},
	} {
		body := &countedBody{}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+s.addr+refused.path, body)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(r.Header, refused.header)
		r.ContentLength = 1 << 30
		r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		r.Header.Set("Expect", "100-continue")
		transport := &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: time.Minute}
		answer, err := transport.RoundTrip(sign(r))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		wantAnswer(t, answer, text, refused.status, refused.code)
		if n := body.read.Load(); n > 0 {
			t.Errorf("%s: %d bytes were asked for first", refused.path, n)
		}
	}
}

// countedBody is of zeros without end.
type countedBody struct{ read atomic.Int64 }

func (b *countedBody) Read(p []byte) (int, error) {
	clear(p)
	b.read.Add(int64(len(p)))
	return len(p), nil
}
