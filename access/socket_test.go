package access

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
)

// whoami serves the caller's name, or 403, on a new socket.
func whoami(t *testing.T, path string, who Local) {
	t.Helper()
	l, err := Listen(path, who.Group)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ConnContext: Arrive, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok, err := PeerFrom(r.Context())
		if !ok || err != nil {
			http.Error(w, "nobody", http.StatusTeapot)
			return
		}
		caller, err := who.Caller(peer)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		io.WriteString(w, caller.Name)
	})}
	served := make(chan error)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
}

// open is a directory that other users may reach into.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "access")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// curl asks as another user of the machine, and returns the answer's status.
func curl(t *testing.T, socket string, uid, gid uint32, groups ...uint32) (status, body string) {
	t.Helper()
	cmd := exec.Command(testenv.Command(t, "curl", "curl"), "--silent", "--show-error", "--write-out", " %{http_code}", "--unix-socket", socket, "http://shepherd/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "refused", string(out)
	}
	text := strings.TrimSpace(string(out))
	at := strings.LastIndexByte(text, ' ')
	return text[at+1:], strings.TrimSpace(text[:max(at, 0)])
}

func TestPeersOfTheSocket(t *testing.T) {
	claims.Hold(t, "L1")
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "run this test as root, which can act as other users")
	}
	group := uint32(4242)
	path := filepath.Join(openDir(t), "api.sock")
	whoami(t, path, Local{UID: 4001, Group: &group})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o660 || info.Sys().(*syscall.Stat_t).Gid != group {
		t.Errorf("mode %v, group %d", mode, info.Sys().(*syscall.Stat_t).Gid)
	}
	many := []uint32{}
	for g := range uint32(60) {
		many = append(many, 5000+g)
	}
	for _, c := range []struct {
		name     string
		uid, gid uint32
		groups   []uint32
		want     string
	}{
		{"root", 0, 0, nil, "200"},
		{"the group is the primary one", 4002, group, nil, "200"},
		{"the group is another one", 4002, 4002, []uint32{7, group}, "200"},
		{"the group is the last of many", 4002, 4002, append(slices.Clone(many), group), "200"},
		{"nobody in particular", 4003, 4003, nil, "refused"},
		{"many groups, not this one", 4003, 4003, many, "refused"},
	} {
		if status, body := curl(t, path, c.uid, c.gid, c.groups...); status != c.want || status == "200" && body != "uid "+strconv.Itoa(int(c.uid)) {
			t.Errorf("%s: %s %s, want %s", c.name, status, body, c.want)
		}
	}
	// Whatever becomes of the file's mode, the kernel says who is there.
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if status, _ := curl(t, path, 4003, 4003, many...); status != "403" {
		t.Errorf("a stranger, let in by the mode: %s", status)
	}
	if status, _ := curl(t, path, 4001, 4001); status != "200" {
		t.Errorf("the daemon's own user: %s", status)
	}
}

func TestSocketIsForItsOwnerAlone(t *testing.T) {
	claims.Hold(t, "L1")
	path := filepath.Join(t.TempDir(), "api.sock")
	whoami(t, path, Local{UID: uint32(os.Geteuid())})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A path may be longer than the kernel takes.
func TestSocketFarDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("long/", 40), "api.sock")
	whoami(t, path, Local{UID: uint32(os.Geteuid())})
	conn, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestSocketThatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, nil); err == nil || !strings.Contains(err.Error(), "perhaps another shepherdd") {
		t.Errorf("where another listens: %v", err)
	}
	// What a daemon leaves that was killed.
	l.(*socket).Listener.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	l, err = Listen(path, nil)
	if err != nil {
		t.Fatalf("where nobody listens any more: %v", err)
	}
	l.Close()
	l.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, nil); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("where a file is: %v", err)
	}
	if kept, err := os.ReadFile(path); err != nil || string(kept) != "mine" {
		t.Errorf("the file was touched: %q, %v", kept, err)
	}
}

func TestWhatCameByTheNetwork(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, ok, _ := PeerFrom(Arrive(t.Context(), a)); ok {
		t.Error("a peer of no socket")
	}
}
