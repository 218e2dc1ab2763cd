package logtext

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The last output of runners, and the part of it that an operator needs.
func TestCause(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"progress bars":  {read(t, "progress-bars.txt"), "RuntimeError: input has 3 channels, expected 4"},
		"teardown noise": {read(t, "teardown-noise.txt"), "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"},
		"control bytes":  {read(t, "control-bytes.txt"), "ERROR cannot open  weights\ufffd.bin:  no such file"},
		"Rust":           {read(t, "panic.txt"), "thread 'main' panicked at src/main.rs:7:10: called `Result::unwrap()` on an `Err` value: Os { code: 2, kind: NotFound }"},
		"Go": {"serving\npanic: runtime error: index out of range [3] with length 3\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/x.go:7 +0x1d\nexit status 2\n",
			"panic: runtime error: index out of range [3] with length 3"},
		"Java": {"Exception in thread \"main\" java.lang.IllegalStateException: no model\n\tat Main.main(Main.java:3)\n\t... 2 more\n",
			"Exception in thread \"main\" java.lang.IllegalStateException: no model"},
		"JavaScript": {"/app/x.js:3\n  throw new Error('no model')\n  ^\n\nError: no model\n    at Object.<anonymous> (/app/x.js:3:9)\n\nNode.js v18.19.0\n",
			"Error: no model"},
		"C++": {"terminate called after throwing an instance of 'std::runtime_error'\n  what():  bad magic\nAborted (core dumped)\n",
			"terminate called after throwing an instance of 'std::runtime_error'; what():  bad magic; Aborted (core dumped)"},
		"several lines of one error": {"Traceback (most recent call last):\n  File \"x.py\", line 1, in <module>\nRuntimeError: Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: \"fc.weight\".\n",
			"RuntimeError: Error(s) in loading state_dict for Net: Missing key(s) in state_dict: \"fc.weight\"."},
		"an error, and more":   {"error: the disk is slow\nstep 1\nstep 2\n", "error: the disk is slow; step 2"},
		"plain":                {"one\ntwo\n\n", "two"},
		"only a progress bar":  {"\r10%|#  | 1/10\r20%|## | 2/10", "20%|## | 2/10"},
		"only warnings":        {"x.py:1: UserWarning: old\n", "x.py:1: UserWarning: old"},
		"nothing":              {" \n\t\n\x00\r\n", ""},
		"a window title":       {"\x1b]0;title\x07done\x1b[?25h\n", "done"},
		"Windows' line ends":   {"first\r\nlast\r\n", "last"},
		"spinner after error":  {"ValueError: x\n\r\x1b[2K⠋ working\r\x1b[2K", "ValueError: x; ⠋ working"},
		"a log with its level": {"2026-01-01 10:00:00,123 ERROR no weights\n2026-01-01 10:00:01,000 INFO bye\n", "2026-01-01 10:00:00,123 ERROR no weights"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Cause(c.text); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if got := Cause(Tail(c.text)); got != c.want {
				t.Errorf("of the tail: got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestTail(t *testing.T) {
	many := strings.Repeat("line\n", 50)
	for name, c := range map[string]struct{ text, want string }{
		"empty":        {"", ""},
		"blank":        {"\n\n", ""},
		"few":          {"one\ntwo\n\n", "one\ntwo"},
		"many":         {many, strings.TrimSpace(strings.Repeat("line\n", maxTailLines))},
		"error before": {"ValueError: x\n" + many, "ValueError: x\nline\nline\n" + strings.TrimSpace(strings.Repeat("line\n", 7))},
		"long":         {strings.Repeat("é", maxTailBytes), strings.Repeat("é", maxTailBytes/2)},
		"not UTF-8":    {"a\xffb", "a\ufffdb"},
	} {
		if got := Tail(c.text); got != c.want {
			t.Errorf("%s: got %.80q, want %.80q", name, got, c.want)
		}
	}
}

// FuzzCause: the cause of any output is short, valid and printable.
func FuzzCause(f *testing.F) {
	for _, name := range []string{"progress-bars.txt", "teardown-noise.txt", "control-bytes.txt", "panic.txt"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text[max(0, len(text)-2000):])) // the engine is slow with large ones
	}
	f.Add("\x1b[\x1b]\u009b\u009d\r\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		cause, tail := Cause(text), Tail(text)
		if len(cause) > maxCauseBytes || len(tail) > maxTailBytes || strings.Count(tail, "\n") >= maxTailLines {
			t.Fatalf("%d and %d bytes", len(cause), len(tail))
		}
		if strings.Contains(cause, "\n") {
			t.Fatalf("several lines: %q", cause)
		}
		for _, s := range []string{cause, tail} {
			if !utf8.ValidString(s) {
				t.Fatalf("not UTF-8: %q", s)
			}
			if i := strings.IndexFunc(s, func(r rune) bool { return r != '\n' && r != '\t' && unicode.IsControl(r) }); i >= 0 {
				t.Fatalf("a control character: %q", s)
			}
		}
	})
}
