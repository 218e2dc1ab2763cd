package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
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

// manager replaces the service manager: it receives the daemon's notifications, all the time,
// as one does: its socket holds ten or so.
func (w *world) manager() <-chan string {
	w.t.Helper()
	path := w.dir + "/notify"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		w.t.Fatal(err)
	}
	told := make(chan string, 100_000) // more than come in a test
	var receiving sync.WaitGroup
	receiving.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	})
	w.t.Cleanup(func() { conn.Close(); receiving.Wait() })
	w.env = append(w.env, "NOTIFY_SOCKET="+path)
	return told
}

// hears waits for a notification with that prefix.
func (w *world) hears(told <-chan string, want string) string {
	w.t.Helper()
	limit := time.After(deadline)
	for {
		select {
		case text := <-told:
			if strings.HasPrefix(text, want) {
				return text
			}
		case <-limit:
			w.t.Fatalf("the daemon does not tell %q\n%s", want, w.log)
		}
	}
}

// A reload adds, changes and removes sheep; a job in another sheep is not affected, and an
// invalid configuration changes nothing.
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

// Under a service manager the daemon reports its status, reloads on SIGHUP, and leaves its
// sheep up with their jobs when it is stopped; the next daemon adopts them.
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
	w.must("sheep", "stop", "--all") // or the daemon would leave them running
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

// A sheep is controlled remotely, with permission; its state survives a restart of the
// daemon.
func TestSheepOrders(t *testing.T) {
	w := newWorld(t, "one", "two")
	boss, bossLines := w.token("--name", "boss", "--scope", "admin,read,submit")
	farm, farmLines := w.token("--name", "farm")
	w.edit("  port: 0\nsheep", "  port: 0\n  tokens:\n"+bossLines+farmLines+"sheep")
	w.start()
	from := func(token string, args ...string) (out, told string, err error) {
		return w.shepherdd(append([]string{"sheep", "--server", w.api, "--token", token}, args...)...)
	}
	boss1 := func(says string, args ...string) {
		t.Helper()
		if out, told, err := from(boss, args...); err != nil || strings.TrimSpace(out) != says {
			t.Errorf("%q says %q, %q, %v", args, out, told, err)
		}
	}
	const job = `{"model": {"name": "echo", "version": "v1"}, "job_id": %q, "sheep_id": %q, "payload": %q}`
	submit := func(id, sheep, payload string) {
		t.Helper()
		if status, body := w.curl("-H", "Authorization: Bearer "+farm, "-d", fmt.Sprintf(job, id, sheep, payload), w.api+"/start-job"); status != "200" {
			t.Fatalf("submit %s: %s %s", id, status, body)
		}
	}
	ends := func(id, result string) {
		t.Helper()
		for _, path := range []string{"/wait_ready", "/result"} {
			status, body := w.curl("-H", "Authorization: Bearer "+farm, w.api+"/jobs/"+id+path)
			if status != "200" || path == "/result" && body != result {
				t.Errorf("%s of %s: %s %s", path, id, status, body)
			}
		}
	}
	if _, told, err := from(farm, "drain", "one"); err == nil || !strings.Contains(told, "scope admin") {
		t.Errorf("without the right: %v, %s", err, told)
	}
	gate := w.dir + "/gate"
	submit("job-1", "one", "wait "+gate)
	w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
	boss1("Sheep one takes no more jobs.", "drain", "one")
	if _, told, err := from(boss, "drain", "one"); err == nil || !strings.Contains(told, "Sheep `one` is drained already") {
		t.Errorf("twice: %v, %s", err, told)
	}
	if _, told, err := from(boss, "load", "one", "echo:v1"); err == nil || !strings.Contains(told, "has a job") {
		t.Errorf("a busy sheep loads: %v, %s", err, told)
	}
	submit("job-2", "one", "two")
	write(t, gate, "")
	ends("job-1", "wait "+gate)

	w.stop()
	w.start()
	submit("job-3", "two", "three")
	ends("job-3", "three")
	if _, listed := w.curl("-H", "Authorization: Bearer "+boss, w.api+"/sheep"); strings.Count(listed, `"condition": "drained"`) != 1 {
		t.Errorf("after a restart of the daemon: %s", listed)
	}
	boss1("Sheep one has loaded echo:v1.", "load", "one", "echo:v1")
	if _, told, err := from(boss, "load", "one", "none:v1"); err == nil || !strings.Contains(told, "none") {
		t.Errorf("a model that there is not: %v, %s", err, told)
	}
	boss1("Sheep one has ended its runner and works again.", "restart", "one")
	if _, body := w.curl("-H", "Authorization: Bearer "+farm, w.api+"/jobs/job-2/status"); !strings.Contains(body, "queued") {
		t.Errorf("the job that waits for the drained sheep: %s", body)
	}
	boss1("Sheep one takes jobs.", "resume", "one")
	ends("job-2", "two")
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
