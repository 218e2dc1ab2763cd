package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/iterait/shepherd/api"
)

// TestLimits runs jobs into their own limits and those that are configured for all, for a
// model and for a sheep.
func TestLimits(t *testing.T) {
	w := newWorld(t, "sheep", "deaf")
	w.edit("api:\n", "limits: {retry_pause: 10ms}\nmodels: {limits: [{model: echo, run_timeout: 2s}]}\nscheduling: {max_overtakes: 3}\napi:\n")
	write(t, w.dir+"/models/silent/v1/config.yaml", "{}\n")
	w.edit("  deaf:\n", "  deaf:\n    limits: {load_timeout: 1s}\n    command: [sh, -c, 'echo weights are missing; exec sleep 1000', '{port}']\n")
	w.start()
	w.logged(`A key of the configuration is not used.*max_overtakes`)

	code, text := w.request("POST", "/start-job", strings.Replace(jobBody("stuck", "echo:v1", "wait "+w.dir+"/gate", "sheep_id", "sheep"), "{", `{"retries": 1, `, 1))
	if code != 200 {
		t.Fatalf("%d %s", code, text)
	}
	w.submit("silent", "silent:v1", "x", "sheep_id", "deaf")
	w.submit("later", "echo:v1", "x", "sheep_id", "sheep", "not_before", "2099-01-01T00:00:00Z")

	w.expectFailed("stuck", "run_timeout of 2s")
	stuck := w.view("stuck")
	if attempts := *stuck.Attempts; len(attempts) != 2 || *attempts[0].Cause != "run-timeout" || *attempts[1].Cause != "run-timeout" || attempts[0].Sheep != "sheep" ||
		attempts[0].Phases.Run == nil || *attempts[0].Phases.Run < 2 || stuck.Limits.Retries != 1 || stuck.Limits.RunTimeout != 2 {
		t.Errorf("the job with one retry is %+v", stuck)
	}

	w.expectFailed("silent", "load_timeout of 1s", "port", "weights are missing")
	if silent := w.view("silent"); len(*silent.Attempts) != 1 || *(*silent.Attempts)[0].Cause != "load-timeout" || silent.Limits.LoadTimeout != 1 {
		t.Errorf("the job whose model does not load is %+v", silent)
	}

	if later := w.view("later"); later.Status != "queued" || later.Attempt != 0 || later.NotBefore == nil || *later.NotBefore != "2099-01-01T00:00:00.000000" {
		t.Errorf("the job for later is %+v", later)
	}
	var newest api.JobList
	w.get("/jobs?order=newest&limit=1", &newest)
	if len(newest.Jobs) != 1 || newest.Jobs[0].JobId != "later" {
		t.Errorf("the newest are %+v", newest.Jobs)
	}
}

// view returns the job in detail.
func (w *world) view(id string) api.Job {
	w.t.Helper()
	var j api.Job
	w.get("/jobs/"+id, &j)
	if j.Attempts == nil {
		w.t.Fatalf("job %s is shown without attempts", id)
	}
	return j
}

func (w *world) get(path string, into any) {
	w.t.Helper()
	code, text := w.request("GET", path, "")
	if err := json.Unmarshal([]byte(text), into); code != 200 || err != nil {
		w.t.Fatal(fmt.Errorf("%s: %d %s %w", path, code, text, err))
	}
}
