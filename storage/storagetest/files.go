package storagetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// oddNames are names that storage and disk can hold, if not prettily.
func (s *suite) oddNames() []string {
	names := []string{
		"blank in it", "příliš žluťoučký", "emoji-🐑", "a+b&c=d?e#f%20g", "per%cent", "quote\"'`", "semi;colon:comma,",
		"~tilde", "back\\slash", ".hidden", "..dots", "...", "a..b/c", "dash-/-dash", "<xml>&amp;",
		strings.Repeat("long", 60), "deep/" + strings.Repeat("d/", 60) + "file",
	}
	if !s.ChangesControls {
		names = append(names, "line\nbreak", "tab\there")
	}
	return names
}

func (s *suite) testFiles(t *testing.T) {
	t.Run("PutOpen", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "x"})
		for _, size := range []int{0, 1, 64 << 10, 64<<10 + 1, 5 << 20, 8 << 20, 8<<20 + 1, 21 << 20} {
			want := noise(size)
			noError(t, s.store.Put(t.Context(), id, "outputs/file", strings.NewReader(want), int64(size)))
			file, got := s.read(t, id, "outputs/file", nil)
			if got != want {
				t.Errorf("%d bytes come back as %d, or changed", size, len(got))
			}
			if file.Size != int64(size) || file.Offset != 0 || file.Length != int64(size) {
				t.Errorf("file of %d bytes is said to be %+v", size, file)
			}
			if !strings.HasPrefix(file.ETag, `"`) || !strings.HasSuffix(file.ETag, `"`) || len(file.ETag) < 3 || file.Modified.IsZero() {
				t.Errorf("ETag %s, modified %v", file.ETag, file.Modified)
			}
		}
	})

	t.Run("ETag", func(t *testing.T) {
		id := s.fresh(t, map[string]string{"outputs/a": "one"})
		first, _ := s.read(t, id, "outputs/a", nil)
		again, _ := s.read(t, id, "outputs/a", &job.Range{Offset: 1, Length: 1})
		s.put(t, id, "outputs/a", "two")
		changed, _ := s.read(t, id, "outputs/a", nil)
		if first.ETag != again.ETag || first.ETag == changed.ETag {
			t.Errorf("ETags %s, %s, and %s once changed", first.ETag, again.ETag, changed.ETag)
		}
	})

	t.Run("PutWrongSize", func(t *testing.T) {
		for name, c := range map[string]struct {
			length int
			size   int64
		}{
			"Short": {3, 10}, "Long": {10, 3}, "NotEmpty": {1, 0}, "Empty": {0, 1}, "Negative": {1, -1},
			"ShortLarge": {9 << 20, 20 << 20}, "LongLarge": {20<<20 + 1, 20 << 20}, "ShortByOne": {20<<20 - 1, 20 << 20},
		} {
			t.Run(name, func(t *testing.T) {
				id := s.fresh(t, map[string]string{"outputs/a": "before"})
				err := s.store.Put(t.Context(), id, "outputs/a", strings.NewReader(noise(c.length)), c.size)
				class(t, "Put", err, errdefs.IsInvalidArgument)
				class(t, "Put of a new file", s.store.Put(t.Context(), id, "outputs/b", strings.NewReader(noise(c.length)), c.size), errdefs.IsInvalidArgument)
				sameFiles(t, "place", s.stored(t, id), map[string]string{"outputs/a": "before"})
			})
		}
	})

	t.Run("PutBrokenReader", func(t *testing.T) {
		id := s.fresh(t, map[string]string{"outputs/a": "before"})
		for _, size := range []int64{100, 20 << 20} {
			r := io.MultiReader(strings.NewReader(noise(int(size/2))), brokenReader{})
			if err := s.store.Put(t.Context(), id, "outputs/a", r, size); err == nil || !strings.Contains(err.Error(), "torn wire") {
				t.Errorf("Put answered %v", err)
			}
		}
		sameFiles(t, "place", s.stored(t, id), map[string]string{"outputs/a": "before"})
	})

	t.Run("Range", s.testRanges)

	t.Run("NotThere", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "x"})
		for _, id := range []job.ID{id, s.id()} {
			_, err := s.store.Open(t.Context(), id, "outputs/none", nil)
			class(t, "Open", err, errdefs.IsNotFound)
			_, err = s.store.Open(t.Context(), id, "outputs/none", &job.Range{Offset: 0, Length: 1})
			class(t, "Open of a part", err, errdefs.IsNotFound)
		}
	})

	t.Run("BadName", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "x"})
		for _, name := range []string{"", "/etc/passwd", "inputs/../x", "../x", "inputs//x", "inputs/./x", "inputs/", "a\x00b", "a\xffb", strings.Repeat("x", 1025)} {
			_, err := s.store.Open(t.Context(), id, name, nil)
			class(t, fmt.Sprintf("Open(%q)", name), err, errdefs.IsInvalidArgument)
			class(t, fmt.Sprintf("Put(%q)", name), s.store.Put(t.Context(), id, name, strings.NewReader("x"), 1), errdefs.IsInvalidArgument)
		}
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "x"})
	})

	t.Run("OddName", func(t *testing.T) {
		id := s.fresh(t, nil)
		if s.Bucket != "" {
			s.put(t, id, input, "")
		}
		for _, name := range s.oddNames() {
			noError(t, s.store.Put(t.Context(), id, "inputs/"+name, strings.NewReader(name), int64(len(name))))
			if _, got := s.read(t, id, "inputs/"+name, nil); got != name {
				t.Errorf("%q holds %q", name, got)
			}
		}
	})

	t.Run("List", func(t *testing.T) {
		files := map[string]string{input: "12345", "inputs/a/b": "", "inputs2/x": "x", "outputs/output": "result", job.StatusFile: "{}"}
		id := s.fresh(t, files)
		for prefix, want := range map[string]int{"": 5, "inputs": 3, "inputs/": 2, "inputs/a": 1, "none": 0} {
			infos, err := All(s.store.List(t.Context(), id, prefix))
			noError(t, err)
			if len(infos) != want {
				t.Errorf("List(%q) has %d files, want %d: %v", prefix, len(infos), want, infos)
			}
			for _, info := range infos {
				content, ok := files[info.Name]
				if !ok || info.Size != int64(len(content)) || info.ETag == "" || info.Modified.IsZero() {
					t.Errorf("List(%q): %+v", prefix, info)
				}
			}
		}
		for info, err := range s.store.List(t.Context(), id, "inputs/") {
			if err != nil || info.Name != "inputs/a/b" {
				t.Errorf("the first input is %+v, %v", info, err)
			}
			break // what is left is not asked for
		}
		if s.Bucket == "" {
			_, err := All(s.store.List(t.Context(), s.id(), ""))
			class(t, "List of an unknown job", err, errdefs.IsNotFound)
		}
	})
}

