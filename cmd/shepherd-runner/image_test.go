package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/cogtest"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
)

// serveCog is what the test binary does in the place of an image's server.
func serveCog(name string) {
	m := cogtest.Model{Input: `{"image": {"type": "string", "format": "uri"}, "scale": {"type": "integer", "default": 1}}`, Required: []string{"image"}, Output: `{"type": "object"}`}
	switch name {
	case "broken":
		m.Setup = func(log func(string)) error {
			log("loading weights\n")
			return errors.New("RuntimeError: weights.pt is damaged")
		}
	case "crashing":
		fmt.Fprintln(os.Stderr, "ModuleNotFoundError: No module named 'torch'")
		os.Exit(1)
	case "text":
		m.Input, m.Required, m.Output = `{"prompt": {"type": "string"}}`, []string{"prompt"}, `{"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator", "x-cog-array-display": "concatenate"}`
	case "string", "strings":
		m.Input, m.Required, m.Output = `{"text": {"type": "string"}}`, []string{"text"}, `{"type": "string"}`
		if name == "strings" {
			m.Output = `{"type": "array", "items": {"type": "string"}}`
		}
	case "old":
		m.Old = true
	}
	m.Predict = func(ctx context.Context, input map[string]any, log func(string), partial func(any)) (any, error) {
		if prompt, ok := input["prompt"].(string); ok {
			partial([]any{"you said "})
			return []any{"you said ", prompt, "\n"}, nil
		}
		if text, ok := input["text"].(string); ok {
			if name == "strings" {
				return []any{text}, nil
			}
			return text, nil
		}
		data, err := cogtest.Fetch(input["image"])
		if err != nil {
			return nil, err
		}
		log("begin\n")
		log("sampling:  50%|#####     | 1/2 [00:01<00:01]\r")
		switch {
		case bytes.HasPrefix(data, []byte("fail")):
			log("Traceback\n")
			return nil, errors.New("ValueError: not a picture")
		case bytes.HasPrefix(data, []byte("wait")):
			<-ctx.Done()
			return nil, ctx.Err()
		case bytes.HasPrefix(data, []byte("deaf")):
			select {}
		case bytes.HasPrefix(data, []byte("touch ")):
			if err := os.WriteFile(string(data[len("touch "):]), nil, 0o644); err != nil {
				return nil, err
			}
			select {}
		case bytes.HasPrefix(data, []byte("die")):
			fmt.Fprintln(os.Stderr, "CUDA error: an illegal memory access was encountered")
			os.Exit(9)
		case bytes.HasPrefix(data, []byte("one")):
			return cogtest.DataURL("image/png", []byte("one picture")), nil
		}
		return map[string]any{"size": len(data), "scale": input["scale"], "pictures": []any{cogtest.DataURL("image/png", []byte("first")), cogtest.DataURL("image/webp", []byte("second"))}}, nil
	}
	if err := cogtest.Serve(context.Background(), m); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// image is a shepherd-runner with an image's command.
type image struct {
	*running
	log *bytes.Buffer
}

// startImage starts `shepherd-runner run` with the arguments and a command.
func startImage(t *testing.T, env []string, args ...string) *image {
	t.Helper()
	x := launchImage(t, env, args...)
	conn, err := zmq.Dial(x.ctx, zmq.Config{Endpoint: "tcp://127.0.0.1:" + x.cmd.Args[3]})
	if err != nil {
		t.Fatalf("%v\n%s", err, x.log)
	}
	x.conn = conn
	t.Cleanup(func() { conn.Close() })
	return x
}

func launchImage(t *testing.T, env []string, args ...string) *image {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	x := &image{running: &running{t: t, ctx: ctx, root: t.TempDir()}, log: new(bytes.Buffer)}
	x.cmd = exec.Command(os.Args[0], append([]string{"run", "-p", strconv.Itoa(testenv.FreePort(t))}, args...)...)
	x.cmd.Env = append(append(os.Environ(), "SHEPHERD_RUNNER_TEST=1", messenger.EnvFeatures+"="+messenger.FeatureEvents), env...)
	x.cmd.Stdout, x.cmd.Stderr = x.log, x.log
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = x.cmd.Process.Signal(syscall.SIGTERM)
		_ = x.cmd.Wait()
		if t.Failed() {
			t.Logf("the runner said:\n%.4000s", x.log)
		}
	})
	return x
}

// do runs a job with files as its inputs, and returns its failure and events.
func (x *image) do(id job.ID, files map[string]string) (*job.Failure, []string) {
	x.t.Helper()
	x.give(id, files)
	return x.answer(id)
}

