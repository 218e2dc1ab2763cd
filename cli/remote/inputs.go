package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/iterait/shepherd/client"
)

// inputs are the files of a job.
type inputs struct {
	files []input
	size  int64 // of all together; negative where it is not known
	stdin bool  // one of them is standard input
}

// input is one file.
type input struct {
	name string // below inputs/, with slashes
	path string // empty for standard input
	size int64
}

// defaultInput is the name of an input that has none of its own.
const defaultInput = "input"

// CheckInputs says what is wrong with the inputs that arguments name, before there is a
// daemon to send them to.
func CheckInputs(args []string) error {
	_, err := findInputs(args)
	return err
}

// findInputs finds the files of arguments: a file by its name, the files of a directory
// by their paths below it, standard input (-) as `input`; NAME=PATH gives a name.
func findInputs(args []string) (inputs, error) {
	var found inputs
	for _, arg := range args {
		if err := found.add(arg); err != nil {
			return inputs{}, err
		}
	}
	slices.SortStableFunc(found.files, func(a, b input) int { return cmp.Compare(a.name, b.name) })
	for i, f := range found.files[min(1, len(found.files)):] {
		if before := found.files[i]; before.name == f.name {
			return inputs{}, usage("two inputs have the name %s: %s and %s; give one another name, NAME=PATH", f.name, cmp.Or(before.path, "-"), cmp.Or(f.path, "-"))
		}
	}
	if found.stdin {
		found.size = -1
	}
	return found, nil
}

func (f *inputs) add(arg string) error {
	name, at := "", arg
	if _, err := os.Stat(arg); errors.Is(err, fs.ErrNotExist) {
		if before, after, ok := strings.Cut(arg, "="); ok && before != "" {
			name, at = before, after
		}
	}
	if at == "-" {
		if f.stdin {
			return usage("standard input (-) can be one input only")
		}
		f.stdin = true
		f.files = append(f.files, input{name: cmp.Or(name, defaultInput)})
		return nil
	}
	info, err := os.Stat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return usage("there is no file or directory %s", at)
	case err != nil:
		return err
	case info.IsDir():
		return f.addDirectory(name, at)
	}
	return f.addFile(cmp.Or(name, filepath.Base(at)), at, info)
}

func (f *inputs) addFile(name, at string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", at)
	}
	f.size += info.Size()
	f.files = append(f.files, input{name: name, path: at, size: info.Size()})
	return nil
}

// addDirectory adds the files below a directory. Links to files are followed, those to
// directories are not: they could lead in a circle.
func (f *inputs) addDirectory(name, dir string) error {
	had := len(f.files)
	err := filepath.WalkDir(dir, func(at string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		if info.IsDir() {
			return fmt.Errorf("%s is a link to a directory: name the directory itself", at)
		}
		below, err := filepath.Rel(dir, at)
		if err != nil {
			return err
		}
		return f.addFile(path.Join(name, filepath.ToSlash(below)), at, info)
	})
	if err == nil && len(f.files) == had {
		err = usage("there is no file in %s", dir)
	}
	return err
}

// stoppableReader reads from standard input, which may bring nothing for ever. A read ends
// when stop is closed, too.
type stoppableReader struct {
	from io.Reader
	stop <-chan struct{}
	rest []byte // of what was read
	err  error  // after the rest
}

func (r *stoppableReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 && r.err == nil {
		type piece struct {
			data []byte
			err  error
		}
		came := make(chan piece, 1)
		go func() { // ends with the program, should nothing come
			data := make([]byte, 32<<10)
			n, err := r.from.Read(data)
			came <- piece{data[:n], err}
		}()
		select {
		case <-r.stop:
			r.err = context.Canceled
		case next := <-came:
			r.rest, r.err = next.data, next.err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	if len(r.rest) > 0 {
		return n, nil
	}
	return n, r.err
}

// write adds the files to a form; count is told of their bytes.
func (f *inputs) write(form *client.FormWriter, stdin io.Reader, count io.Writer) error {
	for _, file := range f.files {
		if err := file.write(form, stdin, count); err != nil {
			return err
		}
	}
	return nil
}

func (f input) write(form *client.FormWriter, stdin io.Reader, count io.Writer) error {
	content := stdin
	if f.path != "" {
		opened, err := os.Open(f.path)
		if err != nil {
			return err
		}
		defer opened.Close()
		content = opened
	}
	if err := form.File(f.name, io.TeeReader(content, count)); err != nil {
		return fmt.Errorf("send %s: %w", f.name, err)
	}
	return nil
}
