package embedded_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/storage/embedded"
)

func TestBuckets(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	names := []string{"abc", "0-1.2", strings.Repeat("x", 63), "job-5f6a"}
	for _, name := range names {
		s.bucket(c, name)
		wantCode(t, c.MakeBucket(t.Context(), name, minio.MakeBucketOptions{}), 409, "BucketAlreadyOwnedByYou")
	}
	for _, name := range []string{"ab", "Abc", "a_b_c", "-abc", "abc-", "a..b", "a-.b", "a.-b", "192.168.1.1", "a b", strings.Repeat("x", 64), "žluťoučký"} {
		answer, text := s.do("PUT", "/"+name, "", nil, nil)
		wantAnswer(t, answer, text, 400, "InvalidBucketName")
	}
	listed, err := c.ListBuckets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range listed {
		got = append(got, b.Name)
		if age := time.Since(b.CreationDate); age < -time.Minute || age > time.Minute {
			t.Errorf("%s was created at %s", b.Name, b.CreationDate)
		}
	}
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("listed %q", got)
	}
	put(t, c, "abc", "deep/down/x", []byte("x"))
	wantCode(t, c.RemoveBucket(t.Context(), "abc"), 409, "BucketNotEmpty")
	if err := c.RemoveObject(t.Context(), "abc", "deep/down/x", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "buckets", "abc")); err != nil || len(left) > 0 {
		t.Errorf("empty directories stay behind: %v, %v", left, err)
	}
	if err := c.RemoveBucket(t.Context(), "abc"); err != nil {
		t.Fatal(err)
	}
	if there, err := c.BucketExists(t.Context(), "abc"); there || err != nil {
		t.Errorf("after its removal: %v, %v", there, err)
	}
	wantCode(t, c.RemoveBucket(t.Context(), "abc"), 404, "NoSuchBucket")
	_, err = c.PutObject(t.Context(), "abc", "x", strings.NewReader("x"), 1, minio.PutObjectOptions{})
	wantCode(t, err, 404, "NoSuchBucket")
}

func TestBucketDeletedUnderWriters(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	for round := range 5 {
		b := s.bucket(c, fmt.Sprint("short-lived-", round))
		var wg sync.WaitGroup
		var mu sync.Mutex
		stored := map[string]bool{}
		for i := range 8 {
			wg.Go(func() {
				key := fmt.Sprintf("dir%d/x", i%3)
				_, err := c.PutObject(t.Context(), b, key, strings.NewReader("x"), 1, minio.PutObjectOptions{})
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					stored[key] = true
				} else if minio.ToErrorResponse(err).Code != "NoSuchBucket" {
					t.Error(err)
				}
			})
		}
		var removed error
		wg.Go(func() { removed = c.RemoveBucket(t.Context(), b) })
		wg.Wait()
		if removed == nil && len(stored) > 0 {
			t.Errorf("round %d: the bucket is gone and with it what was acknowledged: %v", round, stored)
		}
		if removed != nil {
			wantCode(t, removed, 409, "BucketNotEmpty")
			for key := range stored {
				get(t, c, b, key)
			}
		}
	}
}

func TestManyObjects(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "many")
	const n = 1100 // over a page, and over a batch of deletions
	var want []string
	var wg sync.WaitGroup
	keys := make(chan string)
	for range 16 {
		wg.Go(func() {
			for key := range keys {
				put(t, c, b, key, []byte(key))
			}
		})
	}
	for i := range n {
		key := fmt.Sprintf("outputs/%04d", i)
		want = append(want, key)
		keys <- key
	}
	close(keys)
	wg.Wait()
	for _, o := range []minio.ListObjectsOptions{{}, {UseV1: true}, {MaxKeys: 333}, {Prefix: "outputs/"}, {Prefix: "outputs/1", MaxKeys: 10}, {Prefix: "outputs/", StartAfter: "outputs/0999"}} {
		o.Recursive = true
		expected := slices.DeleteFunc(slices.Clone(want), func(k string) bool { return !strings.HasPrefix(k, o.Prefix) || k <= o.StartAfter })
		var got []string
		for info := range c.ListObjectsIter(t.Context(), b, o) {
			if info.Err != nil {
				t.Fatal(info.Err)
			}
			if info.Size != int64(len(info.Key)) || info.ETag == "" {
				t.Fatalf("listed %+v", info)
			}
			got = append(got, info.Key)
		}
		if !slices.Equal(got, expected) {
			t.Errorf("%+v: %d objects, want %d", o, len(got), len(expected))
		}
	}
	results, err := c.RemoveObjectsWithIter(t.Context(), b, func(yield func(minio.ObjectInfo) bool) {
		for _, key := range want {
			if !yield(minio.ObjectInfo{Key: key}) {
				return
			}
		}
	}, minio.RemoveObjectsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	removed := 0
	for r := range results {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		removed++
	}
	if removed != n {
		t.Errorf("%d were removed", removed)
	}
	if err := c.RemoveBucket(t.Context(), b); err != nil {
		t.Error(err)
	}
}

