package proc

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// UnmapProgram unmaps the pages of this program's file that are mapped and only read. They
// stay in the page cache, and those that the program uses are mapped again when it does. So
// what only its start needed does not count as its resident memory.
func UnmapProgram() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	for line := range bytes.Lines(maps) {
		first, last, ok := readOnlyMapping(string(line), program)
		if !ok {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, first, last-first, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unmap the program's pages: %w", errno)
		}
	}
	return nil
}

// readOnlyMapping reads a line of /proc/PID/maps, proc_pid_maps(5), and returns the addresses
// of a mapping of the file that is not writable.
func readOnlyMapping(line, file string) (first, last uintptr, ok bool) {
	var perms, offset, device, inode, path string
	if n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s %s", &first, &last, &perms, &offset, &device, &inode, &path); n != 7 {
		return 0, 0, false
	}
	return first, last, path == file && len(perms) == 4 && perms[0] == 'r' && perms[1] == '-'
}
