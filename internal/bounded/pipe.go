package bounded

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Pipe is the reading end of a pipe that can wait until everything written before some
// moment has been processed.
type Pipe struct {
	*os.File
	done atomic.Int64 // of what was read

	mu   sync.Mutex // held while it is read
	read int64
}

// NewPipe creates a Pipe from a file that supports polling, such as those of os.Pipe and
// named pipes opened with O_NONBLOCK.
func NewPipe(f *os.File) *Pipe { return &Pipe{File: f} }

// Read reads from the pipe. The caller calls Done when it has processed the data.
func (r *Pipe) Read(p []byte) (n int, err error) {
	raw, err := r.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for {
			if n, failed = unix.Read(int(fd), p); !errors.Is(failed, unix.EINTR) {
				break
			}
		}
		if errors.Is(failed, unix.EAGAIN) {
			return false
		}
		n = max(n, 0)
		r.read += int64(n)
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, failed
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// Done records that n more bytes have been processed.
func (r *Pipe) Done(n int) { r.done.Add(int64(n)) }

// Settle waits until all data in the pipe at the time of the call has been processed, but
// not beyond the given time. Data written later does not delay it.
func (r *Pipe) Settle(by time.Time) {
	due := r.due()
	for wait := 50 * time.Microsecond; r.done.Load() < due && time.Now().Before(by); wait = min(2*wait, 10*time.Millisecond) {
		time.Sleep(wait)
	}
}

// Progress returns how many bytes have been processed, and how many will have been when all
// data in the pipe now is.
func (r *Pipe) Progress() (done, due int64) { return r.done.Load(), r.due() }

// due returns the value of done when all data in the pipe now has been processed.
func (r *Pipe) due() (n int64) {
	raw, err := r.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // fails where it is closed: nothing is due
		r.mu.Lock()
		defer r.mu.Unlock()
		waiting, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		n = r.read + int64(waiting)
	})
	return n
}
