package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

// hang is the time limit of operations that take far less.
const hang = 2 * time.Minute

// payload is the payload of small jobs.
var payload = strings.Repeat("0123456789abcdef", 64)

// world is a machine with one daemon and the sheep "sheep", which knows the
// models noop:v1, noop:v2 and hold:v1.
type world struct {
	b        *testing.B
	programs string // the directory of the daemon and its shim
	dir      string
	config   string
	api      string
	client   *http.Client

	daemon *exec.Cmd
	exited chan struct{}
}

// newWorld makes a machine whose storage is at url. Its daemon is not started.
func newWorld(b *testing.B, url, accessKey, secretKey string) *world {
	b.Helper()
	return makeWorld(b, programs, serverStorage(url, accessKey, secretKey))
}

// newServerWorld makes a machine whose daemon, of these programs, has its storage
// on the server.
func newServerWorld(b *testing.B, programs string, server *testenv.MinIO) *world {
	b.Helper()
	return makeWorld(b, programs, serverStorage(server.URL, server.AccessKey, server.SecretKey))
}

func serverStorage(url, accessKey, secretKey string) string {
	return fmt.Sprintf("{url: %q, access_key: %q, secret_key: %q}", url, accessKey, secretKey)
}

// newEmbeddedWorld makes a machine whose daemon, of these programs, has the
// embedded storage.
func newEmbeddedWorld(b *testing.B, programs string) *world {
	b.Helper()
	return makeWorld(b, programs, fmt.Sprintf("{listen: '127.0.0.1:%d'}", testenv.FreePort(b)))
}

func makeWorld(b *testing.B, daemon, storage string) *world {
	b.Helper()
	dir := b.TempDir()
	port := testenv.FreePort(b)
	w := &world{b: b, programs: daemon, dir: dir, config: filepath.Join(dir, "shepherd.yml"), api: "http://127.0.0.1:" + strconv.Itoa(port)}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	w.client = &http.Client{Transport: transport, Timeout: hang}
	for model, text := range map[string]string{"noop/v1": "", "noop/v2": "", "hold/v1": "hold"} {
		folder := filepath.Join(dir, "models", model)
		must(b, os.MkdirAll(folder, 0o755))
		must(b, os.WriteFile(filepath.Join(folder, "config.yaml"), []byte(text), 0o644))
	}
	must(b, os.WriteFile(w.config, fmt.Appendf(nil, `data_root: %[1]s/data
state_dir: %[1]s/state
storage: %[2]s
api: {host: 127.0.0.1, port: %[3]d}
sheep:
  sheep:
    type: bare
    working_directory: %[1]s/models
    port: %[5]d
    command: [%[4]s/noop]
`, dir, storage, port, programs, testenv.FreePort(b)), 0o644))
	b.Cleanup(func() {
		if w.daemon != nil {
			w.stop()
		}
		transport.CloseIdleConnections()
	})
	return w
}

// start starts the daemon and returns how long it took until it was ready.
func (w *world) start() time.Duration {
	w.b.Helper()
	log, err := os.OpenFile(filepath.Join(w.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(w.b, err)
	defer log.Close()
	w.daemon = exec.Command(w.programs+"/shepherdd", "-c", w.config)
	w.daemon.Dir, w.daemon.Stdout, w.daemon.Stderr = w.dir, log, log
	began := time.Now()
	must(w.b, w.daemon.Start())
	exited := make(chan struct{})
	w.exited = exited
	go func(daemon *exec.Cmd) {
		_ = daemon.Wait() // the log has its exit
		close(exited)
	}(w.daemon)
	limit := time.After(hang)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		if answer, err := w.client.Get(w.api + "/readyz"); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return time.Since(began)
			}
		}
		select {
		case <-exited:
			w.fatal("the daemon has ended")
		case <-limit:
			w.fatal("the daemon does not get ready")
		case <-again.C:
		}
	}
}

// stop ends the daemon and its sheep.
func (w *world) stop() {
	w.b.Helper()
	_ = w.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.exited:
	case <-time.After(hang):
		w.kill()
		w.b.Error("the daemon did not stop")
	}
	w.daemon = nil
}

func (w *world) kill() {
	_ = w.daemon.Process.Kill()
	<-w.exited
}

// fatal fails the benchmark with the end of the daemon's log.
func (w *world) fatal(format string, args ...any) {
	w.b.Helper()
	text, _ := os.ReadFile(filepath.Join(w.dir, "log"))
	w.b.Fatalf("%s; the daemon's log ends with:\n%s", fmt.Sprintf(format, args...), text[max(0, len(text)-4000):])
}

// get sends a request to the API and returns the body. The status must be 200.
func (w *world) get(path string) ([]byte, error) {
	return w.ask(http.MethodGet, path, nil)
}

func (w *world) ask(method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(w.b.Context(), method, w.api+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	answer, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s %s", method, path, answer.Status, text)
	}
	return text, err
}

// submit submits a job to any sheep, with a payload unless it is empty.
func (w *world) submit(id, model, payload string) error {
	return w.startJob(id, model, map[string]any{"payload": payload})
}

// submitTo submits a job, whose inputs are in storage, to a sheep.
func (w *world) submitTo(id, model, sheep string) error {
	return w.startJob(id, model, map[string]any{"sheep_id": sheep})
}

// startJob submits a job with the other fields of the request that are not empty.
func (w *world) startJob(id, model string, request map[string]any) error {
	name, version, _ := strings.Cut(model, ":")
	maps.DeleteFunc(request, func(_ string, value any) bool { return value == "" })
	request["job_id"], request["model"] = id, map[string]string{"name": name, "version": version}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = w.ask(http.MethodPost, "/start-job", body)
	return err
}

// await waits until a job is done, and fails if it ends otherwise.
func (w *world) await(id string) error {
	text, err := w.get("/jobs/" + id + "/wait_ready")
	if err == nil && !bytes.Contains(text, []byte(`"status": "done"`)) && !bytes.Contains(text, []byte(`"status":"done"`)) {
		err = fmt.Errorf("job %s: %s", id, text)
	}
	return err
}

// do submits a small job and reads its result.
func (w *world) do(id, model string) error {
	if err := w.submit(id, model, payload); err != nil {
		return err
	}
	if err := w.await(id); err != nil {
		return err
	}
	result, err := w.get("/jobs/" + id + "/result")
	if err == nil && string(result) != payload {
		err = fmt.Errorf("job %s: a result of %d bytes that is not its payload", id, len(result))
	}
	return err
}

// names returns a function that returns a new job id at each call.
func names(prefix string) func() string {
	n := 0
	return func() string {
		n++
		return fmt.Sprintf("%s-%d", prefix, n)
	}
}

// startNull starts the storage that keeps nothing and returns its address and process id.
func startNull(b *testing.B) (url string, pid int) {
	b.Helper()
	null := exec.Command(programs + "/null")
	out, err := null.StdoutPipe()
	must(b, err)
	must(b, null.Start())
	b.Cleanup(func() {
		_ = null.Process.Kill()
		_ = null.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	must(b, err)
	return strings.TrimSpace(line), null.Process.Pid
}

// together calls do for 0 to n-1 from that many workers.
func together(b *testing.B, workers, n int, do func(i int) error) {
	b.Helper()
	next := make(chan int)
	failed := make(chan error, workers)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for range workers {
		go func() {
			var err error
			for i := range next {
				if err = do(i); err != nil {
					cancel()
					break
				}
			}
			failed <- err
		}()
	}
feeding:
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
			break feeding
		}
	}
	close(next)
	var err error
	for range workers {
		err = errors.Join(err, <-failed)
	}
	must(b, err)
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