func TestMultipart(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	core := s.core()
	b := s.bucket(core.Client, "multipart")
	begin := func(key string) string {
		id, err := core.NewMultipartUpload(t.Context(), b, key, minio.PutObjectOptions{ContentType: "text/x"})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	part := func(key, id string, n int, data []byte) minio.CompletePart {
		p, err := core.PutObjectPart(t.Context(), b, key, id, n, bytes.NewReader(data), int64(len(data)), minio.PutObjectPartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return minio.CompletePart{PartNumber: n, ETag: p.ETag}
	}

	// An upload goes on after a restart.
	id := begin("k/x")
	whole := random(1, 6<<20)
	parts := []minio.CompletePart{part("k/x", id, 1, []byte("replaced below")), part("k/x", id, 7, whole[5<<20:])}
	parts[0] = part("k/x", id, 1, whole[:5<<20])
	s.stop()
	s = start(t, dir)
	core = s.core()
	list, err := core.ListMultipartUploads(t.Context(), b, "k", "", "", "", 10)
	if err != nil || len(list.Uploads) != 1 || list.Uploads[0].Key != "k/x" || list.Uploads[0].UploadID != id {
		t.Errorf("uploads after a restart: %+v, %v", list, err)
	}
	listed, err := core.ListObjectParts(t.Context(), b, "k/x", id, 1, 10)
	if err != nil || len(listed.ObjectParts) != 1 || listed.ObjectParts[0].PartNumber != 7 {
		t.Errorf("parts after 1: %+v, %v", listed, err)
	}
	if _, err := core.StatObject(t.Context(), b, "k/x", minio.StatObjectOptions{}); minio.ToErrorResponse(err).Code != "NoSuchKey" {
		t.Errorf("an upload shows before it is completed: %v", err)
	}
	for code, bad := range map[string][]minio.CompletePart{
		"InvalidPart":      {parts[0], {PartNumber: 3, ETag: parts[0].ETag}},
		"InvalidPartOrder": {parts[1], parts[0]},
	} {
		_, err := core.CompleteMultipartUpload(t.Context(), b, "k/x", id, bad, minio.PutObjectOptions{})
		wantCode(t, err, 400, code)
	}
	_, err = core.CompleteMultipartUpload(t.Context(), b, "other", id, parts, minio.PutObjectOptions{})
	wantCode(t, err, 404, "NoSuchUpload")
	for range 2 { // the second time as a client that missed the answer
		if _, err := core.CompleteMultipartUpload(t.Context(), b, "k/x", id, parts, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := core.StatObject(t.Context(), b, "k/x", minio.StatObjectOptions{})
	if err != nil || !bytes.Equal(get(t, core.Client, b, "k/x"), whole) || info.ContentType != "text/x" || !strings.HasSuffix(info.ETag, "-2") {
		t.Errorf("completed: %+v, %v", info, err)
	}

	// Conditions hold at completion.
	id = begin("k/x")
	p := part("k/x", id, 1, []byte("x"))
	complete := func(header, value string) (*http.Response, []byte) {
		body := fmt.Sprintf("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>%s</ETag></Part></CompleteMultipartUpload>", p.ETag)
		return s.do("POST", "/"+b+"/k/x", "uploadId="+id, http.Header{header: {value}}, []byte(body))
	}
	answer, text := complete("If-None-Match", "*")
	wantAnswer(t, answer, text, 412, "PreconditionFailed")
	answer, text = complete("If-Match", `"`+strings.Repeat("0", 32)+`-2"`)
	wantAnswer(t, answer, text, 412, "PreconditionFailed")
	answer, text = complete("If-Match", `"`+info.ETag+`"`)
	wantAnswer(t, answer, text, 200, "CompleteMultipartUploadResult")

	// Parts copied from objects.
	put(t, core.Client, b, "source", whole)
	id = begin("copied")
	first, err := core.CopyObjectPart(t.Context(), b, "source", b, "copied", id, 1, 100, 5<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := core.CopyObjectPart(t.Context(), b, "source", b, "copied", id, 2, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := core.CompleteMultipartUpload(t.Context(), b, "copied", id, []minio.CompletePart{first, second}, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, core.Client, b, "copied"), append(bytes.Clone(whole[100:100+5<<20]), whole...)) {
		t.Error("parts copied from objects make another object")
	}

	// Aborted, or its bucket gone.
	id = begin("aborted")
	part("aborted", id, 1, whole)
	if err := core.AbortMultipartUpload(t.Context(), b, "aborted", id); err != nil {
		t.Fatal(err)
	}
	wantCode(t, core.AbortMultipartUpload(t.Context(), b, "aborted", id), 404, "NoSuchUpload")
	s.bucket(core.Client, "goes")
	if _, err := core.NewMultipartUpload(t.Context(), "goes", "x", minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := core.RemoveBucket(t.Context(), "goes"); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "uploads", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("uploads left: %v, %v", left, err)
	}
}

func TestManyParts(t *testing.T) {
	s := start(t, t.TempDir())
	core := s.core()
	b := s.bucket(core.Client, "many-parts")
	const n = 1100
	id, err := core.NewMultipartUpload(t.Context(), b, "x", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	parts := make([]minio.CompletePart, n)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < n; i += 16 {
				p, err := core.PutObjectPart(t.Context(), b, "x", id, i+1, strings.NewReader(fmt.Sprintf("%04d", i)), 4, minio.PutObjectPartOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.ETag}
			}
		})
	}
	wg.Wait()
	var marker, seen int
	for {
		page, err := core.ListObjectParts(t.Context(), b, "x", id, marker, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.ObjectParts {
			if seen++; p.PartNumber != seen {
				t.Fatalf("part %d is listed at %d", p.PartNumber, seen)
			}
		}
		if marker = page.NextPartNumberMarker; !page.IsTruncated {
			break
		}
	}
	if seen != n {
		t.Errorf("%d parts are listed", seen)
	}
	// All but the last are too small for an object.
	_, err = core.CompleteMultipartUpload(t.Context(), b, "x", id, parts, minio.PutObjectOptions{})
	wantCode(t, err, 400, "EntityTooSmall")
	if _, err := core.CompleteMultipartUpload(t.Context(), b, "x", id, parts[n-1:], minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := get(t, core.Client, b, "x"); string(got) != "1099" {
		t.Errorf("%q came back", got)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "parts", id, "part-*")); err != nil || len(left) != 1 {
		t.Errorf("%d parts are kept (%v), want the chosen one", len(left), err)
	}
}

func TestOrphanedUploadsAreReaped(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	core := s.core()
	b := s.bucket(core.Client, "orphans")
	for _, key := range []string{"old", "recent"} {
		id, err := core.NewMultipartUpload(t.Context(), b, key, minio.PutObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := core.PutObjectPart(t.Context(), b, key, id, 1, strings.NewReader("x"), 1, minio.PutObjectPartOptions{}); err != nil {
			t.Fatal(err)
		}
		if key == "old" {
			long := time.Now().Add(-8 * 24 * time.Hour)
			if err := os.Chtimes(filepath.Join(dir, "uploads", b, id), long, long); err != nil {
				t.Fatal(err)
			}
		}
	}
	uploads := func(c *minio.Core) (keys []string) {
		list, err := c.ListMultipartUploads(t.Context(), b, "", "", "", "", 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list.Uploads {
			keys = append(keys, u.Key)
		}
		return keys
	}
	s.stop()
	s = start(t, dir) // gives up the old one
	if got := uploads(s.core()); !slices.Equal(got, []string{"recent"}) {
		t.Errorf("uploads after opening: %q", got)
	}
	s.stop()
	s = start(t, dir, func(c *embedded.Config) { c.UploadExpiry = 3 * time.Second })
	core = s.core()
	eventually(t, "the recent upload to be given up", func() bool { return len(uploads(core)) == 0 })
}
