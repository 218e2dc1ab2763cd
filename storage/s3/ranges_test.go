package s3

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// testRange is the size of ranges in these tests.
const testRange = 64 << 10

// objectServer serves one object, by ranges.
type objectServer struct {
	content []byte
	etag    string
	// before is called with the first byte of each GET; it answers the request itself
	// when it returns false.
	before func(w http.ResponseWriter, first int64) bool
}

func (s *objectServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	at, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		http.Error(w, "no range", http.StatusBadRequest)
		return
	}
	if s.before != nil && !s.before(w, at) {
		return
	}
	w.Header().Set("ETag", s.etag)
	http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(s.content))
}

func newObject(t *testing.T, size int) (*objectServer, *objects) {
	t.Helper()
	object := &objectServer{content: make([]byte, size), etag: `"one"`}
	_, _ = rand.NewChaCha8([32]byte{5}).Read(object.content)
	server := httptest.NewServer(object)
	t.Cleanup(server.Close)
	o := newStore(t, Config{URL: server.URL, Tries: 2, Patience: time.Millisecond}).objects
	o.rangeSize = testRange
	return object, o
}

// copied is the file that copyRanges made, and its error.
func copied(t *testing.T, o *objects, path string, size int) ([]byte, error) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	fatal(t, err)
	defer file.Close()
	offset, err := file.Seek(0, io.SeekEnd)
	fatal(t, err)
	failed := o.copyRanges(t.Context(), "bucket", "key", "one", offset, int64(size), file)
	content, err := os.ReadFile(path)
	fatal(t, err)
	if held := len(o.ranges); held != 0 {
		t.Errorf("%d ranges stay under way", held)
	}
	return content, failed
}

// TestRanges copies an object by several requests at a time: no answer begins before all
// that may be under way are.
func TestRanges(t *testing.T) {
	const size = (maxRanges+3)*testRange + 123
	object, o := newObject(t, size)
	var under sync.WaitGroup
	under.Add(1 + maxRanges)
	object.before = func(_ http.ResponseWriter, first int64) bool {
		if first < (1+maxRanges)*testRange {
			under.Done()
			under.Wait()
		}
		return true
	}
	content, err := copied(t, o, filepath.Join(t.TempDir(), "file"), size)
	if err != nil || !bytes.Equal(content, object.content) {
		t.Errorf("%d bytes of %d, or others: %v", len(content), size, err)
	}
}

// TestRangesOneByOne copies an object while other downloads have all the requests.
func TestRangesOneByOne(t *testing.T) {
	const size = 3 * testRange
	object, o := newObject(t, size)
	for range maxRanges {
		o.ranges <- struct{}{}
	}
	path := filepath.Join(t.TempDir(), "file")
	file, err := os.Create(path)
	fatal(t, err)
	defer file.Close()
	fatal(t, o.copyRanges(t.Context(), "bucket", "key", "one", 0, size, file))
	if content, err := os.ReadFile(path); err != nil || !bytes.Equal(content, object.content) {
		t.Errorf("%d bytes of %d, or others: %v", len(content), size, err)
	}
}

// TestRangesResume breaks a copy off at any of its ranges: what is in the file then are
// the object's first bytes, and the next copy fetches none of them again.
func TestRangesResume(t *testing.T) {
	const size = 6*testRange + 5
	for broken := range 7 {
		object, o := newObject(t, size)
		at := int64(broken) * testRange
		object.before = func(w http.ResponseWriter, first int64) bool {
			if first == at {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return first != at
		}
		path := filepath.Join(t.TempDir(), "file")
		content, err := copied(t, o, path, size)
		if !errdefs.IsUnavailable(err) || int64(len(content)) != at || !bytes.Equal(content, object.content[:at]) {
			t.Fatalf("broken at %d: %d bytes, or others: %v", at, len(content), err)
		}
		var mu sync.Mutex
		lowest := int64(size)
		object.before = func(_ http.ResponseWriter, first int64) bool {
			mu.Lock()
			defer mu.Unlock()
			lowest = min(lowest, first)
			return true
		}
		content, err = copied(t, o, path, size)
		if err != nil || !bytes.Equal(content, object.content) || lowest != at {
			t.Fatalf("resumed at %d, of %d: %d bytes of %d, or others: %v", lowest, at, len(content), size, err)
		}
	}
}

// TestRangesOfOtherVersion replaces the object in the middle of a copy, and has a server
// answer other bytes than those that were asked for.
func TestRangesOfOtherVersion(t *testing.T) {
	const size = 4 * testRange
	for name, c := range map[string]struct {
		change func(object *objectServer, w http.ResponseWriter) bool
		want   string
	}{
		"Replaced": {func(object *objectServer, w http.ResponseWriter) bool {
			w.WriteHeader(http.StatusPreconditionFailed)
			return false
		}, "not the expected one"},
		"RangeIgnored": {func(object *objectServer, w http.ResponseWriter) bool {
			w.Header().Set("ETag", object.etag)
			w.Header().Set("Last-Modified", time.Unix(1, 0).UTC().Format(http.TimeFormat))
			_, _ = w.Write(object.content[:testRange])
			return false
		}, "answered other bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			object, o := newObject(t, size)
			object.before = func(w http.ResponseWriter, first int64) bool {
				return first != 2*testRange || c.change(object, w)
			}
			content, err := copied(t, o, filepath.Join(t.TempDir(), "file"), size)
			if err == nil || !strings.Contains(err.Error(), c.want) || !bytes.Equal(content, object.content[:2*testRange]) {
				t.Errorf("%d bytes, or others: %v", len(content), err)
			}
		})
	}
}
