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
	node := "b"
	kept := []client.KeptModel{{Node: &node, Name: "a/b", Version: "v1", Size: 3, OwnSize: 2, LastUsedAt: job.FormatTime(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC))}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /models", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(client.ModelList{Models: kept, Unanswered: &[]client.UnansweredNode{{Name: "c", Problem: "does not answer"}}})
	})
	mux.HandleFunc("DELETE /models/{model}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("model") != "a/b:v1" || r.FormValue("node") == "c" {
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(client.Error{Message: "not here"})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(client.Success{Success: true})
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
	all, err := r.List(t.Context())
	list := all.Models
	if err != nil || len(list) != 1 || list[0].Node != "b" || len(all.Unanswered) != 1 || all.Unanswered[0] != (job.UnansweredNode{Name: "c", Problem: "does not answer"}) || list[0].Model.String() != "a/b:v1" || list[0].Own != 2 || list[0].LastUsed.Nanosecond() != 6000 {
		t.Errorf("listed %+v, %v", all, err)
	}
	if err := r.Remove(t.Context(), job.Model{Name: "a/b", Version: "v1"}, ""); err != nil {
		t.Error(err)
	}
	for node, model := range map[string]job.Model{"": {Name: "c"}, "c": {Name: "a/b", Version: "v1"}} {
		if err := r.Remove(t.Context(), model, node); err == nil || err.Error() != "not here" {
			t.Errorf("remove what is not there: %v", err)
		}
	}
	for name, want := range map[string]string{"good": "", "bad": "no", "cut": "ended during the pull"} {
		var told []job.PullProgress
		err := r.Pull(t.Context(), job.PullOrder{Model: job.Model{Name: name}}, func(p job.PullProgress) { told = append(told, p) })
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

// Of a fleet, models are listed with their nodes, and those of nodes that do not answer are
// said to be unknown.
func TestListModels(t *testing.T) {
	digits := client.KeptModel{Name: "digits", Version: "v1", Size: 2 << 20, OwnSize: 1 << 20, Digest: "sha256:0123456789abcdef"}
	on := func(node string) client.KeptModel {
		m := digits
		m.Node = &node
		return m
	}
	for _, c := range []struct {
		name           string
		list           client.ModelList
		form           string
		printed, noted string
	}{
		{"alone", client.ModelList{Models: []client.KeptModel{digits}}, "table",
			"NAME    VERSION  SIZE     UNIQUE   LAST USED  IN USE  DIGEST\n" + "digits  v1       2.0 MiB  1.0 MiB  never      no      sha256:0123456789ab\n", ""},
		{"fleet", client.ModelList{Models: []client.KeptModel{on("a"), on("b")}, Unanswered: &[]client.UnansweredNode{{Name: "c", Problem: "does not answer"}}}, "table",
			"NODE  NAME    VERSION  SIZE     UNIQUE   LAST USED  IN USE  DIGEST\n" + "a     digits  v1       2.0 MiB  1.0 MiB  never      no      sha256:0123456789ab\n" + "b     digits  v1       2.0 MiB  1.0 MiB  never      no      sha256:0123456789ab\n",
			"The models of node c are not known: does not answer\n"},
		{"names", client.ModelList{Models: []client.KeptModel{on("a"), on("b")}}, "name", "digits:v1\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				json.NewEncoder(w).Encode(c.list)
			}))
			defer server.Close()
			var out, notes strings.Builder
			cmd := modelsCommand(Config{})
			cmd.SetArgs([]string{"ls", "--server", server.URL, "-o", c.form})
			cmd.SetOut(&out)
			cmd.SetErr(&notes)
			if err := cmd.ExecuteContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.printed || notes.String() != c.noted {
				t.Errorf("printed %q and %q, want %q and %q", out.String(), notes.String(), c.printed, c.noted)
			}
		})
	}
}
