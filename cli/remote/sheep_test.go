package remote

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/iterait/shepherd/client"
)

// sheep without a command lists them, as sheep ls does, in every form.
func TestListSheep(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/sheep" {
			t.Errorf("asked for %s", r.URL)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"sheep": [
			{"name": "a", "node": null, "condition": "able", "type": "bare", "running": true, "model": {"name": "m", "version": "v1"}, "job": "job-1", "detail": "runs"},
			{"name": "b", "node": null, "condition": "drained", "type": "docker", "running": false, "model": {"name": null, "version": null}, "job": null, "detail": null}]}`)
	}))
	defer server.Close()
	list := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		cmd := sheepCommand(Config{})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(append(args, "--server", server.URL))
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return out.String()
	}
	const table = "NAME  TYPE    UP   STATE    MODEL  JOB    DETAIL\na     bare    yes  working  m:v1   job-1  runs\nb     docker  no   drained  -      -      \n"
	for _, args := range [][]string{{}, {"ls"}, {"list", "-o", "wide"}, {"-o", "table"}} {
		if got := list(args...); got != table {
			t.Errorf("sheep %q prints\n%s", args, got)
		}
	}
	if got := list("-o", "name"); got != "a\nb\n" {
		t.Errorf("names: %q", got)
	}
	if got := list("ls", "--no-headers"); got != "a  bare    yes  working  m:v1  job-1  runs\nb  docker  no   drained  -     -      \n" {
		t.Errorf("without heading: %q", got)
	}
	var sheep []client.Sheep
	if err := json.Unmarshal([]byte(list("-o", "json")), &sheep); err != nil || len(sheep) != 2 || sheep[0].Name != "a" || sheep[1].Running {
		t.Errorf("%+v, %v", sheep, err)
	}
	lines := bytes.Split([]byte(list("ls", "-o", "jsonl")), []byte("\n"))
	var first client.Sheep
	if err := json.Unmarshal(lines[0], &first); err != nil || len(lines) != 3 || deref(first.Job) != "job-1" {
		t.Errorf("%q, %v", lines, err)
	}
	cmd := sheepCommand(Config{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"none", "--server", server.URL})
	if err := cmd.ExecuteContext(t.Context()); err == nil {
		t.Error("a command that there is not lists sheep")
	}
}
