package remote

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// nodes asks a daemon of the fleet, which the flags or the environment name.
func TestNodes(t *testing.T) {
	var told []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told = append(told, r.Method+" "+r.URL.EscapedPath())
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodGet:
			_, _ = io.WriteString(w, `{"nodes": [
				{"name": "a", "state": "up", "lost_at": null, "drained": true, "jobs": 2, "joined_at": "2026-11-22T10:08:03.942214", "version": "v1", "address": "http://a:5000", "labels": {"region": "eu", "gpu": "a100"},
					"sheep": [{"name": "s1", "type": "bare", "model": {"name": "m", "version": "2"}}, {"name": "s2", "type": "bare", "model": {"name": null, "version": null}}]},
				{"name": "b", "state": "lost", "lost_at": "2026-11-22T10:09:00.000000", "drained": false, "jobs": 0, "joined_at": "2026-11-22T10:08:03.000000", "version": null, "address": null, "labels": {}, "sheep": []}]}`)
		case r.Method == http.MethodDelete:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"type": "urn:shepherd:problem:node-in-use", "title": "Conflict", "status": 409, "detail": "node a is up: stop its daemon first", "message": "node a is up: stop its daemon first"}`)
		default:
			_, _ = io.WriteString(w, `{"success": true}`)
		}
	}))
	defer server.Close()
	t.Setenv(EnvServer, server.URL)
	call := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := nodesCommand(Config{})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	const table = "NAME  STATE                         JOBS  VERSION  ADDRESS        LABELS              SHEEP\n" +
		"a     up, drained                   2     v1       http://a:5000  gpu=a100,region=eu  s1 (m:2), s2\n" +
		"b     lost at 2026-11-22T10:09:00Z  0     -        -              -                   -\n"
	for _, args := range [][]string{{}, {"ls"}, {"list", "--server", server.URL}} {
		if said, err := call(args...); err != nil || said != table {
			t.Errorf("nodes %q prints %v\n%s", args, err, said)
		}
	}
	var nodes []Node
	if said, err := call("ls", "-o", "json"); err != nil || json.Unmarshal([]byte(said), &nodes) != nil || len(nodes) != 2 ||
		!nodes[0].JoinedAt.Equal(time.Date(2026, 11, 22, 10, 8, 3, 942214000, time.UTC)) || nodes[0].LostAt != nil || nodes[0].Sheep[0].Model != "m:2" || nodes[1].LostAt == nil {
		t.Errorf("as JSON: %s, %v", said, err)
	}
	told = nil
	for command, want := range map[string]string{"drain": "Node a claims no more jobs.\n", "resume": "Node a claims jobs again.\n"} {
		if said, err := call(command, "a"); err != nil || said != want || told[len(told)-1] != "POST /nodes/a/"+command {
			t.Errorf("%s says %q, %v, asking for %q", command, said, err, told)
		}
	}
	if _, err := call("forget", "a"); ExitCode(err) != ExitConflict || !strings.Contains(err.Error(), "stop its daemon first") || told[len(told)-1] != "DELETE /nodes/a" {
		t.Errorf("forget: %v, asking for %q", err, told)
	}
	if _, err := call("drain"); ExitCode(err) != ExitUsage {
		t.Errorf("drain of none: %v", err)
	}
}
