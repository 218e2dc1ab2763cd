package config

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestExpand(t *testing.T) {
	env := lookupIn(map[string]string{"A": "1", "_B2": "two", "EMPTY": "", "REF": "$A"})
	for text, want := range map[string]string{
		"plain": "plain", "$A": "1", "${A}": "1", "x$A/${_B2}y$A": "x1/twoy1", "$EMPTY": "", "$REF": "$A",
		"$": "$", "$$": "$", "${}": "${}", "${3X}": "${3X}", "${a}": "${a}", "${ A }": "${ A }", "pa$$word": "pa$word",
		"${NO:-b c}": "b c", "${A:-b}": "1", "${EMPTY:-b}": "b", "${EMPTY-b}": "", "${NO-}": "", "${NO-b}${A}": "b1", "${NO:-$A}": "$A", "$${A}": "${A}", "$5": "$5", "$a": "$a", "a$": "a$", "${A": "${A", "$$A": "$A", "$A-b": "1-b", "{$A}": "{1}",
	} {
		if got, _, wrong := expand(text, env); got != want || len(wrong) > 0 {
			t.Errorf("%s: got %q, %v", text, got, wrong)
		}
	}
	for text, count := range map[string]int{"$NO": 1, "${NO}$NO": 1, "$NO$NOT": 2} {
		if _, referred, wrong := expand(text, env); len(wrong) != count || !referred {
			t.Errorf("%s: got %v", text, wrong)
		}
	}
}

func TestSuggest(t *testing.T) {
	known := []string{"port", "type", "working_directory", "stdout_file", "stderr_file"}
	for word, want := range map[string]string{
		"portt": "port", "prot": "port", "PORT": "port", "typ": "type", "working_dir": "working_directory",
		"workingdirectory": "working_directory", "stdout": "stdout_file", "stderr-file": "stderr_file",
	} {
		all := "? Expected one of port, type, working_directory, stdout_file, stderr_file"
		if got := suggest(word, known); got != `did you mean "`+want+`"`+all {
			t.Errorf("%s: got %s", word, got)
		}
	}
	for _, word := range []string{"", "image", "po", "x"} {
		if got := suggest(word, known); got != "expected one of port, type, working_directory, stdout_file, stderr_file" {
			t.Errorf("%q: got %s", word, got)
		}
	}
	if got := suggest("x", nil); got != "none is expected here" {
		t.Errorf("got %s", got)
	}
}

func TestEditDistanceIsADistance(t *testing.T) {
	word := rapid.StringOfN(rapid.RuneFrom([]rune("abü")), 0, 8, -1)
	rapid.Check(t, func(t *rapid.T) {
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		d := editDistance(a, b)
		if d != editDistance(b, a) || (d == 0) != (a == b) || d > max(len([]rune(a)), len([]rune(b))) {
			t.Fatalf("%q to %q: %d", a, b, d)
		}
		if r := []rune(a); len(r) > 1 && r[0] != r[1] {
			swapped := slices.Clone(r)
			swapped[0], swapped[1] = swapped[1], swapped[0]
			if got := editDistance(a, string(swapped)); got != 1 {
				t.Fatalf("a swap in %q: %d", a, got)
			}
		}
	})
}
