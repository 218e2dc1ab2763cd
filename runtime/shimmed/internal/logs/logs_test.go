package logs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// rotate sets a log aside as a shim does.
func rotate(t *testing.T, path string, keep int) {
	t.Helper()
	for n := keep; n > 0; n-- {
		if err := os.Rename(File{Path: path}.name(n-1), File{Path: path}.name(n)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

func all(t *testing.T, tail int, files ...File) string {
	t.Helper()
	r, err := Open(t.Context(), Options{Tail: tail}, files...)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func TestTail(t *testing.T) {
	dir := t.TempDir()
	log := File{Path: filepath.Join(dir, "log"), Keep: 2}
	if got := all(t, -1, log); got != "" {
		t.Errorf("no log reads as %q", got)
	}
	write(t, log.name(2), "1\n2\n")
	write(t, log.name(1), "3\n4\n5")
	write(t, log.name(0), " goes on\n6\n7")
	other := File{Path: filepath.Join(dir, "other")}
	write(t, other.Path, "x\ny\n")
	for _, c := range []struct {
		tail int
		want string
	}{
		{-1, "1\n2\n3\n4\n5 goes on\n6\n7x\ny\n"}, {0, ""}, {1, "7y\n"}, {2, "6\n7x\ny\n"}, {3, "5 goes on\n6\n7x\ny\n"},
		{4, "4\n5 goes on\n6\n7x\ny\n"}, {5, "3\n4\n5 goes on\n6\n7x\ny\n"}, {6, "2\n3\n4\n5 goes on\n6\n7x\ny\n"}, {100, "1\n2\n3\n4\n5 goes on\n6\n7x\ny\n"},
	} {
		if got := all(t, c.tail, log, other); got != c.want {
			t.Errorf("tail %d: %q, want %q", c.tail, got, c.want)
		}
	}
	long := strings.Repeat("a", 100<<10)
	write(t, other.Path, long+"\nz\n")
	if got := all(t, 2, other); got != long+"\nz\n" {
		t.Errorf("a line longer than the buffer reads as %d bytes", len(got))
	}
}

// followed is what a follower reads, line by line.
func followed(t *testing.T, tail int, files ...File) (lines chan string, end func()) {
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := Open(ctx, Options{Tail: tail, Follow: true}, files...)
	if err != nil {
		t.Fatal(err)
	}
	lines = make(chan string)
	done := make(chan error)
	go func() {
		in := bufio.NewScanner(r)
		for in.Scan() {
			select {
			case lines <- in.Text():
			case <-ctx.Done():
			}
		}
		done <- in.Err()
	}()
	gone := errors.New("the reader left")
	return lines, func() {
		cancel(gone)
		if err := <-done; !errors.Is(err, gone) {
			t.Errorf("Read ended with %v, want the context's cause", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func expect(t *testing.T, lines chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := <-lines; got != w {
			t.Fatalf("read %q, want %q", got, w)
		}
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := File{Path: filepath.Join(t.TempDir(), "log"), Keep: 2}
		lines, end := followed(t, 1, log)
		defer end()
		synctest.Wait() // it waits for a log that is not there
		write(t, log.Path, "a\nb\n")
		expect(t, lines, "a", "b")
		write(t, log.Path, "c\n") // unseen before
		rotate(t, log.Path, log.Keep)
		write(t, log.Path, "d\n") // two rotations at once
		rotate(t, log.Path, log.Keep)
		write(t, log.Path, "e\n")
		expect(t, lines, "c", "d", "e")
		rotate(t, log.Path, log.Keep)
		synctest.Wait()
		write(t, log.Path, "f\n")
		expect(t, lines, "f")
		for _, line := range []string{"lost", "g", "h", "i"} { // more than is kept
			rotate(t, log.Path, log.Keep)
			write(t, log.Path, line+"\n")
		}
		expect(t, lines, "g", "h", "i")
	})
}

// An administrator's own files are truncated or moved away by others.
func TestFollowForeignFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		out, errs := File{Path: filepath.Join(dir, "out")}, File{Path: filepath.Join(dir, "err")}
		write(t, out.Path, "1\n2\n")
		lines, end := followed(t, 1, out, errs)
		defer end()
		expect(t, lines, "2")
		write(t, errs.Path, "e\n")
		expect(t, lines, "e")
		if err := os.Truncate(out.Path, 0); err != nil {
			t.Fatal(err)
		}
		write(t, out.Path, "3\n")
		expect(t, lines, "3")
		if err := os.Rename(out.Path, out.Path+"-old"); err != nil {
			t.Fatal(err)
		}
		write(t, out.Path, "") // made again, and the writer still has the old one
		write(t, out.Path+"-old", "4\n")
		expect(t, lines, "4")
		write(t, out.Path, "5\n")
		expect(t, lines, "5")
	})
}

// What is written while it is rotated is read whole and in order.
func TestFollowWhileRotating(t *testing.T) {
	const keep, size, total = 3, 50, 5000
	synctest.Test(t, func(t *testing.T) {
		log := File{Path: filepath.Join(t.TempDir(), "log"), Keep: keep}
		lines, end := followed(t, -1, log)
		defer end()
		read := make(chan int, total)
		go func() {
			for i := range total {
				if i >= size*(keep-1) {
					<-read // not further ahead than is kept
				}
				if i%size == size-1 {
					rotate(t, log.Path, keep)
				}
				write(t, log.Path, fmt.Sprintln(i))
			}
		}()
		for i := range total {
			expect(t, lines, fmt.Sprint(i))
			read <- i
		}
	})
}

func TestNotAFile(t *testing.T) {
	if r, err := Open(t.Context(), Options{Tail: -1}, File{Path: t.TempDir()}); err == nil {
		r.Close()
		t.Error("a folder was opened as a log")
	}
}
