package e2e

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// command runs shepherdd with the world's configuration.
func (w *world) command(args ...string) (string, error) {
	cmd := exec.Command(programs+"/shepherdd", append(args, "-c", w.config)...)
	cmd.Env, cmd.Dir = w.env, w.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *world) must(args ...string) string {
	w.t.Helper()
	out, err := w.command(args...)
	if err != nil {
		w.t.Fatalf("shepherdd %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// manager stands for the service manager: it hears what the daemon tells.
func (w *world) manager() *net.UnixConn {
	w.t.Helper()
	path := w.dir + "/notify"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	w.env = append(w.env, "NOTIFY_SOCKET="+path)
	return conn
}

// hears waits until the daemon tells what begins so.
func (w *world) hears(conn *net.UnixConn, want string) string {
	w.t.Helper()
	conn.SetReadDeadline(time.Now().Add(deadline))
	for {
		b := make([]byte, 4096)
		n, err := conn.Read(b)
		if err != nil {
			w.t.Fatalf("the daemon does not tell %q: %v\n%s", want, err, w.log)
		}
		if strings.HasPrefix(string(b[:n]), want) {
			return string(b[:n])
		}
	}
}

// Sheep come, change and go by a reload; a job that runs in another is not
// disturbed, and what cannot be read changes nothing.
func TestReload(t *testing.T) {
	w := newWorld(t, "stays", "goes")
	w.start()
	gate := w.dir + "/gate"
	w.submit("job-1", "echo:v1", "wait "+gate, "sheep_id", "stays")
	w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })

	w.edit("data_root", "dataroot")
	if out, err := w.command("reload"); err == nil || !strings.Contains(out, "dataroot") {
		t.Errorf("a bad configuration: %v: %s", err, out)
	}
	w.edit("dataroot", "data_root")
	if got := w.must("reload"); got != "nothing has changed\n" {
		t.Errorf("reload without a change says %q", got)
	}

	w.edit("  goes:\n", "  comes:\n")
	w.edit("  host: 127.0.0.1\n", "  host: 127.0.0.1\n  max_body: 1MiB\n")
	w.edit("sheep:\n", "logging: {level: debug}\nsheep:\n")
	want := "sheep added: comes\nsheep removed: goes\nnow in effect: logging.level\nneeds a restart of the daemon: api.max_body\n"
	if got := w.must("reload"); got != want {
		t.Errorf("reload says %q, want %q", got, want)
	}
	w.submit("job-2", "echo:v1", "two", "sheep_id", "comes")
	w.expectDone("job-2", "two")
	if code, text := w.request("POST", "/start-job", jobBody("job-3", "echo:v1", "three", "sheep_id", "goes")); code == 200 {
		t.Errorf("a job for the sheep that is gone is taken: %s", text)
	}
	write(t, gate, "")
	w.expectDone("job-1", "wait "+gate)
	if starts := w.noted("start"); len(starts) != 2 {
		t.Errorf("runners started: %v", starts)
	}
	if list := w.must("sheep", "ls"); !strings.Contains(list, "comes") || strings.Contains(list, "goes") || !strings.Contains(list, "echo:v1") {
		t.Errorf("sheep ls says\n%s", list)
	}
}

// Under a service manager the daemon says how it is, reloads by SIGHUP, and
// leaves its sheep up with the job they have when it is stopped; the next takes
// them up.
func TestUnderServiceManager(t *testing.T) {
	w := newWorld(t)
	manager := w.manager()
	w.env = append(w.env, "WATCHDOG_USEC=400000")
	w.start()
	w.hears(manager, "READY=1")
	w.hears(manager, "WATCHDOG=1")
	gate := w.dir + "/gate"
	w.submit("job-1", "echo:v1", "wait "+gate)
	w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
	w.submit("job-2", "echo:v1", "two")
	for !strings.Contains(w.hears(manager, "STATUS="), "1 jobs queued, 1 running; 1 sheep, 1 up, 1 at work") {
	}
	const page = "https://page.example"
	if allowed := w.allowedOrigin(page); allowed != page {
		t.Errorf("before the reload pages of origin %q may read", allowed)
	}
	w.edit("sheep:\n", "drain_timeout: 20s\nsheep:\n")
	w.edit("api:\n", "api:\n  cors_origins: [https://other.example]\n")
	w.daemon.Process.Signal(syscall.SIGHUP)
	w.hears(manager, "RELOADING=1")
	w.hears(manager, "READY=1")
	w.logged("now in effect: api.cors_origins, drain_timeout")
	if allowed := w.allowedOrigin(page); allowed != "" {
		t.Errorf("after the reload pages of origin %q may read", allowed)
	}
	if allowed := w.allowedOrigin("https://other.example"); allowed != "https://other.example" {
		t.Errorf("after the reload pages of origin %q may read, want https://other.example", allowed)
	}

	if code := w.stop(); code != 0 {
		t.Errorf("the daemon ends with %d", code)
	}
	w.hears(manager, "STOPPING=1")
	if list := w.must("sheep", "ls"); !strings.Contains(list, "bare_sheep") || !strings.Contains(list, "echo:v1") {
		t.Errorf("sheep ls without a daemon says\n%s", list)
	}
	for pid := range w.processes() {
		environ, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if strings.Contains(string(environ), "NOTIFY_SOCKET") || strings.Contains(string(environ), "WATCHDOG_USEC") {
			t.Errorf("process %d has what the service manager meant for the daemon", pid)
		}
	}
	w.start()
	write(t, gate, "")
	w.expectDone("job-1", "wait "+gate)
	w.expectDone("job-2", "two")
	if starts := w.noted("start"); len(starts) != 1 {
		t.Errorf("the model was loaded %d times", len(starts))
	}
	w.must("sheep", "stop", "--all") // or the daemon would leave them to end
}

// allowedOrigin is the origin whose pages may read what the API answers to a page of
// the origin.
func (w *world) allowedOrigin(origin string) string {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.api+"/status", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Origin", origin)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	answer.Body.Close()
	return answer.Header.Get("Access-Control-Allow-Origin")
}

// All sheep are stopped, with a daemon and without.
func TestSheepStop(t *testing.T) {
	t.Run("with a daemon", func(t *testing.T) {
		w := newWorld(t, "one", "two")
		w.start()
		gate := w.dir + "/gate"
		w.submit("job-1", "echo:v1", "wait "+gate)
		w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
		w.must("sheep", "stop", "--all", "--drain-timeout", "0s")
		if left := w.processes(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		w.submit("job-2", "echo:v1", "two")
		write(t, gate, "")
		w.must("sheep", "start", "--all")
		w.expectDone("job-1", "wait "+gate)
		w.expectDone("job-2", "two")
	})
	t.Run("one of two", func(t *testing.T) {
		w := newWorld(t, "one", "two")
		w.start()
		for _, change := range []struct{ verb, says string }{
			{"stop", "Sheep one is stopped."}, {"start", "Sheep one works again."}, {"restart", "Sheep one has ended its runner and works again."},
		} {
			if out := w.must("sheep", change.verb, "one"); strings.TrimSpace(out) != change.says {
				t.Errorf("%s says %q", change.verb, out)
			}
			id := "after-" + change.verb
			w.submit(id, "echo:v1", change.verb) // the other sheep works
			w.expectDone(id, change.verb)
		}
	})
	t.Run("without", func(t *testing.T) {
		w := newWorld(t)
		w.start()
		gate := w.dir + "/gate"
		w.submit("job-1", "echo:v1", "wait "+gate)
		w.submit("job-2", "echo:v1", "two")
		w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
		w.kill()
		write(t, gate, "")
		w.must("sheep", "stop", "--all") // the job that runs may finish
		if left := w.processes(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if jobs := w.noted("job"); len(jobs) != 1 {
			t.Errorf("runners were given %v", jobs)
		}
		w.start()
		w.expectDone("job-1", "wait "+gate)
		w.expectDone("job-2", "two")
	})
}

// The secret key may be in a file.
func TestSecretKeyFile(t *testing.T) {
	w := newWorld(t)
	write(t, w.dir+"/secret", secretKey+"\n")
	w.edit("  secret_key: "+secretKey, "  secret_key_file: "+w.dir+"/secret")
	w.start()
	w.submit("job-1", "echo:v1", "one")
	w.expectDone("job-1", "one")
	if _, err := os.Stat(w.dir + "/state/storage/credentials"); err == nil {
		t.Error("the daemon made keys of its own")
	}
}
