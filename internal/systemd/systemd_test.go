package systemd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is also the service that tests start.
func TestMain(m *testing.M) {
	if os.Getenv("BE_A_SERVICE") == "" {
		os.Exit(m.Run())
	}
	if err := service(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// service answers one connection to each of its sockets with its description.
func service() error {
	m, err := Take()
	if err != nil {
		return err
	}
	defer m.Close()
	tcp, local := m.Listeners("tcp"), m.Listeners("unix")
	if len(tcp) != 2 || len(local) != 1 {
		return fmt.Errorf("%d tcp sockets and %d unix sockets", len(tcp), len(local))
	}
	if len(m.Listeners("tcp")) > 0 {
		return errors.New("the tcp sockets can be taken twice")
	}
	for _, l := range append(tcp, local...) {
		network := l.Addr().Network()
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		left := ""
		for _, v := range os.Environ() {
			if strings.HasPrefix(v, "LISTEN_") || strings.HasPrefix(v, "NOTIFY_") || strings.HasPrefix(v, "WATCHDOG_") {
				left += " " + v
			}
		}
		fmt.Fprintf(conn, "%s watchdog %s left:%s", network, m.Watchdog(), left)
		conn.Close()
		l.Close()
	}
	return m.Ready()
}

// Sockets that were opened before the service started answer. The children of the service inherit
// no variables of the manager.
func TestSockets(t *testing.T) {
	dir := t.TempDir()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	second, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	local, err := net.Listen("unix", dir+"/local")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	manager := newManager(t, dir)
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), second.(*net.TCPListener), local.(*net.UnixListener)} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0"`, self)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "BE_A_SERVICE=1", "LISTEN_FDS=3", "LISTEN_FDNAMES=a:b:c", "WATCHDOG_USEC=2000000", "NOTIFY_SOCKET="+manager.path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{tcp, second, local} {
		conn, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(conn)
		conn.Close()
		if want := l.Addr().Network() + " watchdog 2s left:"; string(said) != want || err != nil {
			t.Errorf("the service says %q, %v; want %q", said, err, want)
		}
	}
	manager.hears(t, "READY=1")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// manager receives the notifications.
type manager struct {
	path string
	conn *net.UnixConn
}

func newManager(t *testing.T, dir string) *manager {
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &manager{path, conn}
}

func (m *manager) hears(t *testing.T, want string) {
	t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 4096)
	n, err := m.conn.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), want) {
		t.Errorf("the manager hears %q, %v; want %q", b[:n], err, want)
	}
}

func TestNotify(t *testing.T) {
	m := newManager(t, t.TempDir())
	t.Setenv("NOTIFY_SOCKET", m.path)
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", "1") // another's
	told, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	if told.Watchdog() != 0 {
		t.Errorf("it feeds another's watchdog, every %s", told.Watchdog())
	}
	for _, c := range []struct {
		tell func() error
		want string
	}{
		{told.Ready, "READY=1"},
		{told.Reloading, "RELOADING=1\nMONOTONIC_USEC="},
		{told.Alive, "WATCHDOG=1"},
		{func() error { return told.Status("two\nlines") }, "STATUS=two lines"},
		{func() error { return told.Stopping(time.Second) }, "STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000"},
	} {
		if err := c.tell(); err != nil {
			t.Error(err)
		}
		m.hears(t, c.want)
	}
	m.conn.Close()
	if err := told.Ready(); err == nil {
		t.Error("a manager that is gone is told without an error")
	}
}

// A manager that receives nothing, so that its queue is full, does not hold the service up.
func TestManagerThatIsStuck(t *testing.T) {
	m := newManager(t, t.TempDir())
	t.Setenv("NOTIFY_SOCKET", m.path)
	told, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	told.limit = 50 * time.Millisecond
	for range 100_000 {
		if err := told.Alive(); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("its queue takes everything")
}

func TestNoManager(t *testing.T) {
	for _, v := range []string{"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"} {
		t.Setenv(v, "")
	}
	m, err := Take()
	if m != nil || err != nil {
		t.Fatalf("found %v, %v", m, err)
	}
	m.Close()
	if m.Listeners("tcp") != nil || m.Notifies() || m.Watchdog() != 0 || m.Ready() != nil {
		t.Error("no manager does something")
	}
}

func TestJournaled(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	if Journaled(os.Stderr) {
		t.Error("journaled without a journal")
	}
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := exec.Command("stat", "-c", "%d:%i", f.Name()).Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", strings.TrimSpace(string(out)))
	if !Journaled(f) || Journaled(os.Stdin) {
		t.Error("the journal's stream is not told from another")
	}
}
