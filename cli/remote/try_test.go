package remote

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

// TestTryEnds tries a model on daemons that cannot run it: the trial ends with the reason,
// whether the daemon would try again or not, and names no command for a daemon that is gone.
func TestTryEnds(t *testing.T) {
	why := "Failed to start sheep for this job (the registry does not answer)"
	at := job.FormatTime(time.Now())
	for name, c := range map[string]struct {
		then client.Job
		code int
		want []string
	}{
		"returned": {
			client.Job{Status: job.Queued, Run: 1, Attempts: &[]client.Attempt{{Run: 1, Number: 1, Sheep: "dev", EndedAt: at, Reason: &why}}},
			ExitFailure, []string{"The job could not run: " + why + "\n"},
		},
		"failed": {
			client.Job{Status: job.Failed, Run: 1, ErrorDetails: &client.Failure{Message: why}},
			ExitJobFailed, []string{"It failed.\n", "What to do: Correct what the reason names, and repeat this command.\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			mux := http.NewServeMux()
			answer := func(w http.ResponseWriter, code int, body any) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(code)
				_ = json.NewEncoder(w).Encode(body)
			}
			looks := 0
			mux.HandleFunc("POST /jobs", func(w http.ResponseWriter, _ *http.Request) {
				answer(w, http.StatusCreated, client.Job{JobId: "job-1", Status: job.Queued, Run: 1})
			})
			mux.HandleFunc("GET /jobs/job-1", func(w http.ResponseWriter, _ *http.Request) {
				j := client.Job{Status: job.Processing, Run: 1, Sheep: new("dev")}
				if looks++; looks > 1 {
					j = c.then
				}
				j.JobId = "job-1"
				answer(w, http.StatusOK, j)
			})
			mux.HandleFunc("GET /jobs/job-1/explain", func(w http.ResponseWriter, _ *http.Request) {
				answer(w, http.StatusOK, client.Explanation{Text: "It failed.\nWhat to do: Then `shepherd retry job-1` runs it again.\nWhat to do: `shepherd models pull m:v1` says more.\n"})
			})
			server := httptest.NewServer(mux)
			defer server.Close()
			daemon, err := client.New(client.Config{Server: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			defer daemon.CloseIdle()
			var out, said bytes.Buffer
			cmd := &cobra.Command{Use: "shepherd"}
			cmd.SetOut(&out)
			cmd.SetErr(&said)
			err = Try(t.Context(), cmd, daemon, job.Model{Name: "m", Version: "v1"}, nil, t.TempDir())
			if code := ExitCode(err); err == nil || code != c.code {
				t.Errorf("%v, with code %d, want %d", err, code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(said.String(), want) {
					t.Errorf("no %q in %q", want, said.String())
				}
			}
			for _, line := range []string{"tried again", "shepherd retry", "models pull"} {
				if strings.Contains(said.String(), line) {
					t.Errorf("%q is said in %q", line, said.String())
				}
			}
		})
	}
}
