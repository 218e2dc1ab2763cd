package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
	"github.com/iterait/shepherd/runner"
)

// The test binary is shepherd-runner, too, and the guard that this starts.
func TestMain(m *testing.M) {
	if name := os.Getenv("SHEPHERD_COG_TEST"); name != "" && len(os.Args) == 1 && os.Args[0] != guardName {
		serveCog(name)
		return
	}
	if os.Args[0] == guardName || os.Getenv("SHEPHERD_RUNNER_TEST") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

const hang = 2 * time.Minute

func TestConfig(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"command: [python3, predict.py]", ""},
		{"command: [\"true\"]\ntimeout: 1h30m\nenv: {A: b, N: \"4\"}", ""},
		{"command: [\"true\"]\ntimeout: \"90s\"", ""},
		{"model:\n  class: emloop.Model\ndataset: {}", "put the Python package's shepherd-runner first in PATH"},
		{"", "no `command` in it; add the program that processes a job, as in `command: [python3, predict.py]`"},
		{"env: {A: b}", "as in `command: [python3, predict.py]`"},
		{"command: []", "expected a program"},
		{"command: python3 predict.py", "1:10: "},
		{"command: [\"true\"]\ntimeuot: 5s", `2:1: unknown field "timeuot"`},
		{"command: [\"true\"]\ncommand: [\"false\"]", "2:1: "},
		{"command: [\"true\"]\ntimeout: 30", "timeout 30: expected a duration with its unit"},
		{"command: [\"true\"]\ntimeout: -3s", "timeout -3s: expected"},
		{"command: [\"true\"]\nenv: [a]", "2:6: "},
		{"command: [\"true\"]\nenv: {\"A=B\": c}", `env: "A=B"`},
		{"command: [", "1:10: "},
	} {
		cfg, err := parseConfig([]byte(c.text))
		switch {
		case c.want == "" && (err != nil || len(cfg.Command) == 0):
			t.Errorf("%q: %+v, %v", c.text, cfg, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")):
			t.Errorf("%q: %v; expected one line with %q", c.text, err, c.want)
		}
	}
}

