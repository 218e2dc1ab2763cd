package proc

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// UnmapProgram unmaps the pages of this program's file that are mapped and only read. They
// stay in the page cache, and those that the program uses are mapped again when it does. So
// what only its start needed does not count as its resident memory. A mapping with pages that
// differ from the file is kept: the dynamic linker writes to some before they are read-only.
func UnmapProgram() error {
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	var first, last uintptr
	var ok, unwritten, unswapped bool
	for line := range bytes.Lines(maps) {
		switch name, value, _ := bytes.Cut(line, []byte(":")); string(name) {
		default:
			if bytes.Contains(name, []byte("-")) { // the addresses: a mapping begins
				first, last, ok = readOnlyMapping(string(line), program)
				unwritten, unswapped = false, false
			}
		case "Anonymous":
			unwritten = string(bytes.TrimSpace(value)) == "0 kB"
		case "Swap":
			unswapped = string(bytes.TrimSpace(value)) == "0 kB"
		case "VmFlags": // the last line of a mapping
			if !ok || !unwritten || !unswapped {
				continue
			}
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, first, last-first, unix.MADV_DONTNEED); errno != 0 {
				return fmt.Errorf("unmap the program's pages: %w", errno)
			}
		}
	}
	return nil
}

// readOnlyMapping reads the first line of a mapping in /proc/PID/smaps, proc_pid_smaps(5), and
// returns the addresses of a mapping of the file that is not writable.
func readOnlyMapping(line, file string) (first, last uintptr, ok bool) {
	var perms, offset, device, inode, path string
	if n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s %s", &first, &last, &perms, &offset, &device, &inode, &path); n != 7 {
		return 0, 0, false
	}
	return first, last, path == file && len(perms) == 4 && perms[0] == 'r' && perms[1] == '-'
}
