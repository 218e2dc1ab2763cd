package remote

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// executed runs a command with a daemon that answers as handler does. Its output is what it
// printed.
func executed(t *testing.T, command func(Config) *cobra.Command, c Config, in io.Reader, handler http.HandlerFunc, args ...string) (string, error) {
	t.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	defer server.CloseClientConnections()
	cmd := command(c)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append(args, "--server", server.URL))
	var out bytes.Buffer
	cmd.SetIn(in)
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	select {
	case err := <-ended:
		if ctx.Err() != nil {
			t.Errorf("%v ended only with its time: %v", args, err)
		}
		return out.String(), err
	case <-time.After(2 * time.Minute):
		t.Fatalf("%v does not end", args)
		return "", nil
	}
}

// TestPageInstead has a page answer in the daemon's place, with a 200: no command takes it for
// an answer, or waits for a better one.
func TestPageInstead(t *testing.T) {
	page := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<html>\n\nsign in\n\n</html>\n")
	}
	for name, run := range map[string]struct {
		command func(Config) *cobra.Command
		args    []string
	}{
		"wait":           {waitCommand, []string{"job-1"}},
		"events":         {eventsCommand, []string{"job-1"}},
		"events of all":  {eventsCommand, nil},
		"events -f":      {eventsCommand, []string{"job-1", "--follow"}},
		"all events -f":  {eventsCommand, []string{"--follow"}},
		"status":         {statusCommand, []string{"job-1"}},
		"ls":             {lsCommand, nil},
		"logs":           {logsCommand, []string{"job-1"}},
		"result":         {resultCommand, []string{"job-1", "-o", t.TempDir()}},
		"submit":         {submitCommand, []string{"m:v", "--payload", "x"}},
		"cancel":         {cancelCommand, []string{"job-1"}},
		"retry":          {retryCommand, []string{"job-1"}},
		"explain":        {explainCommand, []string{"job-1"}},
		"gpus":           {gpusCommand, nil},
		"models":         {modelsCommand, []string{"ls"}},
		"models watched": {modelsCommand, []string{"ls", "--watch"}},
		"sheep":          {sheepCommand, []string{"ls"}},
		"sheep watched":  {sheepCommand, []string{"ls", "--watch"}},
		"nodes":          {nodesCommand, []string{"ls"}},
		"webhooks":       {webhooksCommand, []string{"ls"}},
		"top":            {topCommand, []string{"--once"}},
		"retry --group":  {retryCommand, []string{"--group", "g"}},
		"models rm":      {modelsCommand, []string{"rm", "m:v"}},
		"models pull":    {modelsCommand, []string{"pull", "m:v"}},
		"sheep drain":    {sheepCommand, []string{"drain", "s"}},
		"sheep load":     {sheepCommand, []string{"load", "s", "m:v"}},
		"nodes drain":    {nodesCommand, []string{"drain", "n"}},
		"nodes resume":   {nodesCommand, []string{"resume", "n"}},
		"nodes forget":   {nodesCommand, []string{"forget", "n"}},
		"redeliver":      {webhooksCommand, []string{"redeliver", "msg_1"}},
		"secret":         {webhooksCommand, []string{"secret"}},
	} {
		out, err := executed(t, run.command, Config{}, strings.NewReader(""), page, run.args...)
		if err == nil || strings.Contains(out, "sign in") {
			t.Errorf("%s: %v, printed %q", name, err, out)
		} else if !strings.Contains(err.Error(), "cannot be read") && !strings.Contains(err.Error(), "is it a shepherd") {
			t.Errorf("%s: the error is %q", name, err)
		}
	}
}

