package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

// watched runs a command with a daemon that answers as handlers say, until it has printed
// so many lines, and interrupts it.
func watched(t *testing.T, command func(Config) *cobra.Command, lines int, handlers map[string]http.HandlerFunc, args ...string) []string {
	t.Helper()
	mux := http.NewServeMux()
	for path, handler := range handlers {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			handler(w, r)
		})
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	interrupts := make(chan os.Signal, 1)
	cmd := command(Config{Interrupts: interrupts})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append(args, "--server", server.URL))
	printed, out := io.Pipe()
	cmd.SetOut(out)
	cmd.SetErr(io.Discard)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a hang guard
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		_ = out.Close()
		ended <- err
	}()
	var got []string
	scanner := bufio.NewScanner(printed)
	for len(got) < lines && scanner.Scan() {
		got = append(got, strings.TrimRight(scanner.Text(), " "))
	}
	interrupts <- os.Interrupt
	go func() { _, _ = io.Copy(io.Discard, printed) }()
	if err := <-ended; ExitCode(err) != ExitInterrupted {
		t.Errorf("it ended with %v", err)
	}
	return got
}

// frames is a stream of the flock that goes on after these events.
func frames(t *testing.T, events ...any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, event := range events {
			name := "flock"
			if _, ok := event.(client.GPUList); ok {
				name = "gpus"
			}
			data, err := json.Marshal(event)
			if err != nil {
				t.Error(err)
			}
			fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, data)
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// After the list there is a line for each sheep that has changed.
func TestWatchSheep(t *testing.T) {
	flock := func(states ...client.SheepCondition) (f client.Flock) {
		for i, state := range states {
			f.Sheep = append(f.Sheep, client.FlockSheep{Name: string(rune('a' + i)), Type: "bare", Condition: state})
		}
		return f
	}
	stream := map[string]http.HandlerFunc{"/flock": frames(t, flock(client.Able, client.Drained), flock(client.Able, client.Drained), flock(client.Resting, client.Drained))}
	got := watched(t, sheepCommand, 4, stream, "ls", "--watch")
	if want := []string{"NAME  TYPE  UP  STATE    MODEL  JOB  DETAIL", "a     bare  no  idle     -      -", "b     bare  no  drained  -      -", "a     bare  no  resting  -      -"}; !slices.Equal(got, want) {
		t.Errorf("it printed %q", got)
	}
	if got := watched(t, sheepCommand, 3, stream, "-w", "-o", "name"); !slices.Equal(got, []string{"a", "b", "a"}) {
		t.Errorf("names are %q", got)
	}
}

func TestWatchGPUs(t *testing.T) {
	stream := map[string]http.HandlerFunc{"/flock": frames(t, client.Flock{}, client.GPUList{Gpus: []client.GPU{{Uuid: "GPU-1", Node: new("a")}, {Uuid: "GPU-2", Node: new("b")}}}, client.GPUList{Gpus: []client.GPU{{Uuid: "GPU-3", Node: new("b")}}})}
	if got := watched(t, gpusCommand, 3, stream, "--watch", "-o", "name"); !slices.Equal(got, []string{"GPU-1", "GPU-2", "GPU-3"}) {
		t.Errorf("names are %q", got)
	}
	if got := watched(t, gpusCommand, 2, stream, "--watch", "--node", "b", "-o", "name"); !slices.Equal(got, []string{"GPU-2", "GPU-3"}) {
		t.Errorf("those of a node are %q", got)
	}
}

// Models are listed again when the flock changes.
func TestWatchModels(t *testing.T) {
	asked := 0
	handlers := map[string]http.HandlerFunc{
		"/flock": frames(t, client.Flock{}, client.Flock{Sheep: []client.FlockSheep{{Name: "a"}}}),
		"/models": func(w http.ResponseWriter, _ *http.Request) {
			asked++
			_, _ = fmt.Fprintf(w, `{"models": [{"name": "m", "version": "v1", "size": 1024, "own_size": 1024, "in_use": %t, "digest": "sha256:0123456789abcdef", "last_used_at": null}]}`, asked > 1)
		},
	}
	got := watched(t, modelsCommand, 3, handlers, "ls", "--watch")
	if want := []string{"NAME  VERSION  SIZE     UNIQUE   LAST USED  IN USE  DIGEST", "m     v1       1.0 KiB  1.0 KiB  never      no      sha256:0123456789ab", "m     v1       1.0 KiB  1.0 KiB  never      yes     sha256:0123456789ab"}; !slices.Equal(got, want) {
		t.Errorf("it printed %q", got)
	}
}

// Messages are listed, and then each that is new or has changed; one that waits is not
// shown again because its time comes nearer.
func TestWatchWebhooks(t *testing.T) {
	asked := 0
	message := func(id, state string, tries int, due string) map[string]any {
		m := map[string]any{"id": id, "receiver": "ops", "job_id": "j", "run": 1, "event": "ended", "state": state, "created_at": "2026-01-02T03:04:05.000006", "tries": tries}
		if due != "" {
			m["due_at"] = due
		}
		return m
	}
	handlers := map[string]http.HandlerFunc{"/webhooks/messages": func(w http.ResponseWriter, _ *http.Request) {
		asked++
		list := []any{message("msg_2", "waiting", 1, "2126-01-02T03:04:05Z"), message("msg_1", "waiting", 1, "")}
		switch {
		case asked == 2:
			list[1] = message("msg_1", "delivered", 2, "")
		case asked > 2:
			list = []any{message("msg_3", "delivered", 1, ""), message("msg_2", "given-up", 9, ""), message("msg_1", "delivered", 2, "")}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"messages": list, "next": nil})
	}}
	got := watched(t, webhooksCommand, 5, handlers, "ls", "--watch", "-o", "jsonl")
	var states []string
	for _, line := range got {
		var m client.Message
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		states = append(states, m.Id+" "+string(m.State))
	}
	if want := []string{"msg_2 waiting", "msg_1 waiting", "msg_1 delivered", "msg_2 given-up", "msg_3 delivered"}; !slices.Equal(states, want) {
		t.Errorf("it printed %q", got)
	}
}

