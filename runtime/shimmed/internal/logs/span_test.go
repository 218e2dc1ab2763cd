package logs

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/logspan"
	"github.com/iterait/shepherd/runtime"
)

// A job's lines are found where they have moved to.
func TestSpan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log := File{Path: path, Keep: 2}
	write := func(text string) logspan.Mark {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return logspan.Mark{logspan.At(f)}
	}
	rotate := func() {
		_ = os.Rename(path+".1", path+".2")
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
	}
	read := func(span logspan.Span, want string) {
		t.Helper()
		r, err := OpenSpan(t.Context(), span, Options{Tail: -1}, log)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	begin := write("before\n")
	end := write("a1\na2\n")
	write("after\n")
	a := logspan.Span{Begin: begin, End: end}
	read(a, "a1\na2\n")
	read(logspan.Span{Begin: begin}, "a1\na2\nafter\n")
	rotate()
	read(a, "a1\na2\n")
	across := logspan.Span{Begin: end, End: write("b1\n")}
	write("b2\n")
	read(across, "after\nb1\n")
	rotate()
	write("c\n")
	read(a, "a1\na2\n")
	read(across, "after\nb1\n")
	// What is not kept any more.
	if err := os.Remove(path + ".2"); err != nil {
		t.Fatal(err)
	}
	read(across, "b1\n")
	if _, err := OpenSpan(t.Context(), a, Options{Tail: -1}, log); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	// The last lines, but none of before.
	for tail, want := range map[int]string{0: "", 1: "b1\n", 5: "b1\n"} {
		r, err := OpenSpan(t.Context(), across, Options{Tail: tail}, log)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("tail %d: got %q, %v, want %q", tail, got, err, want)
		}
		r.Close()
	}
}

// One that has not ended is followed to its end, through rotations and whatever is
// written after it.
func TestFollowSpan(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after []string // "/" rotates
		want          string
		late          string // of one that opened the log later, where it is another
	}{
		{"quiet", nil, nil, "", ""},
		{"lines", []string{"a\n", "b\n"}, []string{"other\n"}, "a\nb\n", ""},
		{"rotated", []string{"a\n", "/", "b\n", "/", "c\n"}, []string{"other\n"}, "a\nb\nc\n", ""},
		{"rotated after", []string{"a\n"}, []string{"other\n", "/", "another\n"}, "a\n", ""},
		{"rotated away", []string{"a\n", "/", "b\n", "/", "c\n", "/", "d\n"}, nil, "a\nb\nc\nd\n", "b\nc\nd\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := File{Path: filepath.Join(t.TempDir(), "log"), Keep: 2}
			write(t, log.Path, "before\n")
			span := logspan.Span{Begin: End(log)}
			do := func(steps []string) {
				for _, step := range steps {
					if step == "/" {
						rotate(t, log.Path, log.Keep)
					} else {
						write(t, log.Path, step)
					}
				}
			}
			open := func() runtime.JobLog {
				r, err := OpenSpan(t.Context(), span, Options{Tail: -1, Follow: true}, log)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { r.Close() })
				return r
			}
			// follow reads while the part's end becomes known, which it does before the
			// next job's lines are written.
			follow := func(r runtime.JobLog) <-chan string {
				read := make(chan string, 1)
				go func() {
					got, err := io.ReadAll(r)
					read <- fmt.Sprint(string(got), err)
				}()
				r.End("nonsense")
				r.End(span.String())
				r.End(logspan.Span{Begin: span.Begin, End: logspan.Mark{{}}}.String()) // too late
				return read
			}
			early := open()
			do(c.before)
			late := open()
			span.End = End(log)
			fromEarly, fromLate := follow(early), follow(late)
			do(c.after)
			if got := <-fromEarly; got != c.want+"<nil>" {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if got, want := <-fromLate, cmp.Or(c.late, c.want); got != want+"<nil>" {
				t.Errorf("got %q of one that opened the log later, want %q", got, want)
			}
		})
	}
}

// A log that is not there yet is one of which nothing is written.
func TestSpanOfNoLog(t *testing.T) {
	log := File{Path: filepath.Join(t.TempDir(), "log"), Keep: 2}
	span := logspan.Span{Begin: End(log)}
	read := func(span logspan.Span, want string) {
		t.Helper()
		r, err := OpenSpan(t.Context(), span, Options{Tail: -1}, log)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	read(span, "")
	read(logspan.Span{Begin: span.Begin, End: End(log)}, "")
	write(t, log.Path, "a\n")
	read(span, "a\n")
	end := logspan.Span{Begin: span.Begin, End: End(log)}
	write(t, log.Path, "b\n")
	read(end, "a\n")
	if err := os.Remove(log.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSpan(t.Context(), end, Options{Tail: -1}, log); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}
