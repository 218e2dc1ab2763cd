package server

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// runnerPipes are what a container's first process writes to: pipes that
// containerd's shim reads, to copy from them to ours. They are held by O_PATH, so
// that they end as if nobody did.
type runnerPipes []*os.File

// openRunnerPipes opens those of a process that has not begun.
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

// Containerd's shim has what it copies in its hands for a moment: a pipe that was
// empty at so many looks in a row, with so much time between, has been copied.
const (
	quietLooks = 4
	quietTime  = 500 * time.Microsecond
)

// settle waits until containerd's shim has copied what was written by now, or the
// time is over.
func (p runnerPipes) settle(by time.Time) {
	var ends []int
	for _, f := range p {
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			ends = append(ends, fd)
		}
	}
	for quiet := 0; len(ends) > 0 && quiet < quietLooks && time.Now().Before(by); time.Sleep(quietTime) {
		quiet++
		for _, fd := range ends {
			if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && n > 0 {
				quiet = 0
			}
		}
	}
}
