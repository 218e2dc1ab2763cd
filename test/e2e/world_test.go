// Package e2e runs the programs as users do: shepherdd with a configuration file, runners of
// existing installations, clients over HTTP and S3; and kills them.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/internal/testenv"
)

// programs is the directory to which TestMain builds the programs.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "shepherd-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "../../cmd/...")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		builds := []*exec.Cmd{build}
		if race { // the daemon is looked at as closely as the test
			builds = append(builds, exec.Command("go", "build", "-race",
				"-gcflags=modernc.org/sqlite/lib=-race=false", "-gcflags=modernc.org/libc=-race=false", // as test/run says
				"-o", dir+"/", "../../cmd/shepherdd"))
		}
		for _, build := range builds {
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
				return 1
			}
		}
		programs = dir
		return m.Run()
	}())
}

const (
	accessKey = "AKIAIOSFODNN7EXAMPLE"
	secretKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	deadline  = 60 * time.Second // a hang guard
)

// world is one machine: directories, a configuration, and at most one daemon.
type world struct {
	t       *testing.T
	dir     string
	config  string
	journal string // a line for each action of a runner
	env     []string
	bin     string            // where the programs are
	header  map[string]string // of requests

	daemon *exec.Cmd
	exited chan struct{}
	log    *lockedBuffer
	api    string
	s3     string
}

// sheepYAML configures a sheep with a runner of the original.
func sheepYAML(t *testing.T, name, dir string) string {
	return fmt.Sprintf("  %s:\n    port: %d\n    type: bare\n    working_directory: %s/models\n", name, testenv.FreePort(t), dir)
}

// newWorld makes a machine with the embedded storage and the named sheep, and
// models echo:v1, echo:v2, slow:v1 and crash:v1.
func newWorld(t *testing.T, sheep ...string) *world {
	t.Helper()
	testenv.Python(t, "zmq", "python3-zmq")
	return emptyWorld(t, sheep...)
}

// emptyWorld is newWorld without runners of the original.
func emptyWorld(t *testing.T, sheep ...string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, config: dir + "/shepherd.yml", journal: dir + "/journal", bin: programs, log: &lockedBuffer{}}
	for model, config := range map[string]string{"echo/v1": "", "echo/v2": "", "slow/v1": "slow", "crash/v1": "crash", "deep/er/v1": ""} {
		write(t, filepath.Join(dir, "models", model, "config.yaml"), config+"\n")
	}
	text := fmt.Sprintf(`data_root: %[1]s/data
state_dir: %[1]s/state
storage:
  listen: 127.0.0.1:0
  access_key: %[2]s
  secret_key: %[3]s
api:
  host: 127.0.0.1
  port: 0
sheep:
`, dir, accessKey, secretKey)
	if len(sheep) == 0 {
		sheep = []string{"bare_sheep"}
	}
	for _, name := range sheep {
		text += sheepYAML(t, name, dir)
	}
	write(t, w.config, text)
	own, err := filepath.Abs("testdata/bin")
	if err != nil {
		t.Fatal(err)
	}
	w.env = append(os.Environ(), "PATH="+own+":"+os.Getenv("PATH"), "RUNNER_JOURNAL="+w.journal)
	t.Cleanup(w.end)
	return w
}

// edit replaces text in the configuration.
func (w *world) edit(old, new string) {
	w.t.Helper()
	text, err := os.ReadFile(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(old)) {
		w.t.Fatalf("configuration has no %q", old)
	}
	write(w.t, w.config, strings.Replace(string(text), old, new, 1))
}

// start starts the daemon and waits until it serves.
func (w *world) start() {
	w.t.Helper()
	w.launch()
	w.api = w.logged(`Shepherd API is available at (http://[^\s"]+)`)
	if m := regexp.MustCompile(`Embedded storage is available at (http://[^\s"]+)`).FindStringSubmatch(w.log.String()); m != nil {
		w.s3 = m[1]
	}
}

