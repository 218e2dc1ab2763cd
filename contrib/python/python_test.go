// Package python_test tests the Python runner SDK with shepherd's side of the protocol.
package python_test

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
)

// hang is the time limit of operations that take far less.
const hang = 2 * time.Minute

// program is a runner that does what the id of its job says.
const program = `
import sys, time
from shepherd.runner import parse_args, serve

runs = 0

def process(job):
    global runs
    runs += 1
    if job.id == "upper":
        job.output.write_bytes(job.input.read_bytes().upper())
    elif job.id == "key":
        {}["key"]
    elif job.id == "text":
        raise ValueError("žluťoučký \U0001f600 \udc80 " + "x" * 10000000)
    elif job.id == "exit":
        sys.exit(3)
    elif job.id == "wait":
        (job.outputs / "up").write_text("")
        job._server.socket.poll()  # until something has come, which stays there
    elif job.id == "runs":
        job.output.write_text(str(runs))
    elif job.id.endswith("traced"):
        job.output.write_text("%s %s" % (job.traceparent, job.tracestate))
    elif job.id == "tell":
        job.progress(0.5, "half")
        job.log("a line")
        while True:
            job.check_cancelled()
            time.sleep(0.001)
    elif job.id == "args":
        job.output.write_text(repr((args.port, args.stream, args.runner, args.config_path)))

args = parse_args()
serve(process)
`

type talk struct {
	t    *testing.T
	ctx  context.Context
	cmd  *exec.Cmd
	log  *bytes.Buffer
	host string
	port int
	conn *zmq.Conn
	root string
}

func start(t *testing.T) *talk {
	t.Helper()
	return startAt(t, "127.0.0.1")
}

// startAt starts the runner with its address in the environment.
func startAt(t *testing.T, host string) *talk {
	t.Helper()
	python := testenv.Python(t, "zmq", "python3-zmq")
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	x := &talk{t: t, ctx: ctx, log: new(bytes.Buffer), host: host, port: testenv.FreePort(t), root: t.TempDir()}
	x.cmd = exec.CommandContext(ctx, python, "-c", program, "-r", "some.Runner", "v1/config.yaml", "--port", strconv.Itoa(x.port))
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	x.cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(here, "src"), "PYTHONDONTWRITEBYTECODE=1", "SHEPHERD_RUNNER_HOST="+host)
	x.cmd.Stdout, x.cmd.Stderr = x.log, x.log
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = x.cmd.Process.Kill()
		_ = x.cmd.Wait()
		if t.Failed() {
			t.Logf("the runner said:\n%.4000s", x.log)
		}
	})
	x.conn = x.connect()
	return x
}

func (x *talk) connect() *zmq.Conn {
	x.t.Helper()
	conn, err := zmq.Dial(x.ctx, zmq.Config{Endpoint: fmt.Sprintf("tcp://%s:%d", x.host, x.port)})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { conn.Close() })
	return conn
}

func (x *talk) path(id, dir, name string) string { return filepath.Join(x.root, id, dir, name) }

func (x *talk) send(id, input string) {
	x.t.Helper()
	for dir, name := range map[string]string{job.InputDir: job.DefaultInput, job.OutputDir: ""} {
		if err := os.MkdirAll(x.path(id, dir, ""), 0o755); err != nil {
			x.t.Fatal(err)
		}
		if name != "" {
			x.write(x.path(id, dir, name), input)
		}
	}
	frame, err := messenger.EncodeInput(messenger.Input{JobID: job.ID(id), IODataRoot: x.root})
	if err != nil {
		x.t.Fatal(err)
	}
	x.say(string(frame))
}

func (x *talk) say(frame string) {
	x.t.Helper()
	if err := x.conn.Send(x.ctx, []byte(frame)); err != nil {
		x.t.Fatal(err)
	}
}

func (x *talk) write(path, text string) {
	x.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		x.t.Fatal(err)
	}
}

func (x *talk) recv(conn *zmq.Conn, id string) *job.Failure {
	x.t.Helper()
	frame, err := conn.Recv(x.ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	answer, err := messenger.DecodeAnswer(frame)
	if err != nil || answer.JobID != job.ID(id) {
		x.t.Fatalf("got %.200s, %v; expected the answer to %s", frame, err, id)
	}
	return answer.Failure
}

func (x *talk) output(id, want string) {
	x.t.Helper()
	x.send(id, "hello")
	if f := x.recv(x.conn, id); f != nil {
		x.t.Fatalf("job %s: %+v", id, f)
	}
	if got, err := os.ReadFile(x.path(id, job.OutputDir, job.DefaultOutput)); err != nil || string(got) != want {
		x.t.Fatalf("job %s: output %q, %v; expected %q", id, got, err, want)
	}
}

func TestJobs(t *testing.T) {
	x := start(t)
	x.output("upper", "HELLO")
	x.output("untraced", "None None")
	for id, text := range map[string]string{"traced": "00-a-b-01\n", "both.traced": "00-a-b-01\na=1\n"} {
		if err := os.MkdirAll(x.path(id, "", ""), 0o755); err != nil {
			t.Fatal(err)
		}
		x.write(x.path(id, "", job.TraceFile), text)
	}
	x.output("traced", "00-a-b-01 None")
	x.output("both.traced", "00-a-b-01 a=1")
	x.output("args", fmt.Sprintf("(%d, 'predict', 'some.Runner', 'v1/config.yaml')", x.port))
	for _, c := range []struct{ id, message, typ, traceback string }{
		{"key", "KeyError: 'key'", "<class 'KeyError'>", "line 13, in process"},
		{"text", "ValueError: žluťoučký 😀 \ufffd xxx", "<class 'ValueError'>", "xxx"},
		{"exit", "SystemExit: 3", "<class 'SystemExit'>", "SystemExit"},
	} {
		x.send(c.id, "")
		f := x.recv(x.conn, c.id)
		if f == nil || !strings.HasPrefix(f.Message, c.message) || f.Type != c.typ || !strings.Contains(f.Traceback, c.traceback) {
			t.Errorf("%s: %.300v; expected %+v", c.id, f, c)
		}
	}
	x.output("upper", "HELLO")
}

// It listens only at the given address.
func TestHost(t *testing.T) {
	claims.Hold(t, "L5")
	x := startAt(t, "127.0.0.9")
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", x.port)); err == nil {
		conn.Close()
		t.Error("it listens at 127.0.0.1, too")
	}
}

