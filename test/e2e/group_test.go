package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAfter chains jobs by their outputs, across a daemon that is killed while they wait,
// and submits a group.
func TestAfter(t *testing.T) {
	c := newClient(t, "shepherd")
	dir := c.w.dir
	write(t, dir+"/text", "of the first")
	write(t, dir+"/wait", "")
	c.expect(0, "", args("submit", "files:v1", "text", "wait", "--id", "first", "--group", "chain", "--no-wait", "-q"), "first is")
	c.expect(0, "", args("submit", "files:v1", "--after", "first", "--id", "second", "--group", "chain", "--no-wait", "-q"), "second is queued")
	c.expect(0, "", args("explain", "second"), "It waits for the outputs of job `first` (after).")
	c.expect(2, "", args("cancel", "second", "--group", "chain"), "name jobs or a group")
	c.expect(1, "", args("submit", "files:v1", "--after", "nobody", "--no-wait", "-q"), "after: there is no job `nobody` to wait for")

	c.w.kill()
	c.w.start()
	c.env[0] = "SHEPHERD_SERVER=" + c.w.api
	c.expect(0, "", args("explain", "second"), "It waits for the outputs of job `first` (after).")
	c.expect(0, "", args("ls", "--group", "chain", "--oldest", "-o", "name"), "first\nsecond\n")
	write(t, dir+"/gate", "")
	c.expect(0, "", args("wait", "second"))
	c.expect(0, "", args("result", "second", "-o", "out", "-q"))
	if got, err := os.ReadFile(filepath.Join(dir, "out", "first", "text")); err != nil || string(got) != "of the first" {
		t.Errorf("the second job found %q, %v", got, err)
	}

	// A group, of which one fails for lack of another.
	status, body := c.w.request("POST", "/groups", `{"group": "g", "jobs": [
		{"job_id": "good", "model": {"name": "files", "version": "v1"}, "payload": "x"},
		{"job_id": "bad", "model": {"name": "files", "version": "v1"}, "after": ["good"], "not_before": "2099-01-01T00:00:00Z"},
		{"job_id": "last", "model": {"name": "files", "version": "v1"}, "after": ["bad", "good"]}]}`)
	if status != 201 || !strings.Contains(body, `"group": "g"`) {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := c.w.request("POST", "/groups", `{"jobs": [{"model": {"name": "files", "version": "v1"}, "payload": "x"}, {"job_id": "bad", "model": {"name": "files", "version": "v1"}, "payload": "x"}]}`); status != 409 || !strings.Contains(body, "jobs[1]: ") {
		t.Errorf("%d %s", status, body)
	}
	c.expect(0, "", args("wait", "good"))
	c.expect(0, "", args("cancel", "--group", "g"), "g: 0 queued, 0 processing, 1 done, 0 failed, 2 cancelled")
	c.expect(0, "", args("retry", "--group", "g"), "g: 2 queued, 0 processing, 1 done, 0 failed, 0 cancelled")
	c.expect(0, "", args("cancel", "bad"))
	c.expect(3, "", args("wait", "last", "--timeout", "30s"), "`bad`, whose outputs this one needs, was cancelled")
	c.expect(5, "", args("retry", "--group", "nobody's"), "There is no such group")
}