// newModel writes a configuration whose command is a shell's.
func newModel(t testing.TB, script, more string) *model {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("command: [/bin/sh, -c, %q, sh, '{inputs}/input', 'to={outputs}']\n%s\n", script, more)
	if err := os.WriteFile(filepath.Join(dir, configName), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := loadModel(dir, newChildren(false))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newJob(t testing.TB) runner.Job {
	t.Helper()
	root := t.TempDir()
	j := runner.Job{ID: "job-1", InputDir: filepath.Join(root, "inputs"), OutputDir: filepath.Join(root, "outputs")}
	for _, dir := range []string{j.InputDir, j.OutputDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(j.Input(), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	return j
}

func TestCommandGetsItsJob(t *testing.T) {
	m := newModel(t, `{ echo "$SHEPHERD_JOB_ID|$SHEPHERD_INPUTS|$2|$COLOR|$PWD"; cat "$1"; } > "$SHEPHERD_OUTPUTS/output"`, "env: {COLOR: red}")
	j := newJob(t)
	if err := m.process(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(j.Output())
	want := fmt.Sprintf("job-1|%s|to=%s|red|%s\nhello", j.InputDir, j.OutputDir, m.dir)
	if err != nil || string(got) != want {
		t.Fatalf("got %q, %v; expected %q", got, err, want)
	}
}

func TestCommandGetsItsTrace(t *testing.T) {
	t.Setenv("TRACEPARENT", "the runner's own")
	m := newModel(t, `echo -n "${TRACEPARENT-none}|${TRACESTATE-none}" > "$SHEPHERD_OUTPUTS/output"`, "")
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for want, trace := range map[string]job.Trace{"none|none": {}, parent + "|none": {Parent: parent}, parent + "|a=1": {Parent: parent, State: "a=1"}} {
		j := newJob(t)
		j.Trace = trace
		if err := m.process(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(j.Output()); err != nil || string(got) != want {
			t.Errorf("got %q, %v; expected %q", got, err, want)
		}
	}
}

func TestCommandFails(t *testing.T) {
	for _, c := range []struct{ script, more, message, traceback string }{
		{"echo one >&2; echo 'no such digit' >&2; exit 3", "", "CommandFailed: exit code 3: no such digit", "one\nno such digit\n"},
		{"exit 1", "", "CommandFailed: exit code 1", ""},
		{"kill -9 $$", "", "CommandFailed: killed by signal killed", ""},
		{"echo slow >&2; sleep 60", "timeout: 3s", "TimeoutError: the command ran longer than its timeout of 3s", "slow\n"},
		{"trap 'exit 0' TERM; sleep 60 & wait", "timeout: 3s", "TimeoutError: the command ran longer than its timeout of 3s", ""},
	} {
		var f *job.Failure
		err := newModel(t, c.script, c.more).process(t.Context(), newJob(t))
		if !errors.As(err, &f) || f.Message != c.message || f.Traceback != c.traceback {
			t.Errorf("%q: %v, %+v", c.script, err, f)
		}
	}
	// Only the end of its output is reported, in whole lines.
	var f *job.Failure
	err := newModel(t, "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done >&2; exit 1", "").process(t.Context(), newJob(t))
	if !errors.As(err, &f) || len(f.Traceback) > tailSize || !strings.HasPrefix(f.Traceback, "line ") || !strings.HasSuffix(f.Traceback, "line 1999\n") {
		t.Errorf("a long stderr: %v, %+v", err, f)
	}
}

func TestMissingProgram(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, configName), []byte("command: [./predict]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := loadModel(dir, newChildren(false)); err == nil || !strings.Contains(err.Error(), "predict") {
		t.Fatalf("got %v", err)
	}
	if _, err := loadModel(filepath.Join(dir, "no", configName), newChildren(false)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}

// nested leaves children and grandchildren behind. Each holds the lock file
// "held" for as long as it lives.
const nested = `exec 9>"$SHEPHERD_OUTPUTS/held"; (sleep 600 & sleep 600) & sh -c 'sleep 600 & wait' & echo up > "$SHEPHERD_OUTPUTS/up.tmp"; mv "$SHEPHERD_OUTPUTS/up.tmp" "$SHEPHERD_OUTPUTS/up"; `

// nobodyHolds waits until no process has the file open.
func nobodyHolds(t *testing.T, path string) {
	t.Helper()
	deadline := time.Now().Add(hang)
	for {
		holders := 0
		links, _ := filepath.Glob("/proc/[0-9]*/fd/9")
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && to == path {
				holders++
			}
		}
		if holders == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes of the job are left", holders)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func appears(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(hang); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	t.Fatalf("%s did not appear", path)
}

func TestNothingIsLeftOfAJob(t *testing.T) {
	t.Run("that ended", func(t *testing.T) {
		j := newJob(t)
		if err := newModel(t, nested+"exit 0", "").process(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		nobodyHolds(t, filepath.Join(j.OutputDir, "held"))
	})
	t.Run("that was stopped", func(t *testing.T) {
		j := newJob(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		m := newModel(t, nested+"wait", "")
		go func() { ended <- m.process(ctx, j) }()
		appears(t, filepath.Join(j.OutputDir, "up"))
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		nobodyHolds(t, filepath.Join(j.OutputDir, "held"))
	})
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run("whose runner got "+signal.String(), func(t *testing.T) {
			m := newModel(t, nested+"wait", "")
			x := start(t, m.dir)
			x.send("job-1")
			outputs := filepath.Join(x.root, "job-1", job.OutputDir)
			appears(t, filepath.Join(outputs, "up"))
			if err := x.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = x.cmd.Wait()
			nobodyHolds(t, filepath.Join(outputs, "held"))
		})
	}
}

// running is a shepherd-runner process and a connection to it.
type running struct {
	t    *testing.T
	ctx  context.Context
	cmd  *exec.Cmd
	conn *zmq.Conn
	root string
}

func start(t *testing.T, config string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	port := testenv.FreePort(t)
	x := &running{t: t, ctx: ctx, root: t.TempDir(), cmd: exec.Command(os.Args[0], "-p", strconv.Itoa(port), config)}
	x.cmd.Env = append(os.Environ(), "SHEPHERD_RUNNER_TEST=1")
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = x.cmd.Process.Kill()
		_ = x.cmd.Wait()
	})
	conn, err := zmq.Dial(ctx, zmq.Config{Endpoint: fmt.Sprintf("tcp://127.0.0.1:%d", port)})
	if err != nil {
		t.Fatal(err)
	}
	x.conn = conn
	t.Cleanup(func() { conn.Close() })
	return x
}

func (x *running) send(id job.ID) {
	x.t.Helper()
	for _, dir := range []string{job.InputDir, job.OutputDir} {
		if err := os.MkdirAll(filepath.Join(x.root, string(id), dir), 0o755); err != nil {
			x.t.Fatal(err)
		}
	}
	frame, err := messenger.EncodeInput(messenger.Input{JobID: id, IODataRoot: x.root})
	if err == nil {
		err = x.conn.Send(x.ctx, frame)
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

func TestOverTheWire(t *testing.T) {
	m := newModel(t, `case $SHEPHERD_JOB_ID in bad*) echo 'no digit' >&2; exit 4;; esac; echo 7 > "$SHEPHERD_OUTPUTS/output"`, "")
	x := start(t, filepath.Join(m.dir, configName))
	for _, c := range []struct {
		id      job.ID
		message string
	}{{"good-1", ""}, {"bad-2", "CommandFailed: exit code 4: no digit"}, {"good-3", ""}} {
		x.send(c.id)
		frame, err := x.conn.Recv(x.ctx)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := messenger.DecodeAnswer(frame)
		message := ""
		if answer.Failure != nil {
			message = answer.Failure.Message
		}
		if err != nil || answer.JobID != c.id || message != c.message {
			t.Fatalf("got %s, %v", frame, err)
		}
	}
}

func TestExplainsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, configName), []byte("model: {class: emloop.Model}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"config.yaml is missing":         nil,
		configName + ": no `command` in": {dir},
	} {
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), "SHEPHERD_RUNNER_TEST=1")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(stderr).ReadString('\n')
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() != messenger.ExitLoad || !strings.Contains(line, want) {
			t.Errorf("%q: exit code %d, %q; expected %q", args, cmd.ProcessState.ExitCode(), line, want)
		}
	}
}
