package build_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/examples/images/build"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/sandbox"
)

// ask sends one job to the runner on port 9999, as shepherd does, and prints the
// type of the answer.
const ask = `
import json, sys, zmq
s = zmq.Context().socket(zmq.DEALER)
s.setsockopt(zmq.RCVTIMEO, 60000)
s.connect("tcp://127.0.0.1:9999")
s.send(json.dumps({"message": {"identity": "", "job_id": "job-1", "message_type": "InputMessage", "io_data_root": sys.argv[1]}}).encode())
print(json.loads(s.recv())["message"]["message_type"])
s.close(0)
`

// The image, pushed to a sandbox and pulled by containerd, runs a job in a network namespace of
// its own.
func TestDigitsInAContainer(t *testing.T) {
	ctd := testenv.StartContainerd(t)
	python := testenv.Python(t, "zmq", "python3-zmq")
	nsenter := testenv.Command(t, "nsenter", "util-linux")
	runner := filepath.Join(t.TempDir(), "digits-runner")
	compile := exec.Command("go", "build", "-trimpath", "-o", runner, "../../digits/runner")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("build the runner: %v: %s", err, out)
	}
	img, err := build.Digits(build.Inputs{Runner: runner, Model: "../../digits/models/digits/v1", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := build.Push(t.Context(), img, serveSandbox(t), "digits:v1")
	if err != nil {
		t.Fatal(err)
	}

	data := t.TempDir()
	for _, dir := range []string{"job-1/inputs", "job-1/outputs"} {
		if err := os.MkdirAll(filepath.Join(data, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	digit, err := os.ReadFile("../../digits/testdata/7-0856.png")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "job-1/inputs/seven.png"), digit, 0o644); err != nil {
		t.Fatal(err)
	}
	const namespace, name = "images-test", "digits"
	ctd.Ctr(t, namespace, "images", "pull", "--plain-http", ref)
	ctd.Ctr(t, namespace, "run", "--detach", "--mount", "type=bind,src="+data+",dst="+data+",options=rbind:rw", ref, name)
	t.Cleanup(func() {
		ctd.Ctr(t, namespace, "tasks", "rm", "--force", name)
		ctd.Ctr(t, namespace, "containers", "rm", name)
		if left := ctd.Leftovers(t, namespace); len(left) != 0 {
			t.Errorf("left over: %v", left)
		}
	})
	pid := taskPID(t, ctd, namespace, name)
	cmd := exec.CommandContext(t.Context(), nsenter, "--net=/proc/"+pid+"/ns/net", python, "-c", ask, data)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	answer, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(answer)) != "DoneMessage" {
		t.Fatalf("the runner's answer: %q, %v: %s", answer, err, stderr.String())
	}
	output, err := os.ReadFile(filepath.Join(data, "job-1/outputs/output"))
	if err != nil || !strings.HasPrefix(string(output), `{"predictions":[{"input":"seven.png","digit":7,`) {
		t.Errorf("the job's output: %q, %v", output, err)
	}
}

// taskPID returns the process id of a running task.
func taskPID(t *testing.T, ctd *testenv.Containerd, namespace, name string) string {
	t.Helper()
	for line := range strings.Lines(ctd.Ctr(t, namespace, "tasks", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name && f[2] == "RUNNING" {
			return f[1]
		}
	}
	t.Fatalf("%s does not run:\n%s", name, ctd.Ctr(t, namespace, "tasks", "ls"))
	return ""
}

// serveSandbox serves a sandbox until the test ends and returns the address of
// its registry.
func serveSandbox(t *testing.T) string {
	t.Helper()
	s, err := sandbox.Open(sandbox.Config{
		Dir: t.TempDir(), StorageAddress: "127.0.0.1:0", RegistryAddress: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s.RegistryAddr()
}