func (w *world) launch() {
	w.t.Helper()
	w.log.Reset()
	w.daemon = exec.Command(w.bin+"/shepherdd", "-c", w.config)
	w.daemon.Env, w.daemon.Dir = w.env, w.dir
	w.daemon.Stdout, w.daemon.Stderr = w.log, w.log
	if err := w.daemon.Start(); err != nil {
		w.t.Fatal(err)
	}
	exited := make(chan struct{})
	w.exited = exited
	daemon := w.daemon
	go func() {
		daemon.Wait()
		close(exited)
	}()
}

// logged waits until the daemon has logged a match and returns its group.
func (w *world) logged(pattern string) string {
	w.t.Helper()
	re := regexp.MustCompile(pattern)
	var found string
	w.eventually("the daemon logs "+pattern, func() bool {
		if m := re.FindStringSubmatch(w.log.String()); m != nil {
			found = m[len(m)-1]
			return true
		}
		select {
		case <-w.exited:
			w.t.Fatalf("the daemon has ended (%v):\n%s", w.daemon.ProcessState, w.log)
		default:
		}
		return false
	})
	return found
}

// dead reports whether the daemon has ended.
func (w *world) dead() bool {
	select {
	case <-w.exited:
		return true
	default:
		return false
	}
}

// kill kills the daemon with SIGKILL.
func (w *world) kill() {
	w.t.Helper()
	w.daemon.Process.Kill()
	<-w.exited
}

// stop asks the daemon to stop and returns its exit code.
func (w *world) stop() int {
	w.t.Helper()
	w.daemon.Process.Signal(syscall.SIGTERM)
	w.awaitExit()
	return w.daemon.ProcessState.ExitCode()
}

// awaitExit returns when the daemon has ended.
func (w *world) awaitExit() {
	w.t.Helper()
	select {
	case <-w.exited:
	case <-time.After(deadline):
		w.daemon.Process.Signal(syscall.SIGQUIT)
		<-w.exited
		w.t.Fatalf("the daemon does not end:\n%s", w.log)
	}
}

// end stops the daemon and checks that nothing is left of it.
func (w *world) end() {
	if w.daemon != nil {
		select {
		case <-w.exited:
			if len(w.processes()) > 0 { // a killed daemon's sheep: the next daemon stops them
				w.launch()
				w.logged(`Shepherd API is available at (http://[^\s"]+)`)
				w.stop()
			}
		default:
			w.stop()
		}
	}
	if left := w.processes(); len(left) > 0 {
		w.t.Errorf("processes are left: %v", left)
		for pid := range left {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if text := w.log.String(); strings.Contains(text, "DATA RACE") || strings.Contains(text, "panic:") {
		w.t.Error("the daemon's log has a data race or a panic")
	}
	if w.t.Failed() {
		w.t.Logf("the daemons' logs:\n%s", w.log.All())
		journal, _ := os.ReadFile(w.journal)
		w.t.Logf("the runners' journal:\n%s", journal)
	}
}

// processes are those that belong to this world, but for the daemon, with their
// command lines.
func (w *world) processes() map[int]string {
	found := make(map[int]string)
	for _, p := range allProcesses() {
		if p.PID == os.Getpid() || w.daemon != nil && p.PID == w.daemon.Process.Pid || p.Zombie() {
			continue
		}
		command := commandLine(p.PID)
		environ, _ := proc.Environ(p.PID) // it may be gone
		if strings.Contains(command, w.dir) || strings.Contains(strings.Join(environ, " "), w.dir) {
			found[p.PID] = command
		}
	}
	return found
}

// allProcesses is the process table; none where it cannot be read.
func allProcesses() []proc.Process {
	all, _ := proc.All()
	return all
}

// commandLine returns a process's complete command line; empty if it has ended.
func commandLine(pid int) string {
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(command), "\x00", " ")
}

// noted returns the lines of the runners' journal that begin with the word.
func (w *world) noted(word string) []string {
	text, _ := os.ReadFile(w.journal)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, word+" ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("waited in vain until %s; the daemon's log:\n%s", what, w.log)
		}
	}
}

