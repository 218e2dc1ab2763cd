package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDev runs models without a daemon, and leaves nothing but the outputs.
func TestDev(t *testing.T) {
	w := emptyWorld(t)
	temp := filepath.Join(w.dir, "tmp")
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, w.dir+"/good/config.yaml", "command: [sh, -c, 'echo working; cp -r {inputs}/. {outputs}/']\n")
	write(t, w.dir+"/bad/config.yaml", "command: [sh, -c, 'echo trying; echo broken >&2; exit 3']\n")
	write(t, w.dir+"/in/sub/a", "content")
	c := &client{w: w, program: "shepherdd", env: []string{"TMPDIR=" + temp, "PATH=" + programs + ":" + os.Getenv("PATH"), "XDG_CONFIG_HOME=" + w.dir}}

	o := c.expect(0, "piped", args("dev", "good", "-o", "out", "--", "in", "-"), "Done, with 2 outputs, 12 B, in out")
	if !strings.Contains(o.out, "working\n") {
		t.Errorf("the log is %q", o.out)
	}
	for name, want := range map[string]string{"sub/a": "content", "input": "piped"} {
		if text, err := os.ReadFile(filepath.Join(w.dir, "out", name)); string(text) != want || err != nil {
			t.Errorf("%s is %q, %v", name, text, err)
		}
	}
	o = c.expect(3, "", args("dev", "bad"), "exit code 3: broken", "What to do:", "--keep")
	if !strings.Contains(o.out, "trying\n") {
		t.Errorf("the log is %q", o.out)
	}
	c.expect(2, "", args("dev", "nothing"), "neither a directory nor an image with its registry")
	c.expect(1, "", args("dev", "in"), "in is not a model")
	left, err := filepath.Glob(temp + "/shepherd-dev-*")
	if err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
	if processes := w.processes(); len(processes) > 0 {
		t.Errorf("processes are left: %s", fmt.Sprint(processes))
	}
}
