package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

// Elsewhere than on a terminal there is a line for each stage, not for each
// report; on one, the bar stays in its line.
func TestBar(t *testing.T) {
	reports := []job.PullProgress{
		{Text: "asking the registry"}, {Text: "pulling m: 1%", Done: 1, Total: 100}, {Text: "pulling m: 50%", Done: 50, Total: 100, Rate: 2048},
		{Text: "unpacking m", Done: 100, Total: 100},
	}
	for _, c := range []struct {
		terminal bool
		want     string
	}{
		{false, "asking the registry\npulling m: 1%\nunpacking m\n"},
		{true, "\r\x1b[Kasking the registry\r\x1b[Km:v1 [" + strings.Repeat(" ", 30) + "]   1% 1 B of 100 B 1 B/s" +
			"\r\x1b[Km:v1 [" + strings.Repeat("=", 15) + strings.Repeat(" ", 15) + "]  50% 50 B of 100 B 2.0 KiB/s\r\x1b[Kunpacking m\r\x1b[K"},
	} {
		var out bytes.Buffer
		b := newBar(&out, "m:v1")
		b.terminal = c.terminal
		for i, p := range reports {
			if i == 1 {
				p.Rate = 1
			}
			b.show(p)
		}
		b.end()
		if out.String() != c.want {
			t.Errorf("terminal %v: %q\nwant %q", c.terminal, out.String(), c.want)
		}
	}
}

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
	if _, err := r.List(t.Context()); err == nil || !strings.Contains(remote.Hint(err).Error(), "--server") {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestModelsFlags(t *testing.T) {
	for _, args := range [][]string{{"ls"}, {"pull", "-c", "x"}, {"ls", "-c", "x", "--api", "http://y"}, {"rm", "--api", "http://y"}} {
		root := newRoot("shepherdd", Build{})
		root.SetArgs(append([]string{"models"}, args...))
		var usage *usageError
		err := root.ExecuteContext(context.Background())
		if !errors.As(err, &usage) && remote.ExitCode(err) != remote.ExitUsage {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
}
