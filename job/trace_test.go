package job

import (
	"strings"
	"testing"
)

func TestParseTrace(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, c := range []struct {
		name, parent, state string
		want                Trace
	}{
		{"both", parent, "a=1,b=2", Trace{parent, "a=1,b=2"}},
		{"parent alone", parent, "", Trace{Parent: parent}},
		{"spaces around", " " + parent + "\t", " a=1 ", Trace{parent, "a=1"}},
		{"not sampled", parent[:53] + "00", "", Trace{Parent: parent[:53] + "00"}},
		{"a version to come", "cc" + parent[2:] + "-what-else", "", Trace{Parent: parent}},
		{"a version to come, no more", "01" + parent[2:], "", Trace{Parent: parent}},
		{"a version to come, other end", "01" + parent[2:] + ".x", "", Trace{}},
		{"nothing", "", "a=1", Trace{}},
		{"short", parent[:54], "a=1", Trace{}},
		{"long", parent + "-01", "", Trace{}},
		{"version ff", "ff" + parent[2:], "", Trace{}},
		{"upper case", strings.ToUpper(parent), "", Trace{}},
		{"no hex", strings.Replace(parent, "4bf", "4xf", 1), "", Trace{}},
		{"other separator", strings.ReplaceAll(parent, "-", "_"), "", Trace{}},
		{"no trace", "00-" + strings.Repeat("0", 32) + parent[35:], "", Trace{}},
		{"no span", parent[:36] + strings.Repeat("0", 16) + parent[52:], "", Trace{}},
		{"state too long", parent, "a=" + strings.Repeat("x", 511), Trace{Parent: parent}},
		{"state of two lines", parent, "a=1\nb=2", Trace{Parent: parent}},
		{"state not ASCII", parent, "a=ä", Trace{Parent: parent}},
	} {
		got := ParseTrace(c.parent, c.state)
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if got.IsZero() != (got == Trace{}) {
			t.Errorf("%s: zero %v", c.name, got.IsZero())
		}
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=1")
	f.Add("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x", "")
	f.Fuzz(func(t *testing.T, parent, state string) {
		got := ParseTrace(parent, state)
		if got.IsZero() {
			if got != (Trace{}) {
				t.Fatalf("%q, %q: %+v has a state alone", parent, state, got)
			}
			return
		}
		if len(got.Parent) != 55 || strings.ContainsAny(got.Parent+got.State, "\n\r\x00") {
			t.Fatalf("%q, %q: %+v", parent, state, got)
		}
		if again := ParseTrace(got.Parent, got.State); again != got {
			t.Fatalf("%+v is read as %+v", got, again)
		}
	})
}
