package proc

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadOnlyMapping(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-018a5000 r-xp 00000000 fe:00 10717718    /usr/bin/shepherdd\n":         true,
		"018a5000-02f6b000 r--p 014a5000 fe:00 10717718    /usr/bin/shepherdd\n":         true,
		"02f6b000-0319d000 rw-p 02b6b000 fe:00 10717718    /usr/bin/shepherdd\n":         false,
		"7fb8360c0000-7fb836240000 r--p 00000000 fe:00 7   /usr/lib/libc.so.6\n":         false,
		"9dcd5400000-9dcd6000000 rw-p 00000000 00:00 0\n":                                false,
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0           [vsyscall]\n": false,
		"": false,
	} {
		first, last, ok := readOnlyMapping(line, "/usr/bin/shepherdd")
		if ok != want || ok && last <= first {
			t.Errorf("%q: %x-%x, %v", line, first, last, ok)
		}
	}
}

// A program goes on without the pages that are mapped, and has fewer of them.
func TestUnmapProgram(t *testing.T) {
	before := mapped(t)
	if err := UnmapProgram(); err != nil {
		t.Fatal(err)
	}
	if after := mapped(t); after >= before {
		t.Errorf("%d KiB of files are mapped, %d before", after, before)
	}
}

// mapped returns the KiB of files that are mapped into this process.
func mapped(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), "RssFile:")
	text, _, _ = strings.Cut(text, "kB")
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// As the dynamic linker does with the relocated data of a position-independent program.
func TestUnmapProgramKeepsWrittenPages(t *testing.T) {
	file, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	pages, err := unix.Mmap(int(file.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(pages)
	pages[0] = 'w'
	if err := unix.Mprotect(pages, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	if err := UnmapProgram(); err != nil {
		t.Fatal(err)
	}
	if pages[0] != 'w' {
		t.Error("a written page has the content of the file again")
	}
}
