package bounded

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestTail(t *testing.T) {
	tail := NewTail(10)
	for _, c := range []struct{ write, want string }{
		{"", ""}, {"abc", "abc"}, {"de\n", "abcde\n"}, {"fgh", "abcde\nfgh"}, {"ij", "fghij"},
		{"klmnop", "ghijklmnop"}, {strings.Repeat("x", 100), strings.Repeat("x", 10)}, {"\nlast\n", "last\n"},
	} {
		if n, err := tail.Write([]byte(c.write)); n != len(c.write) || err != nil {
			t.Fatal(n, err)
		}
		if got := tail.String(); got != c.want {
			t.Errorf("after %q: %q, want %q", c.write, got, c.want)
		}
	}
	line := []byte(strings.Repeat("y", 7))
	for range 1000 {
		_, _ = tail.Write(line)
	}
	if cap(tail.kept) != 20 || tail.Total() != 123+7000 {
		t.Errorf("it takes %d bytes and counts %d", cap(tail.kept), tail.Total())
	}
}

func TestHead(t *testing.T) {
	h := NewHead(5)
	if n, err := h.Write([]byte("abc")); n != 3 || err != nil || h.Over() {
		t.Fatal(n, err)
	}
	if n, err := h.Write([]byte("def")); n != 0 || !errors.Is(err, io.ErrShortWrite) || !h.Over() {
		t.Fatal(n, err)
	}
	if got := string(h.Bytes()); got != "abc" {
		t.Errorf("it holds %q", got)
	}
}

func TestLines(t *testing.T) {
	var got []string
	l := NewLines(4, func(line string) { got = append(got, line) })
	for _, p := range []string{"a", "b\nc\n\n", "12345678", "9\nend"} {
		if n, err := l.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	l.Flush()
	l.Flush()
	if want := []string{"ab", "c", "", "1234", "5678", "9", "end"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