func TestMessagesThatAreNone(t *testing.T) {
	x := start(t)
	for _, frame := range []string{"", "null", "[]", "7", "\xff", "{}", strings.Repeat("[", 100000), `{"message": null}`, `{"message": {}}`,
		`{"message": {"message_type": "InputMessage", "job_id": "../x", "io_data_root": "/"}}`,
		`{"message": {"message_type": "InputMessage", "job_id": "a..b", "io_data_root": "/"}}`,
		`{"message": {"message_type": "InputMessage", "job_id": 7, "io_data_root": "/"}}`,
		`{"message": {"message_type": "InputMessage", "job_id": "x", "io_data_root": null}}`,
		`{"message": {"message_type": "DoneMessage", "job_id": "x"}}`} {
		x.say(frame)
	}
	x.output("runs", "1")
}

func TestNoJobRunsTwice(t *testing.T) {
	x := start(t)
	x.send("wait", "")
	for { // it is under way
		if _, err := os.Stat(x.path("wait", job.OutputDir, "up")); err == nil {
			break
		}
		if err := x.ctx.Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	x.send("wait", "")
	x.send("runs", "")
	for _, id := range []string{"wait", "runs"} {
		if f := x.recv(x.conn, id); f != nil {
			t.Fatalf("%s: %+v", id, f)
		}
	}
	if got, err := os.ReadFile(x.path("runs", job.OutputDir, job.DefaultOutput)); err != nil || string(got) != "2" {
		t.Fatalf("%s runs, %v; expected 2", got, err)
	}
}

// Events of a job are sent only if they are supported, and a job can be cancelled.
func TestEventsAndCancel(t *testing.T) {
	t.Setenv(messenger.EnvFeatures, messenger.FeatureEvents)
	x := start(t)
	x.send("tell", "")
	var got []string
	for range 3 {
		frame, err := x.conn.Recv(x.ctx)
		if err != nil {
			t.Fatal(err)
		}
		e, err := messenger.DecodeEvent(frame)
		if err != nil {
			t.Fatalf("%s: %v", frame, err)
		}
		got = append(got, fmt.Sprint(e.Kind, " ", e.Progress, e.Text, e.Features))
	}
	if want := "[accepted 0[cancel] progress 0.5half[] log 0a line[]]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	cancel, err := messenger.EncodeCancel("tell")
	if err != nil {
		t.Fatal(err)
	}
	x.say(string(cancel))
	if f := x.recv(x.conn, "tell"); f == nil || f.Type != messenger.CancelledType {
		t.Errorf("got %+v", f)
	}
}

// The package's own tests: the behaviour of runners of the original.
func TestPackage(t *testing.T) {
	python := testenv.Python(t, "zmq", "python3-zmq")
	cmd := exec.Command(python, "-B", "-m", "unittest", "discover", "-s", "tests", "-t", ".")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The built wheel has the package, its command and its types.
func TestBuild(t *testing.T) {
	testenv.Python(t, "setuptools, wheel", "python3-setuptools python3-wheel")
	out := t.TempDir()
	cmd := exec.Command("./build", out)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	wheels, _ := filepath.Glob(filepath.Join(out, "shepherd-*-py3-none-any.whl"))
	sdists, _ := filepath.Glob(filepath.Join(out, "shepherd-*.tar.gz"))
	if len(wheels) != 1 || len(sdists) != 1 {
		t.Fatalf("built were %v, %v", wheels, sdists)
	}
	wheel, err := zip.OpenReader(wheels[0])
	if err != nil {
		t.Fatal(err)
	}
	defer wheel.Close()
	names := map[string]bool{}
	for _, f := range wheel.File {
		names[f.Name] = true
	}
	version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(wheels[0]), "shepherd-"), "-py3-none-any.whl")
	for _, want := range []string{"shepherd/py.typed", "shepherd/runner/base_runner.py", "shepherd/comm/messages.py", "shepherd-" + version + ".dist-info/entry_points.txt"} {
		if !names[want] {
			t.Errorf("%s is not in the wheel: %v", want, names)
		}
	}
}

func TestTerminated(t *testing.T) {
	x := start(t)
	x.output("upper", "HELLO")
	if err := x.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := x.cmd.Wait(); err != nil {
		t.Fatalf("after SIGTERM: %v\n%s", err, x.log)
	}
	select {
	case <-x.conn.Done():
	case <-x.ctx.Done():
		t.Fatal("the connection outlived the runner")
	}
}
