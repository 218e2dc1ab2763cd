package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

// The whole demonstration, with a short lease: no digit is lost or classified twice, some jobs
// move, and no process is left.
func TestDemo(t *testing.T) {
	dir := t.TempDir()
	o := options{
		bin: filepath.Join(dir, "bin"), dir: filepath.Join(dir, "state"), minio: testenv.MinIOProgram(t),
		config: "node.yml", models: "../../examples/digits/models", lease: 20 * time.Second, // far longer than a pause of a busy machine
	}
	for program, of := range map[string]string{"shepherdd": "../../cmd/shepherdd", "shepherd-shim": "../../cmd/shepherd-shim", "digits-runner": "../../examples/digits/runner"} {
		build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(o.bin, program), of)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", program, err, out)
		}
	}
	var out bytes.Buffer
	err := demo(t.Context(), o, &out)
	if errors.Is(err, postgrestest.ErrNotInstalled) {
		testenv.Missing(t, "PostgreSQL", "apt-get install postgresql")
	}
	if err != nil {
		logs, _ := filepath.Glob(o.dir + "/*/log")
		for _, log := range logs {
			text, _ := os.ReadFile(log)
			t.Logf("%s:\n%s", log, text)
		}
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
	for _, said := range []string{"node-lost", " 0 lost, 0 doubled"} {
		if !strings.Contains(out.String(), said) {
			t.Errorf("it does not say %q:\n%s", said, &out)
		}
	}
	for _, name := range []string{"a", "b"} {
		n := &node{name: name, dir: filepath.Join(o.dir, name)}
		if left, err := n.processes(); err != nil || len(left) > 0 {
			t.Errorf("node %s has left processes %v, %v", name, left, err)
		}
	}
}

// A report whose jobs were lost or ended twice is an error.
func TestVerdict(t *testing.T) {
	moved := []move{{job: "digit-7-0856"}}
	for name, test := range map[string]struct {
		report report
		says   string
	}{
		"all well":   {report{jobs: 10, right: 10, moved: moved}, ""},
		"lost":       {report{jobs: 10, right: 10, moved: moved, lost: []string{"digit-1-0001"}}, "lost [digit-1-0001]"},
		"twice":      {report{jobs: 10, right: 10, moved: moved, double: []string{"digit-1-0001"}}, "doubled [digit-1-0001]"},
		"none moved": {report{loss: loss{node: "a", held: 2}, jobs: 10, right: 10}, "node a had 2 jobs"},
		"wrong":      {report{jobs: 10, right: 5, moved: moved}, "5 of 10 digits"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.report.verdict()
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("it says %v, expected %q", err, test.says)
			}
		})
	}
}
