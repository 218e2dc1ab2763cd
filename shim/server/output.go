package server

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/bounded"
	"github.com/iterait/shepherd/internal/logspan"
	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/shim"
)

// tailSize is how many bytes of each stream's end are kept in memory.
const tailSize = 32 << 10

// output copies what the runner writes to stdout and stderr from pipes to log files. So
// the shim has the last lines, and can rotate the logs without the runner's help. Memory
// is bounded. If a file cannot be written, lines are lost, but the runner is not blocked.
type output struct {
	stdout, stderr *os.File // the pipes' write ends for the runner, closed by started
	pipes          []*bounded.Pipe
	marks          [2]*marks // of a container's stdout and stderr; nil for a bare runner
	files          []io.Closer
	log            *slog.Logger
	copying        sync.WaitGroup

	logs []positioned // the files, each once

	mu  sync.Mutex
	out tail
	err tail
}

// positioned is a log file that knows the position of its end.
type positioned interface{ position() logspan.Position }

// appended is a log file that is not rotated.
type appended struct{ *os.File }

func (f appended) position() logspan.Position { return logspan.At(f.File) }

// position returns the present ends of the logs; nil for a nil output.
func (o *output) position() logspan.Mark {
	if o == nil {
		return nil
	}
	mark := make(logspan.Mark, len(o.logs))
	for i, l := range o.logs {
		mark[i] = l.position()
	}
	return mark
}

// settle waits until the present content of the pipes is in the logs, at most until by.
func (o *output) settle(by time.Time) {
	if o == nil {
		return
	}
	for _, r := range o.pipes {
		r.Settle(by)
	}
}

// start starts copying from a pipe to w and end. m is nil for a stream without marks.
func (o *output) start(r *os.File, m *marks, w io.Writer, end *tail) {
	p := bounded.NewPipe(r)
	o.pipes = append(o.pipes, p)
	o.copying.Go(func() { o.copy(p, m, w, end) })
}

// simultaneous is how close in time the last writes to both streams count as
// simultaneous: there is no order between two pipes, and of simultaneous output the
// cause of the exit is usually on stderr.
const simultaneous = time.Second

// tail is the end of one stream.
type tail struct {
	text *bounded.Tail
	at   time.Time // of the last write
}

func newTail() tail { return tail{text: bounded.NewTail(tailSize)} }

// openOutput creates the pipes of a bare runner, opens the log files and starts copying.
func openOutput(spec shim.Spec, log *slog.Logger) (_ *output, err error) {
	o := &output{log: log, out: newTail(), err: newTail()}
	defer func() {
		if err != nil {
			o.started()
			o.close()
		}
	}()
	var shared io.Writer
	for _, stream := range []struct {
		name, path string
		into       **os.File
		end        *tail
	}{{"stdout", spec.Runner.Stdout, &o.stdout, &o.out}, {"stderr", spec.Runner.Stderr, &o.stderr, &o.err}} {
		var w io.Writer
		switch {
		case stream.path != "":
			f, err := openAppend(stream.path)
			if err != nil {
				return nil, fmt.Errorf("could not open %s log file: %w", stream.name, err)
			}
			o.files = append(o.files, f)
			o.logs = append(o.logs, appended{f})
			w = f
		default:
			if shared == nil {
				f, err := openRotated(filepath.Join(spec.LogDir, shim.RunnerLog), spec.LogSize, spec.LogKeep)
				if err != nil {
					return nil, fmt.Errorf("could not open the runner's log file: %w", err)
				}
				o.files = append(o.files, f)
				o.logs = append(o.logs, f)
				shared = f
			}
			w = shared
		}
		r, end, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		*stream.into = end
		o.start(r, nil, w, stream.end)
	}
	return o, nil
}

// openFIFOs opens the FIFOs of a container's output in the life's directory and starts
// copying from them. It holds each open for writing, too, until started is called, so
// that reading does not end before containerd's shim has opened it.
func openFIFOs(spec shim.Spec, folder string, log *slog.Logger) (_ *output, err error) {
	o := &output{log: log, out: newTail(), err: newTail()}
	defer func() {
		if err != nil {
			o.started()
			o.close()
		}
	}()
	f, err := openRotated(filepath.Join(spec.LogDir, shim.RunnerLog), spec.LogSize, spec.LogKeep)
	if err != nil {
		return nil, fmt.Errorf("could not open the runner's log file: %w", err)
	}
	o.files, o.logs = append(o.files, f), append(o.logs, f)
	for i, stream := range []struct {
		name string
		into **os.File
		end  *tail
	}{{shim.Stdout, &o.stdout, &o.out}, {shim.Stderr, &o.stderr, &o.err}} {
		path := filepath.Join(folder, stream.name)
		if *stream.into, err = os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
			return nil, err
		}
		r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		o.marks[i] = newMarks()
		o.start(r, o.marks[i], f, stream.end)
	}
	return o, nil
}

