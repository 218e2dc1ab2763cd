package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
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
	"github.com/iterait/shepherd/storage/embedded"
)

// The keys of the storage.
const accessKey, secretKey = "fleet", "secret-of-the-fleet"

// buildPrograms builds the programs of a machine, and returns their directory.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "../../cmd/shepherdd", "../../cmd/shepherd-shim", "../../cmd/shepherd-runner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// serveStorage serves a storage at an address of a place, which is nil for this machine's own
// network.
func serveStorage(t *testing.T, at *place, address string) (host string) {
	t.Helper()
	var s *embedded.Server
	open := func() (err error) {
		s, err = embedded.Open(embedded.Config{Dir: t.TempDir(), Listen: address, AccessKey: accessKey, SecretKey: secretKey, Log: slog.New(slog.DiscardHandler)})
		return err
	}
	err := open
	if at != nil {
		err = func() error { return at.inside(open) }
	}
	if err := err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.Addr()
}

// machine is a node as a process, in a place of its own or in this machine's network. Its
// sheep runs the model gate:v1, which waits until the file exists that its input names, and
// whose output is the name of the node.
type machine struct {
	t      *testing.T
	name   string
	at     *place // nil for this machine's own network
	bin    string
	dir    string
	client http.Client

	cmd    *exec.Cmd
	exited chan struct{}
	log    *logBuffer
	api    string
}

// logBuffer is what a daemon has logged so far.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newMachine makes a node with the given parts of its configuration.
func newMachine(t *testing.T, bin, name string, at *place, parts string) *machine {
	t.Helper()
	m := &machine{t: t, name: name, at: at, bin: bin, dir: t.TempDir()}
	m.client = http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: m.dial}}
	m.write("models/gate/v1/config.yaml", fmt.Sprintf(`command: ["sh", "-c", "gate=$(cat {inputs}/input); while [ ! -e $gate ]; do sleep 0.05; done; echo %s >{outputs}/output"]`, name)+"\n")
	m.write("secret", "between us\n")
	m.write("node.yml", fmt.Sprintf(`node: %[1]s
data_root: %[2]s/data
state_dir: %[2]s/state
fleet: {secret_file: %[2]s/secret%[4]s
sheep:
  one: {type: bare, working_directory: %[2]s/models, command: [%[3]s/shepherd-runner]}
`, name, m.dir, bin, parts))
	t.Cleanup(m.end)
	return m
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if m.at == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return m.at.dial(ctx, network, address)
}

// start starts the daemon and waits until it serves.
func (m *machine) start() {
	m.t.Helper()
	m.launch()
	serves := regexp.MustCompile(`Shepherd API is available at http://[^\s:]+:(\d+)`)
	m.eventually("it serves", func() bool {
		found := serves.FindStringSubmatch(m.log.String())
		if found != nil {
			m.api = "http://127.0.0.1:" + found[1]
		}
		return found != nil
	})
}

// keepUp launches the daemon again if it has ended, as systemd does.
func (m *machine) keepUp() {
	m.t.Helper()
	select {
	case <-m.exited:
		m.launch()
	default:
	}
}

// launch starts the daemon.
func (m *machine) launch() {
	m.t.Helper()
	m.log = &logBuffer{}
	m.cmd = exec.Command(m.bin+"/shepherdd", "-c", m.dir+"/node.yml")
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	run := m.cmd.Start
	if m.at != nil {
		run = func() error { return m.at.inside(m.cmd.Start) }
	}
	if err := run(); err != nil {
		m.t.Fatal(err)
	}
	exited := make(chan struct{})
	m.exited = exited
	go func(cmd *exec.Cmd) {
		cmd.Wait()
		close(exited)
	}(m.cmd)
}

// eventually waits until a condition holds, and fails if the daemon exits.
func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("node %s: never: %s\n%s", m.name, what, m.log)
		}
		select {
		case <-m.exited:
			m.t.Fatalf("node %s has ended (%v) before %s\n%s", m.name, m.cmd.ProcessState, what, m.log)
		default:
		}
	}
}