func (x *image) answer(id job.ID) (*job.Failure, []string) {
	x.t.Helper()
	var events []string
	for {
		frame, err := x.conn.Recv(x.ctx)
		if err != nil {
			x.t.Fatal(err)
		}
		if e, err := messenger.DecodeEvent(frame); err == nil {
			switch e.Kind {
			case messenger.EventProgress:
				events = append(events, fmt.Sprintf("%v %s", e.Progress, e.Text))
			case messenger.EventLog:
				events = append(events, e.Text)
			}
			continue
		}
		a, err := messenger.DecodeAnswer(frame)
		if err != nil || a.JobID != id {
			x.t.Fatalf("got %s, %v", frame, err)
		}
		return a.Failure, events
	}
}

func (x *image) output(id job.ID, name string) string {
	x.t.Helper()
	text, err := os.ReadFile(filepath.Join(x.root, string(id), job.OutputDir, name))
	if err != nil {
		x.t.Fatal(err)
	}
	return string(text)
}

func (x *image) cancel(id job.ID) {
	x.t.Helper()
	frame, err := messenger.EncodeCancel(id)
	if err == nil {
		err = x.conn.Send(x.ctx, frame)
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

func TestImageCommand(t *testing.T) {
	const script = `echo "::progress 40% halfway"; printf 'plain\033[0m\n'; echo bad >&2
		case {job} in fail*) echo "ValueError: no" >&2; echo "x.py:1: UserWarning: bye" >&2; exit 3;; wait*) echo up > {outputs}/up; sleep 600;; esac
		tr a-z A-Z < {inputs}/input > {outputs}/output; setsid sleep 600 9> {outputs}/held & `
	x := startImage(t, nil, "--", "/bin/sh", "-c", script)
	f, events := x.do("a", map[string]string{"input": "hello"})
	if got := x.output("a", "output"); f != nil || got != "HELLO" {
		t.Errorf("got %q, %+v", got, f)
	}
	if got := strings.Join(events, "|"); !strings.Contains(got, "0.4 halfway") || !strings.Contains(got, "plain") || !strings.Contains(got, "bad") {
		t.Errorf("told was %q", got)
	}
	// What left the command's process group and session is ended all the same.
	nobodyHolds(t, filepath.Join(x.root, "a", job.OutputDir, "held"))
	if f, _ := x.do("fail-1", map[string]string{"input": ""}); f == nil || f.Message != "CommandFailed: exit code 3: ValueError: no" {
		t.Errorf("got %+v", f)
	}
	x.send("wait-1")
	appears(t, filepath.Join(x.root, "wait-1", job.OutputDir, "up"))
	x.cancel("wait-1")
	if f, _ := x.answer("wait-1"); f == nil || f.Type != messenger.CancelledType {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("b", map[string]string{"input": "again"}); f != nil {
		t.Errorf("got %+v", f)
	}
}

// As the first process of a PID namespace it reaps orphans, and exits when it is asked to.
func TestFirstProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a PID namespace needs root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	port := strconv.Itoa(testenv.FreePort(t))
	const script = `for i in 1 2 3 4 5; do (sh -c 'sleep 0.05 & sleep 0.1 &' &); done; trap 'echo hup > {outputs}/hup' HUP; echo up > {outputs}/up
		i=0; while [ ! -e {outputs}/hup ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i+1)); done`
	cmd := exec.Command(os.Args[0], "run", "-p", port, "--", "/bin/sh", "-c", script)
	cmd.Env = append(os.Environ(), "SHEPHERD_RUNNER_TEST=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setpgid: true}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	conn, err := zmq.Dial(ctx, zmq.Config{Endpoint: "tcp://127.0.0.1:" + port})
	if err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	defer conn.Close()
	y := &image{running: &running{t: t, ctx: ctx, cmd: cmd, conn: conn, root: t.TempDir()}, log: &log}
	y.send("a")
	appears(t, filepath.Join(y.root, "a", job.OutputDir, "up"))
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if f, _ := y.answer("a"); f != nil {
		t.Errorf("got %+v", f)
	}
	if y.output("a", "hup") != "hup\n" {
		t.Error("the signal was not forwarded")
	}
	for deadline := time.Now().Add(hang); ; time.Sleep(10 * time.Millisecond) {
		all, err := proc.All()
		if err != nil {
			t.Fatal(err)
		}
		left := proc.Descendants(all, cmd.Process.Pid)
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v are left", left)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, &log)
	}
}

func TestImageWithoutItsProgram(t *testing.T) {
	x := launchImage(t, nil, "--", "no-such-program")
	_ = x.cmd.Wait()
	if code := x.cmd.ProcessState.ExitCode(); code != messenger.ExitLoad || !strings.Contains(x.log.String(), "no-such-program") {
		t.Errorf("exit code %d, %s", code, x.log)
	}
}

// A signal may be given as in an image's STOPSIGNAL.
func TestStopSignal(t *testing.T) {
	const script = `trap 'echo asked > {outputs}/asked; exit 1' INT; echo up > {outputs}/up; while :; do sleep 0.01; done`
	for _, sig := range []string{"SIGINT", "2", "int"} {
		x := startImage(t, nil, "--stop-signal", sig, "--", "/bin/sh", "-c", script)
		x.send("a")
		appears(t, filepath.Join(x.root, "a", job.OutputDir, "up"))
		x.cancel("a")
		if f, _ := x.answer("a"); f == nil || f.Type != messenger.CancelledType || x.output("a", "asked") != "asked\n" {
			t.Errorf("%s: got %+v", sig, f)
		}
	}
	x := launchImage(t, nil, "--stop-signal", "SIGNONSENSE", "--", "/bin/true")
	_ = x.cmd.Wait()
	if code := x.cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(x.log.String(), "SIGNONSENSE") {
		t.Errorf("exit code %d, %s", code, x.log)
	}
}

func TestWarm(t *testing.T) {
	const script = `n=0; echo loaded; while read -r line; do n=$((n+1)); echo "::progress 0.5 job $n"
		case $line in
		*fail*) echo '{"error": "ValueError: no", "type": "ValueError", "traceback": "line 1"}';;
		*exit*) echo "out of ideas" >&2; exit 4;;
		*stderr*) echo '{"level": "info"}' >&2; sleep 0.2; echo '{"error": "ValueError: at last"}';;
		*long*) echo "{\"error\": \"$(head -c 200000 /dev/zero | tr '\0' x)\"}";;
		*endless*) echo "{\"error\": \"$(head -c 1200000 /dev/zero | tr '\0' x)\"}";;
		*wait*) sleep 600;;
		*) dir=${line##*'"outputs":"'}; echo "$n" > "${dir%%'"'*}/output"; echo '{"job": "another"}'; echo '{}';;
		esac; done`
	x := startImage(t, nil, "--contract", "warm", "--", "/bin/sh", "-c", script)
	for want := 1; want <= 2; want++ {
		id := job.ID(fmt.Sprint("job-", want))
		f, events := x.do(id, nil)
		if got := x.output(id, "output"); f != nil || got != fmt.Sprintln(want) || !strings.Contains(strings.Join(events, "|"), fmt.Sprint("0.5 job ", want)) {
			t.Errorf("job %d: got %q, %+v, %q", want, got, f, events)
		}
	}
	if f, _ := x.do("fail", nil); f == nil || *f != (job.Failure{Message: "ValueError: no", Type: "ValueError", Traceback: "line 1"}) {
		t.Errorf("got %+v", f)
	}
	// An object on stderr is a line of the log.
	if f, events := x.do("stderr", nil); f == nil || f.Message != "ValueError: at last" || !slices.Contains(events, `{"level": "info"}`) {
		t.Errorf("got %+v, %q", f, events)
	}
	if f, _ := x.do("long", nil); f == nil || !strings.HasPrefix(f.Message, "xxx") {
		t.Errorf("a long answer: got %.100v", f)
	}
	if f, _ := x.do("endless", nil); f == nil || f.Message != "the command's answer is longer than 1048576 bytes" {
		t.Errorf("a longer one: got %.100v", f)
	}
	if f, _ := x.do("exit", nil); f == nil || f.Message != "CommandFailed: exit code 4: out of ideas" {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("after-it", nil); f != nil || x.output("after-it", "output") != "1\n" {
		t.Errorf("it was not started again: %+v", f)
	}
	x.send("wait")
	time.Sleep(100 * time.Millisecond)
	x.cancel("wait")
	if f, _ := x.answer("wait"); f == nil || f.Type != messenger.CancelledType {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("at-last", nil); f != nil {
		t.Errorf("got %+v", f)
	}
}

func TestCog(t *testing.T) {
	x := startImage(t, []string{"SHEPHERD_COG_TEST=picture"}, "--contract", "cog", "--", os.Args[0])
	// A request as Cog's clients send it, with a file by its name.
	f, events := x.do("a", map[string]string{"input": `{"input": {"image": "cat.png", "scale": 3}}`, "cat.png": "meow"})
	if f != nil {
		t.Fatalf("got %+v", f)
	}
	var out map[string]any
	if err := json.Unmarshal([]byte(x.output("a", "output")), &out); err != nil || fmt.Sprint(out) != "map[pictures:[output-pictures-0.png output-pictures-1.webp] scale:3 size:4]" {
		t.Errorf("got %v, %v", out, err)
	}
	if x.output("a", "output-pictures-0.png") != "first" || x.output("a", "output-pictures-1.webp") != "second" {
		t.Error("the files are not beside it")
	}
	if got := strings.Join(events, "|"); !strings.Contains(got, "begin") || !strings.Contains(got, "0.5 sampling") {
		t.Errorf("told was %q", got)
	}
	// A file as the payload, one that is called like the input, and a large one,
	// which goes by a URL.
	for id, files := range map[job.ID]map[string]string{
		"payload": {"input": "one \xff"},
		"named":   {"image.png": "one"},
		"large":   {"input": `{"image": "x/large.bin"}`, "x/large.bin": "one" + strings.Repeat("x", 2*maxDataURL)},
	} {
		if f, _ := x.do(id, files); f != nil || x.output(id, "output") != "one picture" {
			t.Errorf("%s: got %+v", id, f)
		}
	}
	if f, _ := x.do("fail", map[string]string{"input": "fail"}); f == nil || f.Message != "ValueError: not a picture" || f.Type != "PredictionFailed" || !strings.Contains(f.Traceback, "begin") {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("missing", map[string]string{"input": "{}"}); f == nil || f.Message != "InvalidInput: input.image: Field required" {
		t.Errorf("got %+v", f)
	}
	x.underWay("wait", "wait")
	x.cancel("wait")
	if f, _ := x.answer("wait"); f == nil || f.Type != messenger.CancelledType {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("again", map[string]string{"input": "one"}); f != nil {
		t.Errorf("after a cancelled one: %+v", f)
	}
	if f, _ := x.do("die", map[string]string{"input": "die"}); f == nil || f.Message != "CommandFailed: exit code 9: CUDA error: an illegal memory access was encountered" {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("after-it", map[string]string{"input": "one"}); f != nil || x.output("after-it", "output") != "one picture" {
		t.Errorf("the server was not started again: %+v", f)
	}
	x.underWay("deaf", "deaf")
	x.cancel("deaf")
	if f, _ := x.answer("deaf"); f == nil || f.Type != messenger.CancelledType {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("after-that", map[string]string{"input": "one"}); f != nil || x.output("after-that", "output") != "one picture" {
		t.Errorf("after a prediction that could not be cancelled: %+v", f)
	}
}

// underWay gives the model a job and waits until its prediction has begun.
func (x *image) underWay(id job.ID, input string) {
	x.t.Helper()
	x.give(id, map[string]string{"input": input})
	for {
		frame, err := x.conn.Recv(x.ctx)
		if err != nil {
			x.t.Fatal(err)
		}
		if e, err := messenger.DecodeEvent(frame); err == nil && e.Text == "begin" {
			return
		}
	}
}

// A prediction of an old server cannot be cancelled, and must not run beside the next.
func TestCogOldCancel(t *testing.T) {
	x := startImage(t, []string{"SHEPHERD_COG_TEST=old"}, "--contract", "cog", "--", os.Args[0])
	started := filepath.Join(x.root, "started")
	x.give("wait", map[string]string{"input": "touch " + started})
	appears(t, started)
	x.cancel("wait")
	if f, _ := x.answer("wait"); f == nil || f.Type != messenger.CancelledType {
		t.Errorf("got %+v", f)
	}
	if f, _ := x.do("next", map[string]string{"input": "one"}); f != nil || x.output("next", "output") != "one picture" {
		t.Errorf("got %+v", f)
	}
}

// give sends a job with files as its inputs.
func (x *image) give(id job.ID, files map[string]string) {
	x.t.Helper()
	for name, text := range files {
		path := filepath.Join(x.root, string(id), job.InputDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			x.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			x.t.Fatal(err)
		}
	}
	x.send(id)
}

func TestCogText(t *testing.T) {
	for _, c := range []struct{ model, input, want string }{
		{"text", "hello", "you said hello\n"}, {"text", `{"prompt": "hi"}`, "you said hi\n"}, {"old", "one", "one picture"},
		{"string", "data: a, b", "data: a, b"}, {"strings", "data: a, b", `["data: a, b"]` + "\n"},
	} {
		x := startImage(t, []string{"SHEPHERD_COG_TEST=" + c.model}, "--contract", "cog", "--", os.Args[0])
		if f, _ := x.do("a", map[string]string{"input": c.input}); f != nil || x.output("a", "output") != c.want {
			t.Errorf("%s: got %+v", c.model, f)
		}
	}
}

// A model that cannot be set up is one that cannot be loaded, with its own words.
func TestCogSetupFails(t *testing.T) {
	for model, want := range map[string]string{
		"broken":   "load the model: the model's setup failed: RuntimeError: weights.pt is damaged",
		"crashing": "ended while it was set up: CommandFailed: exit code 1: ModuleNotFoundError: No module named 'torch'",
	} {
		x := launchImage(t, []string{"SHEPHERD_COG_TEST=" + model}, "--contract", "cog", "--", os.Args[0])
		_ = x.cmd.Wait()
		if code := x.cmd.ProcessState.ExitCode(); code != messenger.ExitLoad || !strings.Contains(x.log.String(), want) {
			t.Errorf("%s: exit code %d, %s", model, code, x.log)
		}
	}
}
