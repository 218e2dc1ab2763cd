package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// expect looks for one finding of the level whose message and next step contain the words.
func expect(t *testing.T, findings []Finding, level Level, message, next string) {
	t.Helper()
	for _, f := range findings {
		if f.Level == level && strings.Contains(f.Message, message) && strings.Contains(f.Next, next) {
			if (f.Next == "") != (f.Level == OK) {
				t.Errorf("%+v: what is not well, and only that, names the next step", f)
			}
			return
		}
	}
	t.Errorf("no %s saying %q and advising %q among %+v", level, message, next, findings)
}

// healthy expects nothing but OK.
func healthy(t *testing.T, findings []Finding) {
	t.Helper()
	for _, f := range findings {
		if f.Level != OK {
			t.Errorf("%+v", f)
		}
	}
	if len(findings) == 0 {
		t.Error("nothing is said")
	}
}

func TestTold(t *testing.T) {
	for text, want := range map[string]Finding{
		"the socket does not exist; install containerd (apt-get install containerd), or set it": {Message: "the socket does not exist", Next: "install containerd (apt-get install containerd), or set it"},
		"storage refuses the key: SignatureDoesNotMatch: check storage.secret_key":              {Message: "storage refuses the key: SignatureDoesNotMatch", Next: "check storage.secret_key"},
		"it broke: nobody knows why": {Message: "it broke: nobody knows why", Next: "ask"},
		"no more to say":             {Message: "no more to say", Next: "ask"},
	} {
		want.Level = Failure
		if got := fromError(Failure, errors.New(text), "ask"); got != want {
			t.Errorf("%q: got %+v", text, got)
		}
	}
}

type fixed struct {
	name     string
	findings []Finding
}

func (f fixed) Name() string                      { return f.name }
func (f fixed) Examine(context.Context) []Finding { return f.findings }

// TestDiagnosis writes what was found for people and for programs.
func TestDiagnosis(t *testing.T) {
	var d Diagnosis
	var lines bytes.Buffer
	Examine(t.Context(), []Check{
		fixed{"first", []Finding{ok("fine"), warning("do that", "a\nb\x1b[31m")}},
		fixed{"second", []Finding{failure("do <this>", "it broke")}},
	}, func(f Finding) {
		d.Add(f)
		if err := f.WriteLine(&lines); err != nil {
			t.Fatal(err)
		}
	})
	if want := "ok       first        fine\n" +
		"warning  first        a b [31m\n                      → do that\n" +
		"FAILURE  second       it broke\n                      → do <this>\n"; lines.String() != want {
		t.Errorf("got\n%s", lines.String())
	}
	var out bytes.Buffer
	if err := d.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "do <this>") {
		t.Errorf("JSON is hard to read: %s", out.String())
	}
	var read Diagnosis
	if err := json.Unmarshal(out.Bytes(), &read); err != nil {
		t.Fatal(err)
	}
	if read.Healthy || read.Warnings != 1 || read.Failures != 1 || len(read.Findings) != 3 || read.Findings[2] != d.Findings[2] {
		t.Errorf("got %+v", read)
	}
}

// TestExamineEnds checks that an interrupted diagnosis stops.
func TestExamineEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	Examine(ctx, []Check{fixed{"a", []Finding{ok("a")}}, fixed{"b", []Finding{ok("b")}}}, func(Finding) {
		n++
		cancel()
	})
	if n != 1 {
		t.Errorf("%d findings", n)
	}
}
