package layer_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/iterait/shepherd/examples/images/layer"
)

// item is a tar entry with its content.
type item struct {
	tar.Header
	content string
}

func file(name, content string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644}, content}
}

func write(t testing.TB, items ...item) (v1.Layer, error) {
	t.Helper()
	dir := t.TempDir()
	w, err := layer.NewWriter(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range items {
		if err := w.Add(&i.Header, strings.NewReader(i.content)); err != nil {
			w.Discard()
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left after Discard: %v", left)
			}
			return nil, err
		}
	}
	l, err := w.Finish()
	w.Discard()
	return l, err
}

// read lists a layer's entries, one line each.
func read(t testing.TB, l v1.Layer) []string {
	t.Helper()
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var lines []string
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(layer.Time) || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s has the time %v and the owner %q %q by name", h.Name, h.ModTime, h.Uname, h.Gname)
		}
		line := fmt.Sprintf("%c %s %o %d:%d", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid)
		for _, detail := range []string{h.Linkname, string(content), h.PAXRecords["SCHILY.xattr.security.capability"]} {
			if detail != "" {
				line += fmt.Sprintf(" %q", detail)
			}
		}
		if h.Typeflag == tar.TypeChar {
			line += fmt.Sprintf(" %d,%d", h.Devmajor, h.Devminor)
		}
		lines = append(lines, line)
	}
}

// Only the relevant attributes of each kind of entry are kept: the same entries give the same
// layer at any time.
func TestEntries(t *testing.T) {
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	entries := func(at time.Time, user string) []item {
		items := []item{
			{tar.Header{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o755}, ""},
			file("./bin/perl", "same"),
			{tar.Header{Typeflag: tar.TypeLink, Name: "./bin/perl5", Linkname: "./bin/perl", Mode: 0o644}, ""},
			{tar.Header{Typeflag: tar.TypeReg, Name: "./bin/ping", Size: 1, Mode: 0o755, PAXRecords: map[string]string{
				"SCHILY.xattr.security.capability": capability, "comment": user, "mtime": "1.5",
			}}, "p"},
			{tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin/sh", Linkname: "../bin/dash", Mode: 0o777}, ""},
			{tar.Header{Typeflag: tar.TypeReg, Name: "./bin/su", Mode: 0o4755}, ""},
			{tar.Header{Typeflag: tar.TypeReg, Name: "./bin-x", Mode: 0o644}, ""}, // sorts after bin/
			{tar.Header{Typeflag: tar.TypeChar, Name: "./dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
			{tar.Header{Typeflag: tar.TypeReg, Name: "./etc/shadow", Mode: 0o640, Gid: 42}, ""},
			file("./"+strings.Repeat("long/", 40)+"žluťoučký", "x"),
			{tar.Header{Typeflag: tar.TypeDir, Name: "./tmp/", Mode: 0o1777}, ""},
		}
		for i := range items {
			items[i].ModTime, items[i].Uname, items[i].Gname = at, user, user
			items[i].Format = tar.FormatPAX
		}
		return items
	}
	first, err := write(t, entries(time.Unix(1e9, 0), "anna")...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Layer(first); err != nil {
		t.Error(err)
	}
	got := read(t, first)
	want := []string{
		`5 bin/ 755 0:0`,
		`0 bin/perl 644 0:0 "same"`,
		`1 bin/perl5 644 0:0 "bin/perl"`,
		`0 bin/ping 755 0:0 "p" ` + fmt.Sprintf("%q", capability),
		`2 bin/sh 777 0:0 "../bin/dash"`,
		`0 bin/su 4755 0:0`,
		`0 bin-x 644 0:0`,
		`3 dev/null 666 0:0 1,3`,
		`0 etc/shadow 640 0:42`,
		`0 ` + strings.Repeat("long/", 40) + `žluťoučký 644 0:0 "x"`,
		`5 tmp/ 1777 0:0`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the layer holds\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	second, err := write(t, entries(time.Now(), "bert")...)
	if err != nil {
		t.Fatal(err)
	}
	one, _ := first.Digest()
	two, _ := second.Digest()
	if one != two {
		t.Errorf("the same entries of another time and user give %s and %s", one, two)
	}
}

func TestRefused(t *testing.T) {
	link := func(name, to string) item {
		return item{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
	}
	for _, test := range []struct {
		items []item
		want  string
	}{
		{[]item{file("b", ""), file("a", "")}, "in order"},
		{[]item{file("a", ""), file("./a", "")}, "in order"},
		{[]item{file("a-b", ""), file("a/b", "")}, "in order"},
		{[]item{file("../a", "")}, "not below the root"},
		{[]item{file("a/../../b", "")}, "not below the root"},
		{[]item{file("/", "")}, "not below the root"},
		{[]item{file("etc/.wh.passwd", "")}, "would remove a file"},
		{[]item{file(".wh..wh..opq", "")}, "would remove a file"},
		{[]item{link("b", "a")}, "no file of this layer"},
		{[]item{file("a", ""), link("b", "../a")}, "not below the root"},
		{[]item{{tar.Header{Typeflag: 'Z', Name: "a"}, ""}}, "no place in a layer"},
		{[]item{{tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 2}, "x"}, file("b", "")}, "missed writing 1 bytes"},
	} {
		_, err := write(t, test.items...)
		last := test.items[len(test.items)-1].Name
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), last) {
			t.Errorf("adding %s: %v; expected %q", last, err, test.want)
		}
	}
}

// Memory does not grow with the size of the contents.
func TestMemory(t *testing.T) {
	const size = 256 << 20
	w, err := layer.NewWriter(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Discard()
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: size, Mode: 0o644}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := w.Add(h, io.LimitReader(zeros{}, size)); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	if allocated > 16<<20 {
		t.Errorf("%d MiB were allocated for a file of %d MiB", allocated>>20, size>>20)
	}
	if _, err := w.Finish(); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
