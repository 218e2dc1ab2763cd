package job

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestInputNames(t *testing.T) {
	var names InputNames
	for _, good := range []string{"input", "a/b/c", "a/b/d", "Wölfe & Söhne.txt", ".hidden", "a/..b", strings.Repeat("x", 255) + "/y"} {
		if err := names.Add(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	if names.Len() != 7 {
		t.Errorf("there are %d", names.Len())
	}
	for bad, says := range map[string]string{
		"": "is empty", "/etc/passwd": "is absolute", "../x": `".."`, "a/../b": `".."`, "a//b": `""`, "a/": `""`, "./a": `"."`, "a\x00b": "control character",
		"a\nb": "control character", "\xff": "UTF-8", strings.Repeat("x/", 300): "longer", strings.Repeat("x", 256): "255",
		"input": "twice", "a/b": "a file and a directory", "input/x": "a file and a directory",
	} {
		err := names.Add(bad)
		var invalid *Invalid
		if !errors.As(err, &invalid) || invalid.Field != "inputs" || !strings.Contains(invalid.Problem, says) {
			t.Errorf("%q: %v, which does not say %s", bad, err, says)
		}
	}
	var many InputNames
	for i := range MaxInputs {
		if err := many.Add(fmt.Sprint("d/", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := many.Add("one more"); err == nil || !strings.Contains(err.Error(), "more than 10000") {
		t.Errorf("one more: %v", err)
	}
}

func FuzzInputNames(f *testing.F) {
	f.Add("a/b", "a")
	f.Add("..", "x\\y")
	f.Add("a", "a")
	f.Add("a//b", "/a")
	f.Add("a/./b", "a\x00")
	f.Add("é", "e\u0301")
	f.Fuzz(func(t *testing.T, one, two string) {
		var names InputNames
		for _, name := range []string{one, two} {
			if names.Add(name) != nil {
				continue
			}
			for element := range strings.SplitSeq(name, "/") {
				if element == "" || element == "." || element == ".." {
					t.Errorf("%q is accepted", name)
				}
			}
		}
	})
}
