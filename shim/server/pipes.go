package server

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// runnerPipes are the pipes that a container's first process writes to. containerd's
// shim copies from them to our FIFOs. They are opened with O_PATH, so that readers still
// get an EOF when the writers have closed them.
type runnerPipes []*os.File

// openRunnerPipes opens the stdout and stderr pipes of a process that has not begun.
func openRunnerPipes(pid int) runnerPipes {
	var pipes runnerPipes
	for _, fd := range []string{"1", "2"} {
		f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/fd/"+fd, unix.O_PATH, 0)
		if err != nil {
			continue
		}
		if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
			f.Close()
			continue
		}
		pipes = append(pipes, f)
	}
	return pipes
}

func (p runnerPipes) close() {
	for _, f := range p {
		f.Close()
	}
}

// containerd's shim takes a moment between reading from a pipe and writing to the FIFO.
// So a pipe counts as copied when it was empty emptyChecks times in a row, emptyInterval
// apart.
const (
	emptyChecks   = 4
	emptyInterval = 500 * time.Microsecond
)

// settle waits until containerd's shim has copied the output so far, at most until by.
func (p runnerPipes) settle(by time.Time) {
	var ends []int
	for _, f := range p {
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			ends = append(ends, fd)
		}
	}
	for empty := 0; len(ends) > 0 && empty < emptyChecks && time.Now().Before(by); time.Sleep(emptyInterval) {
		empty++
		for _, fd := range ends {
			if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && n > 0 {
				empty = 0
			}
		}
	}
}
