package job

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/iterait/shepherd/internal/claims"
)

const (
	one = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	two = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

func trusting(t *testing.T, rules ...string) Trust {
	t.Helper()
	trust := Trust{}
	for _, text := range rules {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		if r.String() != text {
			t.Errorf("%s is written as %s", text, r)
		}
		trust = append(trust, r)
	}
	return trust
}

func TestTrust(t *testing.T) {
	claims.Hold(t, "M4")
	for _, c := range []struct {
		rules         string // with spaces between
		name, version string
		digest        string // or "untrusted"
	}{
		{"digits", "digits", "v1", ""},
		{"digits", "digits", "", ""},
		{"digits", "digits", one, ""},
		{"digits", "digits2", "v1", "untrusted"},
		{"digits", "team/digits", "v1", "untrusted"},
		{"digits:v1", "digits", "v1", ""},
		{"digits:v1", "digits", "v2", "untrusted"},
		{"digits:v1", "digits", "", "untrusted"},
		{"digits:v1", "digits", "v1@" + one, "untrusted"}, // the tag says nothing of it
		{"digits:v1", "digits", one, "untrusted"},
		{"digits:latest", "digits", "", ""},
		{"digits:latest", "digits", "latest", ""},
		{"digits:latest@" + one, "digits", "", one},
		{"digits:v*", "digits", "v12", ""},
		{"digits:v*", "digits", "w1", "untrusted"},
		{"team/*", "team/digits", "v1", ""},
		{"team/*", "team/sub/digits", "v1", "untrusted"},
		{"team/**", "team/sub/digits", "v1", ""},
		{"**", "any/thing", one, ""},
		{"digits:v1@" + one, "digits", "v1", one},
		{"digits:v1@" + one, "digits", "v1@" + one, one},
		{"digits:v1@" + one, "digits", one, one},
		{"digits:v1@" + one, "digits", "v1@" + two, "untrusted"},
		{"digits:v1@" + one, "digits", two, "untrusted"},
		{"digits@" + one, "digits", "v7", one},
		{"digits@" + one, "digits", "v7@" + two, "untrusted"},
		{"digits:v1@" + one + " **", "digits", "v1", one}, // the first counts
		{"digits:v1@" + one + " **", "digits", "v2", ""},
		{"digits:v1@" + one + " **", "digits", "v1@" + two, "untrusted"},
		{"other digits:v1@" + one + " digits:v1@" + two, "digits", "v1", one},
		{"a b c", "c", "", ""},
	} {
		m := Model{Name: c.name, Version: c.version}
		digest, err := trusting(t, strings.Fields(c.rules)...).Check(m)
		var untrusted *Untrusted
		if errors.As(err, &untrusted) {
			digest = "untrusted"
			if untrusted.Model != m || !strings.Contains(err.Error(), "models.allow") {
				t.Errorf("%v", err)
			}
		}
		if digest != c.digest {
			t.Errorf("%s: %s is %q, want %q", c.rules, m, digest, c.digest)
		}
	}
	if digest, err := Trust(nil).Check(Model{Name: "any"}); err != nil || digest != "" {
		t.Errorf("without rules: %q, %v", digest, err)
	}
	if _, err := (Trust{}).Check(Model{Name: "any"}); err == nil {
		t.Error("no rule trusts a model")
	}
}

func TestParseRule(t *testing.T) {
	for _, text := range []string{"", ":", ":v1", "a:", "a@", "a@sha256:1", "a@" + strings.ToUpper(one), "a:v1@" + one + "x", "../a", "a//b", "a\n", "\xad", "@" + one} {
		if r, err := ParseRule(text); err == nil {
			t.Errorf("%q is read as %+v", text, r)
		}
	}
}

// fits says the same as a pattern's expression, slowly.
func fits(pattern, text string) bool {
	if pattern == "" {
		return text == ""
	}
	if rest, ok := strings.CutPrefix(pattern, "**"); ok {
		return fits(rest, text) || text != "" && fits(pattern, text[1:])
	}
	if rest, ok := strings.CutPrefix(pattern, "*"); ok {
		return fits(rest, text) || text != "" && text[0] != '/' && fits(pattern, text[1:])
	}
	return text != "" && text[0] == pattern[0] && fits(pattern[1:], text[1:])
}

func FuzzPattern(f *testing.F) {
	for _, c := range [][2]string{{"a*", "abc"}, {"**/x", "a/b/x"}, {"*/x", "a/b/x"}, {"a*b*c", "a1b2c"}, {"**a*b", "x/ayb"}, {"***", "a/b"}, {"*", ""}, {"", "a"}, {"a.c", "abc"}, {"(a|b)+", "a"}} {
		f.Add(c[0], c[1])
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		if len(text) > 12 || len(name) > 30 || !utf8.ValidString(text) || !utf8.ValidString(name) {
			return
		}
		if got := pattern(text).MatchString(name); got != fits(text, name) {
			t.Errorf("%q matches %q: %t", text, name, got)
		}
	})
}

func FuzzRule(f *testing.F) {
	for _, text := range []string{"a", "a:v1", "a@" + one, "team/*:v*@" + two, ":", "@"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule(text)
		if err != nil {
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || again.String() != r.String() || again.Name != r.Name || again.Version != r.Version || again.Digest != r.Digest {
			t.Errorf("%q is %+v, written %q, read %+v, %v", text, r, r, again, err)
		}
	})
}
