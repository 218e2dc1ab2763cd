package logspan

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestSpan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begin := At(f)
	if _, err := f.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	end := At(f)
	if begin.Inode == 0 || begin.Inode != end.Inode || begin.Offset != 0 || end.Offset != 5 {
		t.Fatalf("%+v to %+v", begin, end)
	}
	for _, s := range []Span{{Begin: Mark{begin}}, {Begin: Mark{begin, begin}, End: Mark{end, end}}} {
		if got, err := Parse(s.String()); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%s became %+v, %v", s, got, err)
		}
	}
	if (Span{}).String() != "" {
		t.Error("nothing is something")
	}
}

// FuzzParse: every input is refused, or is a span that survives a round trip.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"", "1:2", "1:2,3:4/1:9,3:4", "1:2/", "a:b", "1:-2", "1:2,1:2,1:2,1:2,1:2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(s.String()); err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%q became %+v, then %+v, %v", text, s, again, err)
		}
	})
}
