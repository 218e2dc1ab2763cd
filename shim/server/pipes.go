package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// runnerPipes are the stdout and stderr pipes that a container's first process writes to; an
// element is nil if the stream is not a pipe. containerd's shim copies from them to our FIFOs.
// They are opened with O_PATH, so that readers still get an EOF when the writers have closed
// them.
type runnerPipes [2]*os.File

// openRunnerPipes opens the stdout and stderr pipes of a process that has not begun.
func openRunnerPipes(pid int) (pipes runnerPipes) {
	for i, fd := range []string{"1", "2"} {
		f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/fd/"+fd, unix.O_PATH, 0)
		if err != nil {
			continue
		}
		if !isPipe(f) || i == 1 && isSame(f, pipes[0]) {
			f.Close()
			continue
		}
		pipes[i] = f
	}
	return pipes
}

func isPipe(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}

func isSame(f, other *os.File) bool {
	if other == nil {
		return false
	}
	a, err := f.Stat()
	b, otherErr := other.Stat()
	return err == nil && otherErr == nil && os.SameFile(a, b)
}

func (p runnerPipes) close() {
	for _, f := range p {
		if f != nil {
			f.Close()
		}
	}
}

// settle waits until what the pipes hold has been copied to the logs, at most until by. It
// writes a mark behind it into each pipe, and waits until the mark arrives in the FIFO.
func (p runnerPipes) settle(marks [2]*marks, by time.Time) {
	ctx, cancel := context.WithDeadline(context.Background(), by)
	defer cancel()
	var sent [2]<-chan struct{}
	for i, f := range p {
		if f != nil && marks[i] != nil {
			sent[i] = marks[i].send(ctx, f)
		}
	}
	for _, arrived := range sent {
		if arrived != nil {
			wait(ctx, arrived)
		}
	}
}

// wait returns when c is closed or at the end of ctx. It reports whether c is closed.
func wait(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

// marks writes marks into a stream that another process copies, and takes them out where the
// copy arrives. A program that finds out what a mark looks like can confuse only its own log.
type marks struct {
	text []byte
	held []byte // the end of the stream so far, if it may be the beginning of a mark; used by take only

	mu      sync.Mutex
	awaited chan struct{} // closed when the mark that is under way arrives; nil for none
}

func newMarks() *marks { return &marks{text: []byte("\x00" + rand.Text() + "\x00")} }

// send writes a mark into the pipe and returns a channel that is closed when it has arrived. It
// returns nil if the pipe has no reader, or if it is full, or an earlier mark is under way, until
// the end of ctx. It is not called by two goroutines at once.
func (m *marks) send(ctx context.Context, pipe *os.File) <-chan struct{} {
	m.mu.Lock()
	earlier := m.awaited
	m.mu.Unlock()
	if earlier != nil && !wait(ctx, earlier) {
		return nil
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(pipe.Fd())), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		arrived, err := m.write(fd)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return arrived
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// write writes a mark, which is shorter than PIPE_BUF: all of it is written, or nothing. The
// lock keeps take from reading the mark before it is awaited.
func (m *marks) write(fd int) (arrived <-chan struct{}, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := unix.Write(fd, m.text); err != nil {
		return nil, err
	}
	m.awaited = make(chan struct{})
	return m.awaited, nil
}

// take returns p, a part of the copied stream, without marks. If a mark has arrived, the caller
// calls arrived when it has processed what take returned.
func (m *marks) take(p []byte) (text []byte, found bool) {
	m.mu.Lock()
	awaited := m.awaited != nil
	m.mu.Unlock()
	if !awaited {
		return p, false
	}
	text = append(m.held, p...)
	m.held = nil
	if before, after, ok := bytes.Cut(text, m.text); ok {
		return append(before, after...), true
	}
	held := m.begun(text)
	m.held = bytes.Clone(text[len(text)-held:])
	return text[:len(text)-held], false
}

// begun returns the length of the longest end of text that is the beginning of a mark.
func (m *marks) begun(text []byte) int {
	for n := min(len(text), len(m.text)-1); n > 0; n-- {
		if bytes.HasSuffix(text, m.text[:n]) {
			return n
		}
	}
	return 0
}

// rest returns what take has held back, at the end of the stream.
func (m *marks) rest() []byte { return m.held }

func (m *marks) arrived() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.awaited != nil {
		close(m.awaited)
		m.awaited = nil
	}
}
