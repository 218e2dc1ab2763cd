package shellwords

import (
	"slices"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"", nil},
		{"  a\tb \n c ", []string{"a", "b", "c"}},
		{`python3 -m "my runner" 'a "b" \' c\ d`, []string{"python3", "-m", "my runner", `a "b" \`, "c d"}},
		{`"a\"b" "a\nb" "a\\b"`, []string{`a"b`, `a\nb`, `a\b`}},
		{`'' "" a''b`, []string{"", "", "ab"}},
		{"$HOME `x` *", []string{"$HOME", "`x`", "*"}},
	} {
		got, err := Split(c.line)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, %v, want %q", c.line, got, err, c.want)
		}
	}
	for _, bad := range []string{`'a`, `a "b`, `a\`} {
		if got, err := Split(bad); err == nil {
			t.Errorf("%q: got %q, want an error", bad, got)
		}
	}
}

func FuzzSplit(f *testing.F) {
	for _, line := range []string{`a 'b c' "d\"e" f\ g`, ``, `''`, `"`, `a\`, "a\\\nb", `a"b"'c'd`, `"$x \$y"`, "\t a\x00\u00a0b"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, err := Split(line)
		if err != nil {
			return
		}
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
		}
		again, err := Split(strings.Join(quoted, " "))
		if err != nil || !slices.Equal(again, words) {
			t.Errorf("%q gives %q, which quoted gives %q, %v", line, words, again, err)
		}
	})
}
