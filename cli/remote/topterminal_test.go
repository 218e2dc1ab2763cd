//go:build linux

package remote

import (
	"context"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
)

// screen is a terminal that remembers what it shows.
type screen struct {
	t       *testing.T
	control *os.File

	mu       sync.Mutex // for all of the emulator but Read
	emulator *vt.Emulator
}

// Write shows what a program has written.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.emulator.Write(p)
}

// newScreen opens a terminal; tty is a program's end of it.
func newScreen(t *testing.T, width, height int) (_ *screen, tty *os.File) {
	t.Helper()
	control, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, control: control, emulator: vt.NewEmulator(width, height)}
	s.resize(width, height)
	var copying sync.WaitGroup
	copying.Go(func() { _, _ = io.Copy(s, control) })
	copying.Go(func() { _, _ = io.Copy(control, s.emulator) }) // what it answers to questions
	t.Cleanup(func() {
		_ = tty.Close()
		_ = control.Close()
		_, _ = io.WriteString(s, "\x1b[c") // what it answers has nowhere to go, which ends the copying
		copying.Wait()
	})
	return s, tty
}

func (s *screen) resize(width, height int) {
	s.t.Helper()
	s.mu.Lock()
	s.emulator.Resize(width, height)
	s.mu.Unlock()
	if err := pty.Setsize(s.control, &pty.Winsize{Cols: uint16(width), Rows: uint16(height)}); err != nil {
		s.t.Fatal(err)
	}
}

// clocks are times of the day, which tests do not compare.
var clocks = regexp.MustCompile(`\d\d:\d\d:\d\d`)

// text is what it shows.
func (s *screen) text() string {
	s.mu.Lock()
	shown := s.emulator.String()
	s.mu.Unlock()
	var lines []string
	for line := range strings.SplitSeq(clocks.ReplaceAllString(shown, "hh:mm:ss"), "\n") {
		lines = append(lines, strings.TrimRight(line, " \r"))
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n") + "\n"
}

// awaits waits until it shows something.
func (s *screen) awaits(what string, ok func(text string) bool) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(s.text()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s is not shown:\n%s", what, s.text())
		}
	}
}

// On a terminal, top goes on until q, and takes a new size up.
func TestTopOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm-256color")
	flock, gpus := madeUp()
	for i := range flock.Sheep {
		flock.Sheep[i].StartedAt, flock.Sheep[i].RunningSince = nil, nil
	}
	flock.Queue.Head[0].ExpectedStart = nil
	server := flockServer(t, flock, gpus)
	s, tty := newScreen(t, 100, 30)
	cmd := topCommand(Config{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"--server", server.URL})
	cmd.SetOut(tty)
	cmd.SetIn(tty)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	s.awaits("all", func(text string) bool {
		return strings.Contains(text, "live") && strings.Contains(text, "the driver is slow")
	})
	golden(t, "topterminal.txt", s.text())

	s.resize(60, 6)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil { // as the kernel does for a terminal that is the process's own
		t.Fatal(err)
	}
	s.awaits("fewer lines", func(text string) bool { return strings.Contains(text, "prepari…") })
	if _, err := io.WriteString(s.control, "G"); err != nil {
		t.Fatal(err)
	}
	s.awaits("the end", func(text string) bool { return strings.Contains(text, "the driver is slow") })
	if _, err := io.WriteString(s.control, "q"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("q does not end it")
	}
}
