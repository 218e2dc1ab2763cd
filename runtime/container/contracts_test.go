package container_test

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/container"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// Warm is a command that stays up: each line has the job's directories.
const warm = `while read -r line; do
	in=$(echo "$line" | sed 's/.*"inputs":"\([^"]*\)".*/\1/'); out=$(echo "$line" | sed 's/.*"outputs":"\([^"]*\)".*/\1/')
	echo "::progress 40% halfway"; echo "putting $(cat $in/input)"
	if [ "$(cat $in/input)" = fail ]; then echo '{"error": "ValueError: no"}'; continue; fi
	tr a-z A-Z < $in/input > $out/output; echo '{}'
done`

// Once is a command for one job.
const once = `echo "::progress 40% halfway"; echo "putting $(cat {inputs}/input)"; if [ "$(cat {inputs}/input)" = fail ]; then echo "ValueError: no" >&2; exit 3; fi; tr a-z A-Z < {inputs}/input > {outputs}/output`

// stranger is an image that knows nothing of shepherd.
type stranger struct {
	config    v1.Config
	sheep     string // its sheep's configuration
	contracts []string
	command   []string // of the contract by model pattern
}

func strangers() map[string]stranger {
	shell := func(labels map[string]string, command ...string) v1.Config {
		return v1.Config{User: "1000", Labels: labels, Entrypoint: command}
	}
	return map[string]stranger{
		"command of the label":         {config: shell(map[string]string{"shepherd.command": "sh -c '" + once + "'"}, "/bin/false")},
		"command of the image":         {config: shell(map[string]string{"shepherd.contract": "command"}, "/bin/sh", "-c", once)},
		"command of the configuration": {config: shell(map[string]string{"shepherd.contract": "warm"}, "/bin/false"), sheep: "contract: cog\n", contracts: []string{"digits", "command"}, command: []string{"/bin/sh", "-c", once}},
		"warm":                         {config: shell(nil, "/bin/sh", "-c", warm), sheep: "contract: warm\n"},
		"cog":                          {config: shell(map[string]string{"run.cog.version": "0.14"}, "/runner", "cog")},
		"cog by pattern":               {config: shell(nil, "/runner", "cog"), contracts: []string{"dig*:v1", "cog"}},
	}
}

// Images that know nothing of shepherd do jobs: results, failures with their cause,
// progress and logs come out, whatever the contract.
func TestContracts(t *testing.T) { contracts(t, testenv.StartContainerd(t)) }

func TestContractsContainerd2(t *testing.T) { contracts(t, testenv.StartContainerd2(t)) }

func contracts(t *testing.T, daemon *testenv.Containerd) {
	busybox := program(t, "/bin/busybox", "busybox-static")
	for _, name := range []string{"sh", "cat", "tr", "sed", "false"} {
		busybox = append(busybox, testenv.TarEntry{Name: "bin/" + name, Type: tar.TypeSymlink, Link: "/bin/busybox"})
	}
	tools := testenv.TarLayer(t, busybox...)
	for name, s := range strangers() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, daemon)
			w.more = s.sheep
			if s.contracts != nil {
				rule, err := job.ParseRule(s.contracts[0])
				if err != nil {
					t.Fatal(err)
				}
				w.contracts = []container.ModelContract{{Models: rule, Contract: container.Contract(s.contracts[1]), Command: s.command}}
			}
			w.registry.Push(t, "digits:v1", testenv.Image(t, s.config, w.base, tools))
			h := w.inherit(t)
			h.Load()
			h.Run()
			s.converse(t, w, h)
			h.StopAndClose()
		})
	}
}

// converse has the sheep do jobs, and looks at all that it says of them.
func (s stranger) converse(t *testing.T, w *world, h *successor) {
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	for _, input := range []string{"abc", "fail", "def"} {
		id := job.ID("job-" + input)
		runtimetest.Prepare(t, filepath.Join(w.dataRoot(), runtimetest.Sheep), id, input)
		if err := os.Chown(filepath.Join(w.dataRoot(), runtimetest.Sheep, string(id), job.OutputDir), 1000, 1000); err != nil {
			t.Fatal(err)
		}
		if err := h.Conn.Send(ctx, messenger.Input{JobID: id}); err != nil {
			t.Fatal(err)
		}
		for {
			e, err := h.Conn.(messenger.EventSource).RecvEvent(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == messenger.EventProgress && e.JobID == id && e.Progress == 0.4 {
				break
			}
		}
		a, err := h.Conn.Recv(ctx)
		if err != nil || a.JobID != id {
			t.Fatalf("got %+v, %v", a, err)
		}
		if err := h.Conn.Ack(ctx, id); err != nil {
			t.Error(err)
		}
		log, err := h.Sheep.(runtime.JobLogger).JobLogs(ctx, a.Log, job.LogQuery{Tail: -1})
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(log)
		if log.Close(); err != nil || strings.Count(string(text), "putting "+input+"\n") != 1 {
			t.Errorf("the log of %s is %q, %v", id, text, err)
		}
		if input == "fail" {
			if a.Failure == nil || !strings.Contains(a.Failure.Message, "ValueError: no") {
				t.Errorf("got %+v", a.Failure)
			}
			continue
		}
		output, err := os.ReadFile(filepath.Join(w.dataRoot(), runtimetest.Sheep, string(id), job.OutputDir, job.DefaultOutput))
		if err != nil || a.Failure != nil || string(output) != strings.ToUpper(input) {
			t.Errorf("got %q, %v, %+v", output, err, a.Failure)
		}
	}
}