// awaitExit waits for a daemon that exits and returns its exit code.
func (m *machine) awaitExit() int {
	m.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(patience):
		m.t.Fatalf("node %s does not end:\n%s", m.name, m.log)
	}
	return m.cmd.ProcessState.ExitCode()
}

// end stops the daemon and everything else of the machine.
func (m *machine) end() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-m.exited:
	case <-time.After(patience):
		m.t.Errorf("node %s does not stop:\n%s", m.name, m.log)
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
	if left := m.processes(); len(left) > 0 {
		m.t.Errorf("node %s has left processes %v", m.name, left)
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if m.t.Failed() {
		m.t.Logf("node %s:\n%s", m.name, m.log)
	}
}

// processes returns the processes that the daemon has started.
func (m *machine) processes() (own []int) {
	all, err := proc.All()
	if err != nil {
		m.t.Error(err)
	}
	for _, p := range all {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID)) // it may be gone
		if err == nil && !p.Zombie() && bytes.Contains(args, []byte(m.dir+"/")) {
			own = append(own, p.PID)
		}
	}
	return own
}

// ask sends a request, and decodes the answer into into unless that is nil.
func (m *machine) ask(method, path, body string, into any) error {
	request, err := http.NewRequest(method, m.api+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := m.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s %s %v", method, path, answer.Status, text, err)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// submit submits a job that waits for a file.
func (m *machine) submit(id, gate string) {
	m.t.Helper()
	body := fmt.Sprintf(`{"job_id": %q, "model": {"name": "gate", "version": "v1"}, "payload": %q}`, id, gate)
	if err := m.ask("POST", "/start-job", body, nil); err != nil {
		m.t.Fatal(err)
	}
}

// attempt is an attempt of a job.
type attempt struct{ Node, Cause string }

// view is a job in the API of a node.
func (m *machine) view(id string) (status string, attempts []attempt, err error) {
	var v struct {
		Status   string
		Attempts []struct {
			Node  string
			Cause *string
		}
	}
	if err := m.ask("GET", "/jobs/"+id, "", &v); err != nil {
		return "", nil, err
	}
	for _, a := range v.Attempts {
		name, _, _ := strings.Cut(a.Node, "-")
		one := attempt{Node: name}
		if a.Cause != nil {
			one.Cause = *a.Cause
		}
		attempts = append(attempts, one)
	}
	return v.Status, attempts, nil
}

// runs waits until the job runs, and returns the node that runs it.
func (m *machine) runs(id string) (node string) {
	m.t.Helper()
	m.eventually(id+" runs", func() bool {
		status, attempts, err := m.view(id)
		if err == nil && status == "processing" && len(attempts) > 0 {
			node = attempts[len(attempts)-1].Node
		}
		return node != ""
	})
	return node
}

// done waits until the job is done, by the attempts given, and checks its output.
func (m *machine) done(id string, want ...attempt) {
	m.t.Helper()
	var attempts []attempt
	m.eventually(id+" is done", func() bool {
		status, now, err := m.view(id)
		attempts = now
		if status == "failed" || status == "cancelled" {
			m.t.Fatalf("%s is %s after %v", id, status, now)
		}
		return err == nil && status == "done"
	})
	if fmt.Sprint(attempts) != fmt.Sprint(want) {
		m.t.Errorf("%s has the attempts %v, expected %v", id, attempts, want)
	}
	answer, err := m.client.Get(m.api + "/jobs/" + id + "/result")
	if err != nil {
		m.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if last := want[len(want)-1].Node + "\n"; err != nil || string(text) != last {
		m.t.Errorf("the output of %s is %q, %v, expected %q", id, text, err, last)
	}
}

// open makes a file that jobs wait for.
func open(t *testing.T, gate string) {
	t.Helper()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// occupy starts a job on each of two nodes that waits for a file, and returns the job of
// each node.
func occupy(a, b *machine, gate string, ids [2]string) map[string]string {
	a.t.Helper()
	a.submit(ids[0], gate)
	b.submit(ids[1], gate)
	has := map[string]string{a.runs(ids[0]): ids[0], b.runs(ids[1]): ids[1]}
	if has["a"] == "" || has["b"] == "" {
		a.t.Fatalf("the jobs run on %v", has)
	}
	return has
}
