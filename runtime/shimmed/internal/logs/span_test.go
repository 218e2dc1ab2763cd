package logs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/logspan"
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
		r, err := OpenSpan(t.Context(), span, false, log)
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
	if _, err := OpenSpan(t.Context(), a, false, log); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	// One that has not ended is followed.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	now := write("")
	r, err := OpenSpan(ctx, logspan.Span{Begin: now}, true, log)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	write("d\n")
	var got strings.Builder
	buffer := make([]byte, 100)
	for got.String() != "d\n" {
		n, err := r.Read(buffer)
		got.Write(buffer[:n])
		if err != nil {
			t.Fatal(fmt.Sprintf("%q", got.String()), err)
		}
	}
}
