package folder

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// later stores objects for Sync.
func later(t *testing.T, s *Store, bucket string, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if err := s.PutLater(bucket, key, strings.NewReader(key), int64(len(key)), Info{}, nil); err != nil {
			t.Fatal(err)
		}
		o, err := s.Open(bucket, key)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, o); got != key {
			t.Errorf("%s reads as %q", key, got)
		}
		o.Close()
	}
}

func TestSync(t *testing.T) {
	s := open(t)
	b := bucket(t, s)
	if err := s.Sync(); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	later(t, s, b, "a", "dir/a", "dir/a", "dir/b", "gone", "gone/too")
	if s.unsynced.n != 5 {
		t.Errorf("%d objects wait for Sync", s.unsynced.n)
	}
	for i, err := range s.Delete(t.Context(), b, []string{"gone", "gone/too"}, nil) {
		if err != nil {
			t.Errorf("delete %d: %v", i, err)
		}
	}
	if err := s.Sync(); err != nil || s.unsynced.n != 0 {
		t.Errorf("of some: %v; %d are left", err, s.unsynced.n)
	}
	for i := range 2 * syncEach {
		later(t, s, b, fmt.Sprint("many/", i))
	}
	if err := s.Sync(); err != nil || s.unsynced.n != 0 {
		t.Errorf("of many: %v; %d are left", err, s.unsynced.n)
	}
	later(t, s, b, "a")
	if err := s.PutLater(b, "a", failing{errors.New("cut")}, 1, Info{}, nil); err == nil {
		t.Error("a body that fails was stored")
	}
	if err := s.Sync(); err != nil {
		t.Error(err)
	}
	if left := left(t, s.tmp); len(left) > 0 {
		t.Errorf("left in tmp/: %q", left)
	}
}

// What a disk did not keep once is never said to be durable.
func TestSyncFails(t *testing.T) {
	s := open(t)
	b := bucket(t, s)
	later(t, s, b, "a")
	at, err := s.locate(b, "a")
	if err != nil {
		t.Fatal(err)
	}
	// A link to itself cannot be opened, and is not missing.
	if err := errors.Join(os.Remove(at.path()), os.Symlink(at.path(), at.path())); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err == nil {
		t.Fatal("what cannot be opened is durable")
	}
	if err := os.Remove(at.path()); err != nil {
		t.Fatal(err)
	}
	later(t, s, b, "a")
	if err := s.Sync(); err == nil {
		t.Error("Sync succeeded after it had failed")
	}
}

// Directories that a bucket is made with are no objects, and in nobody's way.
func TestCreateBucketWithDirectories(t *testing.T) {
	s := open(t)
	if _, err := s.CreateBucketWith("with", "inputs/input", strings.NewReader("x"), 1, Info{}, nil, "outputs", "more"); err != nil {
		t.Fatal(err)
	}
	for _, q := range []Query{{Max: 10}, {Max: 10, Delimiter: "/"}} {
		page, err := s.List(t.Context(), "with", q)
		if err != nil || len(page.Items) != 1 || page.Next != "" {
			t.Errorf("%+v: %+v, %v", q, page, err)
		}
	}
	if _, err := s.Put("with", "outputs/output", strings.NewReader("y"), 1, Info{}, nil, nil); err != nil {
		t.Error(err)
	}
	if err := s.DeleteBucket("with"); !errors.Is(err, ErrBucketNotEmpty) {
		t.Error(err)
	}
	if err := errors.Join(s.Delete(t.Context(), "with", []string{"inputs/input", "outputs/output"}, nil)...); err != nil {
		t.Error(err)
	}
	if err := s.DeleteBucket("with"); err != nil {
		t.Error(err)
	}
}