func openAppend(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
}

func (o *output) copy(r *bounded.Pipe, m *marks, w io.Writer, end *tail) {
	buffer := make([]byte, 16<<10)
	failing := false
	keep := func(text []byte) {
		if len(text) == 0 {
			return
		}
		o.mu.Lock()
		end.note(text, time.Now())
		o.mu.Unlock()
		_, err := w.Write(text)
		if err != nil && !failing {
			o.log.Warn("cannot write the runner's log; lines are lost until it can be written again", "error", err)
		}
		failing = err != nil
	}
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			text, marked := buffer[:n], false
			if m != nil {
				text, marked = m.take(text)
			}
			keep(text)
			if marked {
				m.arrived()
			}
			r.Done(n)
		}
		if err != nil {
			if m != nil {
				keep(m.rest())
			}
			return
		}
	}
}

// note appends to the tail.
func (t *tail) note(p []byte, now time.Time) {
	t.at = now
	_, _ = t.text.Write(p) // never fails
}

// started closes this process's copies of the write ends, once the runner has its own.
func (o *output) started() {
	for _, f := range []*os.File{o.stdout, o.stderr} {
		if f != nil {
			f.Close() // it may be closed already
		}
	}
}

// The limits of output.last for a pipe that a process outside the runner keeps open.
const (
	quiet  = time.Second      // after the last output, with nothing left to read
	stuck  = 10 * time.Second // for output to be read, without progress
	longer = 5 * time.Second  // altogether, for what is written after the runner's end
)

// last waits until the pipes have ended, which is when the runner's last process has,
// and returns the last lines of the output; see logtext.Tail. All that the pipes hold
// when it is called is read, however long that takes on a busy machine.
func (o *output) last() string {
	ended := make(chan struct{})
	go func() {
		o.copying.Wait()
		close(ended)
	}()
	o.drain(ended)
	for _, r := range o.pipes {
		_ = r.SetReadDeadline(time.Now())
	}
	<-ended
	o.mu.Lock()
	defer o.mu.Unlock()
	first, then := &o.out, &o.err
	if o.out.at.Sub(o.err.at) > simultaneous {
		first, then = then, first
	}
	return logtext.Tail(first.text.String() + "\n" + then.text.String())
}

// drain waits until ended is closed, or there is nothing left to wait for.
func (o *output) drain(ended <-chan struct{}) {
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	before, first := o.progress()
	began := time.Now()
	for since := began; ; {
		select {
		case <-ended:
			return
		case <-poll.C:
		}
		done, due := o.progress()
		now := time.Now()
		patience := quiet
		if done < due {
			patience = stuck
		}
		switch {
		case done != before:
			before, since = done, now
		case now.Sub(since) > patience:
			return
		}
		if done >= first && now.Sub(began) > longer {
			return
		}
	}
}

// progress returns how many bytes of all pipes have been processed, and how many will have
// been when all that they hold now is.
func (o *output) progress() (done, due int64) {
	for _, r := range o.pipes {
		d, n := r.Progress()
		done, due = done+d, due+n
	}
	return done, due
}

func (o *output) close() {
	o.started()
	for _, r := range o.pipes {
		r.Close()
	}
	o.copying.Wait()
	for _, f := range o.files {
		f.Close()
	}
}

// rotated is a log file that is rotated when it reaches limit bytes.
type rotated struct {
	path  string
	limit int64
	keep  int

	mu   sync.Mutex
	file *os.File // nil after a failure, until the next write
	size int64
}

func openRotated(path string, limit int64, keep int) (*rotated, error) {
	r := &rotated{path: path, limit: limit, keep: keep}
	return r, r.open()
}

func (r *rotated) open() error {
	f, err := openAppend(r.path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, info.Size()
	return nil
}

func (r *rotated) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil && r.limit > 0 && r.size > 0 && r.size+int64(len(p)) > r.limit {
		r.file.Close()
		r.file = nil
		if err := r.rotate(); err != nil {
			return 0, err
		}
	}
	if r.file == nil {
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

func (r *rotated) position() logspan.Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return logspan.Position{}
	}
	return logspan.At(r.file)
}

// rotate renames PATH to PATH.1, PATH.1 to PATH.2 and so on, and removes the oldest.
func (r *rotated) rotate() error {
	name := func(n int) string {
		if n == 0 {
			return r.path
		}
		return fmt.Sprintf("%s.%d", r.path, n)
	}
	if r.keep <= 0 {
		return os.Remove(r.path)
	}
	for n := r.keep; n > 0; n-- {
		if err := os.Rename(name(n-1), name(n)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func (r *rotated) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}