func (s *suite) testRanges(t *testing.T) {
	const content = "0123456789"
	id := s.fresh(t, map[string]string{"outputs/a": content, "outputs/empty": ""})
	for _, c := range []struct {
		part   job.Range
		want   string
		offset int64
	}{
		{job.Range{Offset: 0, Length: 1}, "0", 0},
		{job.Range{Offset: 0, Length: 10}, content, 0},
		{job.Range{Offset: 0, Length: -1}, content, 0},
		{job.Range{Offset: 4, Length: 3}, "456", 4},
		{job.Range{Offset: 4, Length: -1}, "456789", 4},
		{job.Range{Offset: 9, Length: 1}, "9", 9},
		{job.Range{Offset: 8, Length: 100}, "89", 8},
		{job.Range{Offset: 8, Length: 1<<63 - 1}, "89", 8},
		{job.Range{Offset: -3, Length: -1}, "789", 7},
		{job.Range{Offset: -3, Length: 2}, "78", 7},
		{job.Range{Offset: -3, Length: 100}, "789", 7},
		{job.Range{Offset: -10, Length: -1}, content, 0},
		{job.Range{Offset: -100, Length: -1}, content, 0},
	} {
		file, got := s.read(t, id, "outputs/a", &c.part)
		if got != c.want || file.Offset != c.offset || file.Length != int64(len(c.want)) || file.Size != 10 {
			t.Errorf("%+v: %q, offset %d, length %d of %d; want %q at %d", c.part, got, file.Offset, file.Length, file.Size, c.want, c.offset)
		}
	}
	for _, part := range []job.Range{{}, {Offset: 3}, {Offset: 10, Length: 1}, {Offset: 10, Length: -1}, {Offset: 100, Length: 5}} {
		_, err := s.store.Open(t.Context(), id, "outputs/a", &part)
		class(t, fmt.Sprintf("%+v", part), err, errdefs.IsOutOfRange)
	}
	_, err := s.store.Open(t.Context(), id, "outputs/empty", &job.Range{Offset: 0, Length: 1})
	class(t, "part of an empty file", err, errdefs.IsOutOfRange)
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, fmt.Errorf("torn wire") }

// noise is size bytes that do not compress, the same every time.
func noise(size int) string {
	var b strings.Builder
	b.Grow(size)
	_, _ = io.CopyN(&b, noiseReader(), int64(size))
	return b.String()
}

func noiseReader() io.Reader {
	return rand.NewChaCha8(sha256.Sum256([]byte("noise")))
}

// merge is all maps in one.
func merge(all ...map[string]string) map[string]string {
	merged := make(map[string]string)
	for _, m := range all {
		maps.Copy(merged, m)
	}
	return merged
}
