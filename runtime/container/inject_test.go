package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/oci"
)

// How a container is given jobs follows from the sheep's configuration and the
// image's labels.
func TestContract(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "shepherd-runner")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for name, c := range map[string]struct {
		configured Contract
		labels     map[string]string
		own        bool
		empty      bool // the image has no command
		stop       string
		want       string // the command; the image's is `serve -x`
		problem    string
	}{
		"nothing said":             {want: "serve -x"},
		"the image says zeromq":    {labels: map[string]string{"shepherd.contract": "zeromq", "run.cog.version": "0.9"}, want: "serve -x"},
		"its own command":          {labels: map[string]string{"shepherd.contract": "command"}, want: "/.shepherd-runner run --contract command -- serve -x"},
		"another command":          {labels: map[string]string{"shepherd.command": `sh -c "tr a b < {inputs}/input"`}, want: "/.shepherd-runner run --contract command -- sh|-c|tr a b < {inputs}/input"},
		"the only command":         {labels: map[string]string{"shepherd.command": "predict --once"}, empty: true, want: "/.shepherd-runner run --contract command -- predict --once"},
		"another, in JSON":         {labels: map[string]string{"shepherd.command": `["sh", "-c", "a b"]`, "shepherd.contract": "warm"}, want: "/.shepherd-runner run --contract warm -- sh|-c|a b"},
		"the sheep's command":      {labels: map[string]string{"shepherd.command": "other"}, own: true, want: "/.shepherd-runner run --contract command -- serve -x"},
		"Cog":                      {labels: map[string]string{"run.cog.version": "0.9.4"}, stop: "SIGINT", want: "/.shepherd-runner run --contract cog --stop-signal 2 -- serve -x"},
		"a signal by its number":   {configured: ContractCommand, stop: "2", want: "/.shepherd-runner run --contract command --stop-signal 2 -- serve -x"},
		"a signal without SIG":     {configured: ContractCommand, stop: "quit", want: "/.shepherd-runner run --contract command --stop-signal 3 -- serve -x"},
		"a real-time signal":       {configured: ContractCommand, stop: "SIGRTMIN+3", want: "/.shepherd-runner run --contract command --stop-signal 37 -- serve -x"},
		"an unknown signal":        {configured: ContractCommand, stop: "SIGNONSENSE", want: "/.shepherd-runner run --contract command -- serve -x"},
		"an older Cog":             {labels: map[string]string{"org.cogmodel.cog_version": "0.3"}, want: "/.shepherd-runner run --contract cog -- serve -x"},
		"the sheep has precedence": {configured: ContractZeroMQ, labels: map[string]string{"run.cog.version": "0.9.4"}, want: "serve -x"},
		"the sheep says command":   {configured: ContractCommand, want: "/.shepherd-runner run --contract command -- serve -x"},
		"no such contract":         {labels: map[string]string{"shepherd.contract": "http"}, problem: `label shepherd.contract: "http" is none of`},
		"no command":               {labels: map[string]string{"shepherd.command": " "}, problem: "label shepherd.command"},
		"an unterminated quote":    {labels: map[string]string{"shepherd.command": "'a"}, problem: "label shepherd.command: the quote"},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := chooseContract(c.configured, c.labels)
			if c.problem != "" {
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			stop, _ := stopSignal(c.stop)
			edit, err := in.edit(stop)
			if err != nil {
				t.Fatal(err)
			}
			cfg := oci.Config{DataDir: "/data", CgroupPath: "/shepherd/a"}
			switch {
			case c.own:
				cfg.Options.Command = []string{"serve", "-x"}
			case !c.empty:
				cfg.Image.Entrypoint, cfg.Image.Cmd = []string{"serve"}, []string{"-x"}
			}
			in.setCommand(&cfg.Options)
			if edit != nil {
				cfg.Edits = []func(*specs.Spec) error{edit}
			}
			spec, err := oci.Spec(cfg)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(spec.Process.Args, " ")
			if strings.Contains(c.want, "|") {
				head, tail, _ := strings.Cut(c.want, " -- ")
				if want := append(strings.Fields(head+" --"), strings.Split(tail, "|")...); !slices.Equal(spec.Process.Args, want) {
					t.Errorf("got %q, want %q", spec.Process.Args, want)
				}
			} else if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			mounted := slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == runnerPath && slices.Contains(m.Options, "ro") })
			if mounted != strings.HasPrefix(got, runnerPath) {
				t.Errorf("mounted is %+v", spec.Mounts)
			}
		})
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := (injection{contract: ContractCog}).edit(0); err == nil || !strings.Contains(err.Error(), "shepherd-runner is not installed") {
		t.Errorf("got %v", err)
	}
}