// TestGatewayInstead has a proxy answer for a daemon that is restarted while a job is waited
// for, and an answer that breaks off.
func TestGatewayInstead(t *testing.T) {
	asked := 0
	out, err := executed(t, waitCommand, Config{}, nil, func(w http.ResponseWriter, _ *http.Request) {
		asked++
		state := "processing"
		switch asked {
		case 2:
			w.WriteHeader(http.StatusGatewayTimeout)
			_, _ = io.WriteString(w, "<html>504</html>")
			return
		case 3:
			w.Header().Set("Content-Length", "1000")
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"job_id": "job-1", `)
			return
		case 4:
			state = "done"
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("ETag", `"`+state+`"`)
		_, _ = io.WriteString(w, `{"job_id": "job-1", "status": "`+state+`", "model": {"name": "m", "version": "v"}}`)
	}, "job-1", "-o", "name")
	if out != "job-1\n" || err != nil || asked != 4 {
		t.Errorf("printed %q, %v after %d requests", out, err, asked)
	}
}

// TestResultOfAnotherRun has the job run again between its end and the request for an output:
// the answer that it is not ready is no output.
func TestResultOfAnotherRun(t *testing.T) {
	answers := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/jobs/j":
			_, _ = io.WriteString(w, `{"job_id": "j", "status": "done", "model": {"name": "m", "version": "v"}}`)
		case "/jobs/j/outputs":
			_, _ = io.WriteString(w, `{"bytes": 1, "files": [{"name": "a", "size": 1, "modified_at": null}]}`)
		default:
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"ready": false}`)
		}
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"j"}, {"j", "a"}, {"j", "a", "-o", dir}} {
		out, err := executed(t, resultCommand, Config{}, nil, answers, args...)
		if out != "" || ExitCode(err) != ExitConflict || !strings.Contains(err.Error(), "wait j`") {
			t.Errorf("%v: printed %q, %v", args, out, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); !os.IsNotExist(err) {
		t.Errorf("the file: %v", err)
	}
}

// TestSideBySide writes two outputs to one directory at a time, as two commands do: neither gets
// what the other wrote.
func TestSideBySide(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	slow, writer := io.Pipe()
	first := make(chan error, 1)
	go func() { first <- writeOutput(root, "a", slow) }()
	if _, err := writer.Write([]byte("first ")); err != nil { // it is read, so the file is open
		t.Fatal(err)
	}
	for _, name := range []string{"b", ".shepherd-part", "c"} {
		if err := writeOutput(root, name, strings.NewReader("of "+name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := writer.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	if err := <-first; err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"a": "first half", "b": "of b", ".shepherd-part": "of .shepherd-part", "c": "of c"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if entries, err := os.ReadDir(dir); len(entries) != 4 || err != nil {
		t.Errorf("there are %v, %v", entries, err)
	}
}

// blocked is an output that nobody reads: its first Write begins, and does not end.
type blocked struct{ begun, over chan struct{} }

func (b blocked) Write(p []byte) (int, error) {
	close(b.begun)
	<-b.over
	return len(p), nil
}

// TestBlockedOutput interrupts a command whose output nobody reads, twice: the second time it ends.
func TestBlockedOutput(t *testing.T) {
	out := blocked{make(chan struct{}), make(chan struct{})}
	interrupts := make(chan os.Signal, 2)
	s := &session{interrupts: interrupts}
	left := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.interruptible(t.Context(), func(context.Context) error {
			defer close(left)
			_, err := io.WriteString(out, "text")
			return err
		})
	}()
	<-out.begun
	interrupts <- os.Interrupt
	interrupts <- os.Interrupt
	select {
	case err := <-ended:
		if ExitCode(err) != ExitInterrupted {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it does not end")
	}
	close(out.over)
	<-left
}

// TestSilentDaemon interrupts each command while a daemon says nothing; `models` has the signals of
// the process.
func TestSilentDaemon(t *testing.T) {
	for name, run := range map[string]struct {
		command func(Config) *cobra.Command
		args    []string
	}{
		"wait":        {waitCommand, []string{"job-1"}},
		"events":      {eventsCommand, []string{"job-1"}},
		"status":      {statusCommand, []string{"job-1"}},
		"ls":          {lsCommand, nil},
		"logs":        {logsCommand, []string{"job-1"}},
		"result":      {resultCommand, []string{"job-1"}},
		"submit":      {submitCommand, []string{"m:v", "--payload", "x"}},
		"cancel":      {cancelCommand, []string{"job-1"}},
		"retry":       {retryCommand, []string{"--group", "g"}},
		"explain":     {explainCommand, []string{"job-1"}},
		"gpus":        {gpusCommand, nil},
		"sheep ls":    {sheepCommand, []string{"ls"}},
		"sheep drain": {sheepCommand, []string{"drain", "s"}},
		"nodes ls":    {nodesCommand, []string{"ls"}},
		"nodes drain": {nodesCommand, []string{"drain", "n"}},
		"webhooks ls": {webhooksCommand, []string{"ls"}},
		"redeliver":   {webhooksCommand, []string{"redeliver", "msg_1"}},
		"secret":      {webhooksCommand, []string{"secret"}},
		"top":         {topCommand, []string{"--once"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			interrupts := make(chan os.Signal, 1)
			silent := func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				interrupts <- os.Interrupt
				<-r.Context().Done()
			}
			if _, err := executed(t, run.command, Config{Interrupts: interrupts}, nil, silent, run.args...); ExitCode(err) != ExitInterrupted {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// TestSilentExplanation interrupts a command that asks, after the end of a job, why it has failed.
func TestSilentExplanation(t *testing.T) {
	for name, run := range map[string]struct {
		command func(Config) *cobra.Command
		args    []string
	}{"wait": {waitCommand, []string{"j"}}, "submit": {submitCommand, []string{"m:v", "--payload", "x"}}, "result": {resultCommand, []string{"j"}}} {
		interrupts := make(chan os.Signal, 1)
		answers := func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/jobs/j/explain" {
				interrupts <- os.Interrupt
				<-r.Context().Done()
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusCreated)
			}
			_, _ = io.WriteString(w, `{"job_id": "j", "status": "failed", "model": {"name": "m", "version": "v"}}`)
		}
		if _, err := executed(t, run.command, Config{Interrupts: interrupts}, nil, answers, run.args...); ExitCode(err) != ExitJobFailed && ExitCode(err) != ExitInterrupted {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestIdleInput has a standard input that brings nothing: neither an interrupt nor an answer
// that comes before the input's end waits for it.
func TestIdleInput(t *testing.T) {
	idle, writer := io.Pipe()
	defer writer.Close()
	interrupts := make(chan os.Signal, 1)
	begun := func(w http.ResponseWriter, r *http.Request) {
		_, _ = r.Body.Read(make([]byte, 1))
		interrupts <- os.Interrupt
		_, _ = io.Copy(io.Discard, r.Body)
	}
	if _, err := executed(t, submitCommand, Config{Interrupts: interrupts}, idle, begun, "m:v", "-"); ExitCode(err) != ExitInterrupted {
		t.Errorf("interrupted: %v", err)
	}
	refuses := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"message\": \"no\"}")
		_, _ = io.Copy(io.Discard, conn)
	}
	if _, err := executed(t, submitCommand, Config{}, idle, refuses, "m:v", "-"); ExitCode(err) != ExitRefused {
		t.Errorf("refused: %v", err)
	}
}
