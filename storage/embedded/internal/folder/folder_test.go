package folder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"pgregory.net/rapid"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// FuzzNames looks at how any key becomes a path: it stays below the bucket, in
// names that any file system takes, and can be read back.
func FuzzNames(f *testing.F) {
	for _, key := range []string{"a/b", "../x", "/", "//", ".", strings.Repeat("x", 200) + "..", strings.Repeat("é", 150) + "/%", "a@+%\x00"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if ValidKey(key) != nil {
			t.Skip()
		}
		dirs, last := split(key)
		var back strings.Builder
		for _, name := range append(dirs, last+fileMark) {
			if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
				t.Fatalf("%q gives the name %q", key, name)
			}
			e, ok := decode(name)
			if !ok || e.object != (name == last+fileMark && strings.HasSuffix(name, fileMark)) {
				t.Fatalf("%q gives the name %q, which reads as %+v", key, name, e)
			}
			back.WriteString(e.begins)
		}
		if back.String() != key {
			t.Fatalf("%q is read back as %q", key, back.String())
		}
	})
}

// TestListAgainstModel compares listings with what S3's rules say of the sorted
// keys, page by page.
func TestListAgainstModel(t *testing.T) {
	t.Run("Sorted", func(t *testing.T) { testListAgainstModel(t, open(t)) })
	t.Run("Indexed", func(t *testing.T) { // every directory, in the smallest transactions
		s := open(t)
		s.index.atBytes, s.index.perPage = 0, 1
		testListAgainstModel(t, s)
	})
	t.Run("IndexedWhenListed", func(t *testing.T) {
		s := open(t)
		s.index.atEntries, s.index.perPage = 1, 2
		testListAgainstModel(t, s)
	})
}

