package server

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/shim"
)

func TestOutputGoesToFilesAndIsRemembered(t *testing.T) {
	dir := t.TempDir()
	spec := shim.Spec{LogDir: dir, LogSize: 1 << 20, LogKeep: 1, Runner: &shim.Process{Stdout: filepath.Join(dir, "a/b/out.log")}}
	if err := os.MkdirAll(filepath.Dir(spec.Runner.Stdout), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(spec.Runner.Stdout, []byte("earlier\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o, err := openOutput(spec, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.stdout.WriteString("to out\n"); err != nil {
		t.Fatal(err)
	}
	o.stdout.Close()
	if _, err := o.stderr.WriteString("to err\n"); err != nil {
		t.Fatal(err)
	}
	o.started()
	last := o.last()
	o.close()
	if !strings.Contains(last, "to out") || !strings.Contains(last, "to err") {
		t.Errorf("remembered %q, want both", last)
	}
	for path, want := range map[string]string{spec.Runner.Stdout: "earlier\nto out\n", filepath.Join(dir, shim.RunnerLog): "to err\n"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v, want %q", path, got, err, want)
		}
	}
}

func TestOutputThatCannotBeOpened(t *testing.T) {
	spec := shim.Spec{LogDir: t.TempDir(), Runner: &shim.Process{Stdout: "/dev/null/x"}}
	if _, err := openOutput(spec, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "stdout log file") {
		t.Errorf("got %v, want to be told of the file", err)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r, err := openRotated(path, 10, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"aaaa\n", "bbbb\n", "cccc\n", "longer than the limit\n", "dddd\n"} {
		if n, err := r.Write([]byte(line)); err != nil || n != len(line) {
			t.Fatalf("%q: %d, %v", line, n, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"": "dddd\n", ".1": "longer than the limit\n", ".2": "cccc\n"} {
		if got, err := os.ReadFile(path + name); err != nil || string(got) != want {
			t.Errorf("log%s holds %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("more old logs are kept than asked for")
	}
	if r, err = openRotated(path, 10, 2); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Write([]byte("eeee\nf\n")); err != nil { // what was there counts
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "eeee\nf\n" {
		t.Errorf("log holds %q after it was opened again", got)
	}
}

// Of what was said at once, what stderr said comes last; what stdout said long
// after it comes after it.
func TestLastWords(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		stdout, stderr string
		later          time.Duration // of stdout
		want           string
	}{
		{"out\n", "err\n", 0, "out\nerr"},
		{"out\n", "err\n", simultaneous / 2, "out\nerr"},
		{"out\n", "err\n", 2 * simultaneous, "err\nout"},
		{"out\n", "", 0, "out"},
		{"", "err", 0, "err"},
		{"", "", 0, ""},
	} {
		o := &output{out: newTail(), err: newTail()}
		if c.stdout != "" {
			o.out.note([]byte(c.stdout), now.Add(c.later))
		}
		if c.stderr != "" {
			o.err.note([]byte(c.stderr), now)
		}
		if got := o.last(); got != c.want {
			t.Errorf("%+v: last words %q", c, got)
		}
	}
}

// slowly is a log file on a busy machine.
type slowly time.Duration

func (s slowly) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(s))
	return len(p), nil
}

// What the runner has written is read to the end, however long that takes, also while a
// process outside the runner keeps the pipe open.
func TestLastWordsOnABusyMachine(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	o := &output{log: slog.New(slog.DiscardHandler), out: newTail(), err: newTail()}
	if _, err := w.WriteString(strings.Repeat("a line of the log\n", 3000) + "the reason\n"); err != nil {
		t.Fatal(err)
	}
	o.start(r, nil, slowly(700*time.Millisecond), &o.err)
	if got := o.last(); !strings.HasSuffix(got, "the reason") {
		t.Errorf("the last words are %q", got)
	}
	o.close()
}

// A process outside the runner that writes for ever does not keep the shim waiting.
func TestLastWordsOfOthers(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &output{log: slog.New(slog.DiscardHandler), out: newTail(), err: newTail()}
	o.start(r, nil, io.Discard, &o.out)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for {
			if _, err := w.WriteString("still here\n"); err != nil { // the pipe was closed
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if got := o.last(); !strings.HasSuffix(got, "still here") {
		t.Errorf("the last words are %q", got)
	}
	o.close()
	<-written
	w.Close()
}

func TestLimiter(t *testing.T) {
	var out strings.Builder
	l := newLimiter(slog.New(slog.NewTextHandler(&out, nil)))
	now := time.Unix(1000, 0)
	admitted := 0
	for range 1000 {
		if l.admit(now) {
			admitted++
		}
	}
	if admitted != burst {
		t.Errorf("%d lines in one period, want %d", admitted, burst)
	}
	if !l.admit(now.Add(period)) || !strings.Contains(out.String(), "lines=990") {
		t.Errorf("the next period: %q, want the count of those left out", out.String())
	}
}
