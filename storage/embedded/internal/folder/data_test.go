package folder

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// complete makes an object of parts with this content.
func complete(t testing.TB, s *Store, bucket, key string, parts ...string) *Info {
	t.Helper()
	u, err := s.CreateUpload(Upload{Bucket: bucket, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	var chosen []Part
	for i, content := range parts {
		info, err := s.PutPart(u, 2*i+1, strings.NewReader(content), int64(len(content)), nil)
		if err != nil {
			t.Fatal(err)
		}
		chosen = append(chosen, Part{Number: 2*i + 1, ETag: info.ETag})
	}
	info, err := s.CompleteUpload(t.Context(), bucket, key, u.ID, chosen, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func content(t testing.TB, o *Object) string {
	t.Helper()
	var b bytes.Buffer
	if err := o.CopyTo(&b, 0, o.Size, 3, func() {}); err != nil {
		t.Fatal(err)
	}
	at := make([]byte, o.Size)
	if n, err := o.ReadAt(at, 0); err != nil || !bytes.Equal(at[:n], b.Bytes()) {
		t.Fatalf("ReadAt gives %q, %v; CopyTo %q", at[:n], err, &b)
	}
	return b.String()
}

func bucket(t testing.TB, s *Store) string {
	t.Helper()
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	return "bucket"
}

func left(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// TestObjectInParts reads an object that lies in several files, in every way.
func TestObjectInParts(t *testing.T) {
	s := open(t)
	b := bucket(t, s)
	complete(t, s, b, "x", "first", "secon", "", "third part")
	const whole = "firstseconthird part"
	o, err := s.Open(b, "x")
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, o); got != whole {
		t.Fatalf("reads %q", got)
	}
	for from := range len(whole) + 1 {
		for to := from; to <= len(whole); to++ {
			var part bytes.Buffer
			if err := o.CopyTo(&part, int64(from), int64(to-from), 4, func() {}); err != nil || part.String() != whole[from:to] {
				t.Fatalf("%d to %d: %q, %v", from, to, &part, err)
			}
		}
	}
	if n, err := o.ReadAt(make([]byte, 10), int64(len(whole))-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
	parts, more, err := o.PartInfos(1, 2)
	if err != nil || !more || len(parts) != 2 || parts[0].Number != 3 || parts[1].Number != 5 || parts[1].Size != 0 {
		t.Errorf("parts %+v, %v, %v", parts, more, err)
	}

	// A reader goes on with what it opened, and the last one's end removes it.
	if _, err := s.Put(b, "x", strings.NewReader("new"), 3, Info{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := content(t, o); got != whole {
		t.Errorf("an overwritten object reads as %q", got)
	}
	if dirs := left(t, s.partsDir()); len(dirs) != 1 {
		t.Errorf("data while it is read: %q", dirs)
	}
	o.Close()
	if dirs := append(left(t, s.partsDir()), left(t, s.tmp)...); len(dirs) != 0 {
		t.Errorf("data of an overwritten object: %q", dirs)
	}
	complete(t, s, b, "y", "abc")
	if err := s.Delete(t.Context(), b, []string{"y"}, nil)[0]; err != nil {
		t.Fatal(err)
	}
	if dirs := append(left(t, s.partsDir()), left(t, s.tmp)...); len(dirs) != 0 {
		t.Errorf("data of a deleted object: %q", dirs)
	}
}

// TestCopiesShareData copies large objects: none of the copies takes room, and
// each outlives the others.
func TestCopiesShareData(t *testing.T) {
	s := open(t)
	b := bucket(t, s)
	s.linkAtLeast = 1 << 10
	large := strings.Repeat("x", 1<<10)
	if _, err := s.Put(b, "single", strings.NewReader(large), int64(len(large)), Info{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	complete(t, s, b, "parts", large[1:], "end")
	for _, key := range []string{"single", "parts"} {
		for _, step := range [][2]string{{key, key + "-2"}, {key + "-2", key + "-3"}} {
			from, err := s.Open(b, step[0])
			if err != nil {
				t.Fatal(err)
			}
			info, err := s.Copy(t.Context(), from, b, step[1], Info{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if info.Data == "" || info.ETag != from.ETag || info.Size != from.Size {
				t.Errorf("the copy %s is %+v", step[1], info)
			}
			from.Close()
			if err := s.Delete(t.Context(), b, step[:1], nil)[0]; err != nil {
				t.Fatal(err)
			}
			copied, err := s.Open(b, step[1])
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"single": large, "parts": large[1:] + "end"}[key]
			var got bytes.Buffer
			if err := copied.CopyTo(&got, 0, copied.Size, 1<<20, func() {}); err != nil || got.String() != want {
				t.Errorf("%s: %d bytes, %v", step[1], got.Len(), err)
			}
			copied.Close()
		}
	}
	if dirs := left(t, s.partsDir()); len(dirs) != 2 {
		t.Errorf("data: %q", dirs)
	}
}

// TestRepair opens directories as a crash leaves them.
func TestRepair(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b := bucket(t, s)
	kept := complete(t, s, b, "kept", "data of an object")
	moving := complete(t, s, b, "moving", "not moved to its place yet")
	deleted := complete(t, s, b, "deleted", "its object is gone")
	u, err := s.CreateUpload(Upload{Bucket: b, Key: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.MkdirAll(filepath.Join(s.uploadsDir(), b), 0o700),
		os.Rename(filepath.Join(s.partsDir(), moving.Data), s.uploadDir(b, moving.Data)),
		os.Remove(filepath.Join(s.bucketDir(b), "deleted@")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o, err := s.Open(b, "moving") // also before it is moved
	if err != nil || content(t, o) != "not moved to its place yet" {
		t.Errorf("before: %v", err)
	}
	o.Close()
	if err := s.AbortUpload(b, "moving", moving.Data); err != nil {
		t.Fatal(err)
	}
	if o, err = s.Open(b, "moving"); err != nil || content(t, o) != "not moved to its place yet" {
		t.Errorf("aborting the upload it came from: %v", err)
	}
	o.Close()
	if err := os.Rename(filepath.Join(s.partsDir(), moving.Data), s.uploadDir(b, moving.Data)); err != nil {
		t.Fatal(err)
	}
	s.lock.Close() // as a kill does
	s.index.close()
	if s, err = Open(dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for id, want := range map[string]bool{kept.Data: true, moving.Data: true, deleted.Data: false} {
		if _, err := os.Stat(filepath.Join(s.partsDir(), id)); (err == nil) != want {
			t.Errorf("data %s: %v", id, err)
		}
	}
	if uploads, err := s.Uploads(t.Context(), b); err != nil || len(uploads) != 1 || uploads[0].ID != u.ID {
		t.Errorf("uploads %+v, %v", uploads, err)
	}
	if o, err = s.Open(b, "moving"); err != nil || content(t, o) != "not moved to its place yet" {
		t.Errorf("after: %v", err)
	}
	o.Close()
}

// TestDeletedBucketLeavesNothing deletes a bucket with an upload and settings,
// and stops short of the bucket itself, as a crash may.
func TestDeletedBucketLeavesNothing(t *testing.T) {
	s := open(t)
	for _, crash := range []bool{false, true} {
		b := bucket(t, s)
		u, err := s.CreateUpload(Upload{Bucket: b, Key: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetSettings(b, Settings{Tags: map[string]string{"a": "b"}}); err != nil {
			t.Fatal(err)
		}
		if crash {
			if err := s.discard(filepath.Join(s.uploadsDir(), b)); err != nil { // the first step
				t.Fatal(err)
			}
		}
		if err := s.DeleteBucket(b); err != nil {
			t.Fatal(err)
		}
		b = bucket(t, s)
		if _, err := s.GetUpload(b, "x", u.ID); !errors.Is(err, ErrNoUpload) {
			t.Errorf("the next bucket of the name has the upload: %v", err)
		}
		if settings, err := s.Settings(b); err != nil || len(settings.Tags) != 0 {
			t.Errorf("the next bucket of the name has the settings %v, %v", settings, err)
		}
		if err := s.DeleteBucket(b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIndexAfterKill kills a process that was writing to an indexed directory:
// what the index and the directory disagree on is put right.
func TestIndexAfterKill(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.index.atBytes = 0
	b := bucket(t, s)
	for i := range 20 {
		if _, err := s.Put(b, fmt.Sprintf("k%02d/x", i), strings.NewReader("x"), 1, Info{}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"k50@", "k07b"} { // added, and the file never came
		if err := s.index.add(s.bucketDir(b), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.index.add(s.bucketDir(b)+"/k03", "y@"); err != nil {
		t.Fatal(err)
	}
	s.lock.Close()
	s.index.close()
	if s, err = Open(dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		page, err := s.List(t.Context(), b, Query{Max: 100})
		if err != nil || len(page.Items) != 20 || page.Next != "" {
			t.Fatalf("listed %d, %v", len(page.Items), err)
		}
	}
	entries, indexed, err := s.index.page(s.bucketDir(b), "")
	if err != nil || !indexed || len(entries) != 20 {
		t.Errorf("the index knows %d entries, %v, %v", len(entries), indexed, err)
	}
}

// sparseUpload makes an upload of parts that hold nothing but zeros and take no
// room, and returns its id and parts.
func sparseUpload(t testing.TB, s *Store, bucket, key string, parts int, size int64) (string, []Part) {
	t.Helper()
	u, err := s.CreateUpload(Upload{Bucket: bucket, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	var chosen []Part
	for n := 1; n <= parts; n++ {
		sum := md5.Sum(fmt.Append(nil, n))
		info := &Info{Key: key, ETag: hex.EncodeToString(sum[:]), Modified: now(), Size: size}
		footer, err := encodeFooter(info)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(s.uploadDir(bucket, u.ID), partFile(n)))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(size), func() error { _, err := f.WriteAt(footer, size); return err }(), f.Close()); err != nil {
			t.Fatal(err)
		}
		chosen = append(chosen, Part{Number: n, ETag: info.ETag})
	}
	return u.ID, chosen
}

// TestLargeUpload completes an upload of 50 GB without copying it.
func TestLargeUpload(t *testing.T) {
	s := open(t)
	b := bucket(t, s)
	const parts, size = 1000, 50 << 20
	id, chosen := sparseUpload(t, s, b, "x", parts, size)
	info, err := s.CompleteUpload(t.Context(), b, "x", id, chosen, nil, nil)
	if err != nil || info.Size != parts*size || len(info.Parts) != 1 {
		t.Fatalf("completed: %+v, %v", info, err)
	}
	o, err := s.Open(b, "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	end := make([]byte, 100)
	if n, err := o.ReadAt(end, info.Size-100); n != 100 || err != nil || !bytes.Equal(end, make([]byte, 100)) {
		t.Errorf("its end: %d bytes %q, %v", n, end, err)
	}
}

// BenchmarkListPage lists a page of 1,000 out of the middle of a flat bucket.
func BenchmarkListPage(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b)
			name := bucket(b, s)
			if _, err := s.Put(name, "model", strings.NewReader("x"), 1, Info{}, nil, nil); err != nil {
				b.Fatal(err)
			}
			object, err := os.ReadFile(filepath.Join(s.bucketDir(name), "model@"))
			if err != nil {
				b.Fatal(err)
			}
			var model string
			for i := range n { // not by Put: an fsync for each would take an hour
				path := filepath.Join(s.bucketDir(name), fmt.Sprintf("key-%07d@", i))
				if i%50_000 == 0 { // a file has no more than 65,000 names
					model = path
					err = os.WriteFile(path, object, 0o600)
				} else {
					err = os.Link(model, path)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			for i := range 5 { // it grows, and is indexed then
				if _, err := s.Put(name, fmt.Sprint("other-", i), strings.NewReader("x"), 1, Info{}, nil, nil); err != nil {
					b.Fatal(err)
				}
			}
			after := fmt.Sprintf("key-%07d", n/2)
			for b.Loop() {
				page, err := s.List(context.Background(), name, Query{Max: 1000, After: after})
				if err != nil || len(page.Items) != 1000 {
					b.Fatal(len(page.Items), err)
				}
			}
		})
	}
}

// lasting is a context that ends when it was asked for its error so many times.
type lasting struct {
	context.Context
	left int
}

func (c *lasting) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestCopyEnds: the copy of a large object ends with its context, and not when all of it
// is copied.
func TestCopyEnds(t *testing.T) {
	s := open(t)
	b := bucket(t, s)
	s.linkAtLeast = 1 << 40
	if _, err := s.Put(b, "large", bytes.NewReader(make([]byte, 3*syncEvery)), 3*syncEvery, Info{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	src, err := s.Open(b, "large")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	d, err := s.newDraft()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := d.appendObject(&lasting{t.Context(), 1}, src); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if st, err := d.file.Stat(); err != nil || st.Size() != syncEvery {
		t.Errorf("%d bytes copied, %v", st.Size(), err)
	}
}