func testListAgainstModel(t *testing.T, s *Store) {
	ctx := context.Background()
	key := rapid.Custom(func(t *rapid.T) string {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "/", "/", "-", ".", "0", "é", "%", strings.Repeat("k", 120)}), 1, 6).Draw(t, "parts")
		return strings.Join(parts, "")
	})
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		bucket := fmt.Sprintf("model-%d", round)
		if err := s.CreateBucket(bucket); err != nil {
			t.Fatal(err)
		}
		stored := rapid.SliceOfNDistinct(key, 0, 12, rapid.ID).Draw(t, "keys")
		for _, k := range stored {
			if _, err := s.Put(bucket, k, strings.NewReader(k), int64(len(k)), Info{}, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		// Some are deleted again, and leave no trace.
		for _, k := range rapid.SliceOfDistinct(rapid.SampledFrom(append(stored, "none")), rapid.ID).Draw(t, "deleted") {
			if err := s.Delete(ctx, bucket, []string{k}, nil)[0]; err != nil {
				t.Fatal(err)
			}
			stored = slices.DeleteFunc(slices.Clone(stored), func(other string) bool { return other == k })
		}
		slices.Sort(stored)
		q := Query{
			Prefix:    rapid.OneOf(rapid.Just(""), rapid.SampledFrom([]string{"a", "a/", "/", "b/a", "kk"}), key).Draw(t, "prefix"),
			Delimiter: rapid.SampledFrom([]string{"", "/", "-", "a/", strings.Repeat("k", 60)}).Draw(t, "delimiter"),
			After:     rapid.OneOf(rapid.Just(""), key).Draw(t, "after"),
			Max:       rapid.IntRange(1, 5).Draw(t, "max"),
		}
		var want []string
		skip := &lister{query: q}
		for _, k := range stored {
			if !strings.HasPrefix(k, q.Prefix) || k <= q.After {
				continue
			}
			item := k
			if i := strings.Index(k[len(q.Prefix):], q.Delimiter); q.Delimiter != "" && i >= 0 {
				item = k[:len(q.Prefix)+i+len(q.Delimiter)]
				if item == q.After && skip.rollUp(q.After) == q.After {
					continue // the page before ended with it
				}
			}
			if len(want) == 0 || want[len(want)-1] != item {
				want = append(want, item)
			}
		}
		var got []string
		for pages := 0; ; pages++ {
			page, err := s.List(ctx, bucket, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, item := range page.Items {
				if item.Info != nil {
					got = append(got, item.Key)
				} else {
					got = append(got, item.Prefix)
				}
			}
			if page.Next == "" {
				break
			}
			if len(page.Items) != q.Max || pages > len(want) {
				t.Fatalf("page %d has %d items and goes on", pages, len(page.Items))
			}
			q.After = page.Next
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%+v of %q:\ngot  %q\nwant %q", q, stored, got, want)
		}
		for _, k := range stored {
			if err := s.Delete(ctx, bucket, []string{k}, nil)[0]; err != nil {
				t.Fatal(err)
			}
		}
		if left, err := os.ReadDir(s.bucketDir(bucket)); err != nil || len(left) > 0 {
			t.Fatalf("left in the bucket: %v, %v", left, err)
		}
		if err := s.DeleteBucket(bucket); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDamagedFile changes an object's file in every way a disk may.
func TestDamagedFile(t *testing.T) {
	s := open(t)
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"damaged", "fine"} {
		if _, err := s.Put("bucket", key, strings.NewReader("data"), 4, Info{}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(s.bucketDir("bucket"), "damaged@")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := [][]byte{{}, append([]byte("x"), whole...), append(bytes.Clone(whole), 'x')}
	for i := 1; i < len(whole); i++ {
		damaged = append(damaged, whole[:i])
		if i >= 4 { // what covers the data is the client's affair
			flipped := bytes.Clone(whole)
			flipped[i] ^= 0x10
			damaged = append(damaged, flipped)
		}
	}
	for _, text := range damaged {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if o, err := s.Open("bucket", "damaged"); !errdefs.IsDataLoss(err) || errors.Is(err, ErrNoKey) {
			t.Fatalf("%q opens as %+v, %v", text, o, err)
		}
	}
	page, err := s.List(context.Background(), "bucket", Query{Max: 10})
	if err != nil || len(page.Items) != 1 || page.Items[0].Key != "fine" {
		t.Errorf("listed with a damaged one beside: %+v, %v", page, err)
	}
	page, err = s.List(context.Background(), "bucket", Query{Max: 10, Damaged: true})
	if err != nil || len(page.Items) != 2 || page.Items[0].Key != "damaged" || !page.Items[0].Damaged || page.Items[1].Damaged {
		t.Errorf("listed with the damaged one: %+v, %v", page, err)
	}
	for range 2 {
		if errs := s.Delete(context.Background(), "bucket", []string{"fine"}, nil); errs[0] != nil {
			t.Fatal(errs)
		}
	}
	if err := s.DeleteBucket("bucket"); !errors.Is(err, ErrBucketNotEmpty) {
		t.Errorf("a bucket with a damaged object is deleted: %v", err)
	}
}

func TestBodiesThatFail(t *testing.T) {
	s := open(t)
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	cut := errors.New("cut")
	for name, test := range map[string]struct {
		body io.Reader
		size int64
		want error
	}{
		"short":           {strings.NewReader("abc"), 4, ErrShortBody},
		"long":            {strings.NewReader("abc"), 2, ErrShortBody},
		"cut":             {io.MultiReader(strings.NewReader("abc"), failing{cut}), 3, cut},
		"unexpected end":  {io.MultiReader(strings.NewReader("abc"), failing{io.ErrUnexpectedEOF}), 3, io.ErrUnexpectedEOF},
		"unknown and cut": {io.MultiReader(strings.NewReader("abc"), failing{io.ErrUnexpectedEOF}), -1, io.ErrUnexpectedEOF},
	} {
		if _, err := s.Put("bucket", "dir/x", test.body, test.size, Info{}, nil, nil); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused := errors.New("refused")
	if _, err := s.Put("bucket", "dir/x", strings.NewReader(""), 0, Info{}, nil, func(*Info) error { return refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
	for _, dir := range []string{s.tmp, s.bucketDir("bucket")} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	if info, err := s.Put("bucket", "dir/x", strings.NewReader("abc"), -1, Info{}, nil, nil); err != nil || info.Size != 3 {
		t.Errorf("of unknown size: %+v, %v", info, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Each Open writes in a directory of its own name, and Close leaves none.
func TestTmp(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for range 2 {
		s, err := Open(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, filepath.Base(s.tmp))
		if there := left(t, s.tmpRoot()); len(there) != 1 || there[0] != s.tmp {
			t.Errorf("in tmp/: %q", there)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if there := left(t, s.tmpRoot()); len(there) != 0 {
			t.Errorf("left in tmp/: %q", there)
		}
	}
	if names[0] == names[1] {
		t.Errorf("the same name twice: %q", names)
	}
}
