package bounded

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Pipe is the reading end of a pipe that can wait until everything written before some
// moment has been processed.
type Pipe struct {
	*os.File

	mu       sync.Mutex // held while it is read
	read     int64
	done     int64         // of what was read
	advances chan struct{} // closed when done advances; nil if nobody waits for that
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
func (r *Pipe) Done(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += int64(n)
	if r.advances != nil {
		close(r.advances)
		r.advances = nil
	}
}

// Settle waits until all data in the pipe at the time of the call has been processed, but
// not beyond the given time. Data written later does not delay it.
func (r *Pipe) Settle(by time.Time) {
	due := r.due()
	if advances := r.until(due); advances != nil {
		limit := time.NewTimer(time.Until(by))
		defer limit.Stop()
		for ; advances != nil; advances = r.until(due) {
			select {
			case <-advances:
			case <-limit.C:
				return
			}
		}
	}
}

// until returns a channel that is closed when done advances, or nil once it has reached due.
func (r *Pipe) until(due int64) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done >= due {
		return nil
	}
	if r.advances == nil {
		r.advances = make(chan struct{})
	}
	return r.advances
}

// Progress returns how many bytes have been processed, and how many will have been when all
// data in the pipe now is.
func (r *Pipe) Progress() (done, due int64) {
	due = r.due()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done, due
}

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
