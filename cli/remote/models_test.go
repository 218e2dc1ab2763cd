package remote

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

// The command and the API understand each other.
func TestRemote(t *testing.T) {
	kept := []client.KeptModel{{Name: "a/b", Version: "v1", Size: 3, OwnSize: 2, LastUsedAt: job.FormatTime(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC))}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /models", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(client.ModelList{Models: kept})
	})
	mux.HandleFunc("DELETE /models/{model}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("model") != "a/b:v1" {
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(client.Error{Message: "not here"})
		}
	})
	mux.HandleFunc("POST /models/pull", func(w http.ResponseWriter, r *http.Request) {
		var asked client.PullRequest
		json.NewDecoder(r.Body).Decode(&asked)
		w.Write([]byte(`{"text":"half","done":1,"total":2,"rate":3}` + "\n"))
		switch asked.Model.Name {
		case "good":
			w.Write([]byte(`{"text":"here","success":true}` + "\n"))
		case "bad":
			w.Write([]byte(`{"text":"no","error":"no"}` + "\n"))
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	daemon, err := client.New(client.Config{Server: server.URL + "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.CloseIdle()
	r := remoteModels{daemon}
	list, err := r.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Model.String() != "a/b:v1" || list[0].Own != 2 || list[0].LastUsed.Nanosecond() != 6000 {
		t.Errorf("listed %+v, %v", list, err)
	}
	if err := r.Remove(t.Context(), job.Model{Name: "a/b", Version: "v1"}); err != nil {
		t.Error(err)
	}
	if err := r.Remove(t.Context(), job.Model{Name: "c"}); err == nil || err.Error() != "not here" {
		t.Errorf("remove what is not there: %v", err)
	}
	for name, want := range map[string]string{"good": "", "bad": "no", "cut": "went away during the pull"} {
		var told []job.PullProgress
		err := r.Pull(t.Context(), job.Model{Name: name}, "", func(p job.PullProgress) { told = append(told, p) })
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) || len(told) != 1 || told[0] != (job.PullProgress{Text: "half", Done: 1, Total: 2, Rate: 3}) {
			t.Errorf("pull %s: %v after %v, want %q", name, err, told, want)
		}
	}
	server.Close()
	if _, err := r.List(t.Context()); err == nil || !strings.Contains(Hint(err).Error(), "--server") {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestModelsFlags(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	c := Config{Locate: func(string) (string, error) { return "", ErrNoDaemon }}
	for _, args := range [][]string{{"ls"}, {"pull", "-c", "x"}, {"ls", "-c", "x", "--server", "http://y"}, {"rm", "--server", "http://y"}} {
		cmd := modelsCommand(c)
		cmd.SetArgs(args)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.ExecuteContext(t.Context()); ExitCode(err) != ExitUsage {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
}

// Where no daemon is running, the models are this machine's.
func TestLocalModels(t *testing.T) {
	opened := ""
	c := Config{
		Locate: func(string) (string, error) { return "", ErrNoDaemon },
		LocalModels: func(_ context.Context, file string, _ io.Writer) (Models, func(), error) {
			opened = file
			return nil, nil, io.EOF
		},
	}
	cmd := modelsCommand(c)
	cmd.SetArgs([]string{"ls", "-c", "x"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, io.EOF) || opened != "x" {
		t.Errorf("opened %q, %v", opened, err)
	}
}
