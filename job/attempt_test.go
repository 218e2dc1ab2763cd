package job

import (
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestLimitsOver(t *testing.T) {
	one, two, zero, minute, hour := 1, 2, 0, time.Minute, time.Hour
	none := time.Duration(0)
	for name, c := range map[string]struct{ own, defaults, want Limits }{
		"none":             {},
		"defaults":         {Limits{}, Limits{Retries: &two, RunTimeout: &hour}, Limits{Retries: &two, RunTimeout: &hour}},
		"own":              {Limits{Retries: &one, LoadTimeout: &minute}, Limits{}, Limits{Retries: &one, LoadTimeout: &minute}},
		"own before":       {Limits{Retries: &one, RetryPause: &minute}, Limits{Retries: &two, RetryPause: &hour, WaitTimeout: &hour}, Limits{Retries: &one, RetryPause: &minute, WaitTimeout: &hour}},
		"zero is a value":  {Limits{Retries: &zero, WaitTimeout: &none}, Limits{Retries: &two, WaitTimeout: &hour}, Limits{Retries: &zero, WaitTimeout: &none}},
		"each of its kind": {Limits{WaitTimeout: &minute}, Limits{LoadTimeout: &hour, RunTimeout: &none}, Limits{WaitTimeout: &minute, LoadTimeout: &hour, RunTimeout: &none}},
	} {
		if got := c.own.Over(c.defaults); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// TestLimitsFields has Over and Clone take every field there is.
func TestLimitsFields(t *testing.T) {
	var all Limits
	fields := reflect.ValueOf(&all).Elem()
	for i := range fields.NumField() {
		fields.Field(i).Set(reflect.New(fields.Field(i).Type().Elem()))
		fields.Field(i).Elem().SetInt(int64(i + 1))
	}
	for name, got := range map[string]Limits{"Over": Limits{}.Over(all), "Over of its own": all.Over(Limits{}), "Clone": all.Clone()} {
		if !reflect.DeepEqual(got, all) {
			t.Errorf("%s: %+v, want %+v", name, got, all)
		}
	}
	cloned := all.Clone()
	for i := range fields.NumField() {
		fields.Field(i).Elem().SetInt(0)
	}
	if got := reflect.ValueOf(cloned); got.Field(0).Elem().Int() != 1 || got.Field(fields.NumField()-1).Elem().Int() != int64(fields.NumField()) {
		t.Errorf("a clone changed with its original: %+v", cloned)
	}
}

func TestClip(t *testing.T) {
	if (*Failure)(nil).Clip() != nil {
		t.Error("no failure became one")
	}
	short := &Failure{Message: strings.Repeat("m", MaxMessage), Type: strings.Repeat("t", MaxType), Traceback: strings.Repeat("x", MaxTraceback)}
	if got := short.Clip(); *got != *short {
		t.Error("texts of the length that is kept were cut")
	}
	long := &Failure{Message: "begin" + strings.Repeat("é", MaxMessage) + "end", Type: strings.Repeat("T", MaxType+1), Traceback: "begin" + strings.Repeat("日", MaxTraceback) + "end"}
	given := *long
	got := long.Clip()
	if *long != given {
		t.Error("the failure itself was changed")
	}
	for _, text := range []struct {
		got  string
		most int
	}{{got.Message, MaxMessage}, {got.Type, MaxType}, {got.Traceback, MaxTraceback}, {ClipReason(long.Message), MaxReason}} {
		if len(text.got) > text.most || len(text.got) < text.most-2*utf8.UTFMax || !utf8.ValidString(text.got) || !strings.Contains(text.got, "\n[…]\n") {
			t.Errorf("%d of %d bytes are kept: %.30q", len(text.got), text.most, text.got)
		}
	}
	if !strings.HasPrefix(got.Traceback, "begin日") || !strings.HasSuffix(got.Traceback, "日end") {
		t.Errorf("the beginning or the end is missing: %.20q … %q", got.Traceback, got.Traceback[len(got.Traceback)-10:])
	}
}

// TestClipAnything cuts any bytes: what is kept is bounded, no character of a
// valid text is cut in two, and what is short stays as it is.
func TestClipAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Repeat(rapid.String().Draw(t, "text"), rapid.IntRange(0, 20).Draw(t, "times"))
		if rapid.Bool().Draw(t, "bytes") {
			text = string(rapid.SliceOfN(rapid.Byte(), 0, 500).Draw(t, "bytes"))
		}
		limit := rapid.IntRange(16, 200).Draw(t, "limit")
		got := clip(text, limit)
		if len(got) > limit || len(text) <= limit && got != text || utf8.ValidString(text) && !utf8.ValidString(got) {
			t.Fatalf("clip(%q, %d) = %q", text, limit, got)
		}
	})
}