// A job is shown when something has changed, until it has ended.
func TestWatchStatus(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/session" {
			http.NotFound(w, r)
			return
		}
		if r.URL.Path == "/jobs/j/events" {
			w.Header().Set("Content-Type", "text/event-stream")
			for id, event := range []string{"queued", "claimed", "started", "ended"} {
				fmt.Fprintf(w, "id: %d\ndata: {\"event\": %q, \"job_id\": \"j\"}\n\n", id+1, event)
			}
			return
		}
		w.Header().Set("Content-Type", "application/json")
		asked++
		answer := map[string]any{"job_id": "j", "status": "queued", "model": map[string]string{"name": "m", "version": "v1"}}
		if asked > 2 {
			answer["status"] = "processing"
		}
		if asked > 3 {
			answer["status"], answer["finished_at"] = "done", "2026-11-29T12:00:00.000000"
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	defer server.Close()
	var out strings.Builder
	cmd := statusCommand(Config{})
	cmd.SetArgs([]string{"j", "--watch", "-o", "name", "--server", server.URL})
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out.String() != "queued\nprocessing\ndone\n" {
		t.Errorf("it printed %q", out.String())
	}
}

// A command that would wait for a daemon that goes away fails where there is none to begin with.
func TestWatchOfNoDaemon(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>Bad Gateway</html>", http.StatusBadGateway)
	}))
	defer proxy.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	for name, c := range map[string]struct {
		command func(Config) *cobra.Command
		args    string
	}{
		"events":       {eventsCommand, "-f"},
		"job's events": {eventsCommand, "job-1 -f"},
		"status":       {statusCommand, "job-1 -w"},
		"gpus":         {gpusCommand, "-w"},
		"sheep":        {sheepCommand, "ls -w"},
		"models":       {modelsCommand, "ls -w"},
	} {
		for _, server := range []string{proxy.URL, gone.URL} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a hang guard
			cmd := c.command(Config{})
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetArgs(append(strings.Fields(c.args), "--server", server))
			if err := cmd.ExecuteContext(ctx); ExitCode(err) != ExitUnreachable || ctx.Err() != nil || server == proxy.URL && !strings.Contains(err.Error(), "a proxy is there") {
				t.Errorf("%s of %s: %v", name, server, err)
			}
			cancel()
		}
	}
}

// Events of all jobs begin with the newest ones, and go on after the last of these.
func TestNewestEvents(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	event := func(w io.Writer, id int) {
		fmt.Fprintf(w, "id: %d\ndata: {\"event\": \"queued\", \"job_id\": \"job-%d\"}\n\n", id, id)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/session" {
			http.NotFound(w, r)
			return
		}
		mu.Lock()
		asked = append(asked, r.URL.Query().Encode())
		mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		switch r.URL.Query().Get("newest") {
		case "2":
			event(w, 6)
			event(w, 7)
		case "0":
			fmt.Fprint(w, "id: 7\n\n")
		default:
			event(w, 8)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	for _, c := range []struct {
		args, want string
		asked      []string
	}{
		{"--newest 2", "job-6 job-7", []string{"follow=false&newest=2"}},
		{"--newest 2 -f", "job-6 job-7 job-8", []string{"follow=false&newest=2", "after=7"}},
		{"--newest 0 -f", "job-8", []string{"follow=false&newest=0", "after=7"}},
	} {
		asked = nil
		interrupts := make(chan os.Signal, 1)
		cmd := eventsCommand(Config{Interrupts: interrupts})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(append(strings.Fields(c.args), "-o", "name", "--server", server.URL))
		var got []string
		out, in := io.Pipe()
		cmd.SetOut(in)
		ended := make(chan error, 1)
		go func() {
			ended <- cmd.ExecuteContext(t.Context())
			in.Close()
		}()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if got = append(got, lines.Text()); lines.Text() == "job-8" {
				interrupts <- os.Interrupt
			}
		}
		if err := <-ended; err != nil && ExitCode(err) != ExitInterrupted {
			t.Errorf("%s: %v", c.args, err)
		}
		if strings.Join(got, " ") != c.want || !slices.Equal(asked, c.asked) {
			t.Errorf("%s: it printed %q and asked %q", c.args, got, asked)
		}
	}
	for args, says := range map[string]string{
		"job-1 --newest 1":       "for the events of all jobs",
		"--after 1 --newest 1":   "give one",
		"--newest -1":            "0 or more",
		"--newest many --follow": "invalid argument",
	} {
		cmd := eventsCommand(Config{})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(append(strings.Fields(args), "--server", server.URL))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