// status is the original's status JSON.
type status struct {
	Status  string `json:"status"`
	Message string `json:"message"`
	Error   *struct {
		Message   string  `json:"message"`
		Type      *string `json:"exception_type"`
		Traceback *string `json:"exception_traceback"`
	} `json:"error_details"`
	Model    struct{ Name, Version string } `json:"model"`
	Enqueued *string                        `json:"enqueued_at"`
	Started  *string                        `json:"processing_started_at"`
	Finished *string                        `json:"finished_at"`
}

// request makes an HTTP request and returns the answer's code and body.
func (w *world) request(method, path, body string) (int, string) {
	w.t.Helper()
	code, text, err := w.try(method, path, body)
	if err != nil {
		w.t.Fatalf("%s %s: %v\n%s", method, path, err, w.log)
	}
	return code, text
}

func (w *world) try(method, path, body string) (int, string, error) {
	req, err := http.NewRequest(method, w.api+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range w.header {
		req.Header.Set(name, value)
	}
	client := http.Client{Timeout: deadline}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// job is the body of a submission.
func jobBody(id, model, payload string, more ...string) string {
	name, version, _ := strings.Cut(model, ":")
	body := map[string]any{"job_id": id, "model": map[string]string{"name": name, "version": version}}
	if payload != "" {
		body["payload"] = payload
	}
	for i := 0; i+1 < len(more); i += 2 {
		body[more[i]] = more[i+1]
	}
	text, _ := json.Marshal(body)
	return string(text)
}

func (w *world) submit(id, model, payload string, more ...string) {
	w.t.Helper()
	if code, text := w.request("POST", "/start-job", jobBody(id, model, payload, more...)); code != 200 {
		w.t.Fatalf("start-job %s: %d %s", id, code, text)
	}
}

func (w *world) status(id string) status {
	w.t.Helper()
	return w.getStatus(id, "status")
}

// await waits for the job's end.
func (w *world) await(id string) status {
	w.t.Helper()
	return w.getStatus(id, "wait_ready")
}

func (w *world) getStatus(id, route string) status {
	w.t.Helper()
	code, text := w.request("GET", "/jobs/"+id+"/"+route, "")
	if code != 200 {
		w.t.Fatalf("%s of %s: %d %s", route, id, code, text)
	}
	var s status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		w.t.Fatalf("%s of %s: %v in %s", route, id, err, text)
	}
	return s
}

// result returns the job's output, which must exist.
func (w *world) result(id string) string {
	w.t.Helper()
	code, text := w.request("GET", "/jobs/"+id+"/result", "")
	if code != 200 {
		w.t.Fatalf("result of %s: %d %s", id, code, text)
	}
	return text
}

// expectDone waits for the job and checks its output.
func (w *world) expectDone(id, output string) {
	w.t.Helper()
	if s := w.await(id); s.Status != "done" {
		w.t.Fatalf("job %s is %s: %+v; log:\n%s", id, s.Status, s.Error, w.log)
	}
	if got := w.result(id); got != output {
		w.t.Errorf("job %s gave %q, want %q", id, got, output)
	}
}

// expectFailed waits for the job and checks what its error says.
func (w *world) expectFailed(id string, words ...string) {
	w.t.Helper()
	s := w.await(id)
	if s.Status != "failed" || s.Error == nil {
		w.t.Fatalf("job %s is %s; log:\n%s", id, s.Status, w.log)
	}
	for _, word := range words {
		if !strings.Contains(s.Error.Message, word) {
			w.t.Errorf("job %s failed with %q, which does not say %q", id, s.Error.Message, word)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// lockedBuffer is written by the daemon's output and read by the test.
type lockedBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	earlier bytes.Buffer // of daemons before this one
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *lockedBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.earlier.Write(b.b.Bytes())
	b.earlier.WriteString("--- the next daemon\n")
	b.b.Reset()
}

func (b *lockedBuffer) All() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.earlier.String() + b.b.String()
}
