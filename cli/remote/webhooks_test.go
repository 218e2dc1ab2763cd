package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The commands list messages by pages, send them again and print the secret.
func TestWebhooks(t *testing.T) {
	var asked []string
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, value any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(value)
	}
	message := func(id, state string, due any) map[string]any {
		return map[string]any{
			"id": id, "receiver": "https://example.com/hook", "job_id": "x", "run": 1, "event": "ended", "state": state, "created_at": "2026-01-02T03:04:05.000006",
			"due_at": due, "settled_at": nil, "tries": 3, "status": 500, "problem": "the receiver answered 500\u001b[1m",
		}
	}
	mux.HandleFunc("GET /webhooks/messages", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Encode())
		if r.URL.Query().Get("after") == "" {
			answer(w, map[string]any{"messages": []any{message("msg_2", "waiting", nil), message("msg_1", "given-up", nil)}, "next": "7"})
			return
		}
		answer(w, map[string]any{"messages": []any{message("msg_0", "delivered", nil)}, "next": nil})
	})
	mux.HandleFunc("POST /webhooks/messages/{id}/redeliver", func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		if id == "none" {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"title":"There is no such message","status":404}`)
			return
		}
		due := any("2026-01-02T03:04:05.000006")
		if id == "msg_2" {
			due = nil
		}
		answer(w, message(id, "waiting", due))
	})
	mux.HandleFunc("GET /webhooks/secret", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"secret": "whsec_x"}) })
	server := httptest.NewServer(mux)
	defer server.Close()
	run := func(args ...string) (string, int) {
		var out bytes.Buffer
		cmd := webhooksCommand(Config{})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(append(args, "--server", server.URL))
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		err := cmd.ExecuteContext(context.Background())
		return out.String(), ExitCode(err)
	}
	out, code := run("ls", "--state", "given-up", "--job", "x", "-n", "3", "-o", "wide")
	if lines := strings.Split(out, "\n"); code != 0 || len(lines) != 5 || !strings.Contains(lines[1], "after another") || strings.Contains(out, "\x1b") || !strings.Contains(lines[3], "delivered") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if len(asked) != 2 || asked[0] != "job=x&limit=3&state=given-up" || asked[1] != "after=7&job=x&limit=1&state=given-up" {
		t.Errorf("asked %q", asked)
	}
	if out, code := run("ls", "-o", "name", "-n", "0"); code != 0 || out != "msg_2\nmsg_1\nmsg_0\n" {
		t.Errorf("exit code %d: %q", code, out)
	}
	if out, code := run("redeliver", "msg_1", "msg_2"); code != 0 || out != "msg_1 is sent again\nmsg_2 waits for an earlier message about job x\n" {
		t.Errorf("exit code %d: %q", code, out)
	}
	if _, code := run("redeliver", "none"); code != ExitNotFound {
		t.Errorf("exit code %d", code)
	}
	if _, code := run("redeliver"); code != ExitUsage {
		t.Errorf("exit code %d", code)
	}
	if out, code := run("secret"); code != 0 || out != "whsec_x\n" {
		t.Errorf("exit code %d: %q", code, out)
	}
	for _, c := range []struct {
		url    string
		events []string
		ok     bool
	}{{"", nil, true}, {"", []string{"ended"}, false}, {"https://example.com", []string{"ended", "started"}, true}, {"example.com", nil, false}} {
		w, err := webhookFlag(c.url, c.events)
		if (err == nil) != c.ok || c.ok && (w == nil) != (c.url == "") || w != nil && len(deref(w.Events)) != len(c.events) {
			t.Errorf("--webhook %q: %+v, %v", c.url, w, err)
		}
	}
}
