package proc

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	const tail = " S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 424242 1000 10\n"
	for _, name := range []string{"sh", "a b", "x) R 1 (y", ""} {
		p, err := ParseStat([]byte("12 (" + name + ")" + tail))
		want := Process{PID: 12, Name: name, State: 'S', Parent: 7, Group: 8, Session: 9, Start: 424242}
		if err != nil || p != want {
			t.Errorf("%q: got %+v, %v, want %+v", name, p, err, want)
		}
	}
	for _, bad := range []string{"", "12", "12 sh S 1 2 3", "12 (sh) S 1", "x (sh)" + tail} {
		if p, err := ParseStat([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, p)
		}
	}
}

// FuzzParseStat: a parsed line survives a round trip in the kernel's format.
func FuzzParseStat(f *testing.F) {
	for _, name := range []string{"a) b", "", "(", ") S 1 2 3", "\n", "\xff"} {
		f.Add([]byte("12 (" + name + ") S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 424242 1000 10\n"))
	}
	f.Add([]byte("-1 () Z -9223372036854775808 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 18446744073709551615"))
	f.Add([]byte("1 (a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseStat(data)
		if err != nil {
			return
		}
		written := fmt.Sprintf("%d (%s) %c %d %d %d 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 1000 10\n", p.PID, p.Name, rune(p.State), p.Parent, p.Group, p.Session, p.Start)
		again, err := ParseStat([]byte(written))
		if p.State < utf8.RuneSelf && (err != nil || again != p) {
			t.Errorf("%q is %+v, which written is %+v, %v", data, p, again, err)
		}
	})
}

func TestDescendants(t *testing.T) {
	all := []Process{{PID: 1}, {PID: 5, Parent: 1}, {PID: 6, Parent: 5}, {PID: 7, Parent: 6}, {PID: 8, Parent: 1}, {PID: 9, Parent: 9}}
	var got []int
	for _, p := range Descendants(all, 5) {
		got = append(got, p.PID)
	}
	if want := []int{6, 7}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseListeners(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:270F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:270F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 112 1 0 100 0 0 10 0
   2: 0100007F:270F 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 113 1 0 100 0 0 10 0
   3: 0100007F:2710 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 114 1 0 100 0 0 10 0
   4: 00000000000000000000000000000000:270F 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 115 1 0 100 0 0 10 0
   5: zz:270F 00000000:0000 0A
`
	found, err := parseListeners(strings.NewReader(table), 9999)
	if err != nil {
		t.Fatal(err)
	}
	want := []Listener{
		{netip.MustParseAddrPort("0.0.0.0:9999"), 111},
		{netip.MustParseAddrPort("127.0.0.1:9999"), 112},
		{netip.MustParseAddrPort("[::]:9999"), 115},
	}
	if !slices.Equal(found, want) {
		t.Errorf("got %v, want %v", found, want)
	}
	if got := ForLoopback(found); !slices.Equal(got, want[1:2]) {
		t.Errorf("a connection to 127.0.0.1 reaches %v, want %v", got, want[1:2])
	}
	if got := ForLoopback([]Listener{want[2]}); !slices.Equal(got, want[2:]) {
		t.Errorf("a connection to 127.0.0.1 reaches %v, want %v", got, want[2:])
	}
}

func TestOwnListenerIsFound(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	found, err := Listeners(l.Addr().(*net.TCPAddr).Port)
	if err != nil || len(found) != 1 {
		t.Fatalf("got %v, %v, want one listener", found, err)
	}
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	holders := Holders(ForLoopback(found), all)
	if len(holders) != 1 || holders[0].PID != os.Getpid() {
		t.Errorf("held by %+v, want this process, %d", holders, os.Getpid())
	}
}

func TestSignalSparesALaterProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.Env = []string{"SHEPHERD_TEST=proc"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	earlier := p
	earlier.Start--
	if err := Signal(earlier, unix.SIGKILL); err != nil {
		t.Errorf("a process that has gone: %v", err)
	}
	if now, err := Read(p.PID); err != nil || now.Zombie() {
		t.Errorf("a process with the same id was killed: %+v, %v", now, err)
	}
	if err := Signal(p, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if _, err := Read(p.PID); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that there is no such process", err)
	}
	if err := Signal(p, unix.SIGKILL); err != nil {
		t.Errorf("a process that has gone: %v", err)
	}
}
