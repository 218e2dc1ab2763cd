package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// The start-up lines of the original, in order and wording.
func TestStartUpReadsAsTheOriginals(t *testing.T) {
	w := newWorld(t)
	w.start()
	var messages []string
	for line := range strings.Lines(w.log.String()) {
		m := regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}: (?:INFO|WARNING) +@shepherd +: (.*)\n`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line %q is not in the original's layout", line)
		}
		messages = append(messages, m[1])
	}
	text := strings.Join(messages, "\n")
	at := -1
	for _, want := range []string{"Created sheep `bare_sheep` of type `bare`", "Minio storage appears to be up and running", "Shepherd API is available at http://127.0.0.1:"} {
		i := strings.Index(text, want)
		if i <= at {
			t.Errorf("%q is not logged, or not in order:\n%s", want, text)
		}
		at = i
	}
}

func TestJobs(t *testing.T) {
	w := newWorld(t)
	w.start()

	t.Run("before any job", func(t *testing.T) {
		_, text := w.request("GET", "/status", "")
		if compact(t, text) != `{"sheep":{"bare_sheep":{"model":{"name":null,"version":null},"request":null,"running":false}}}` {
			t.Errorf("status is %s", text)
		}
	})
	t.Run("done", func(t *testing.T) {
		w.submit("job-done", "echo:v1", "žluťoučký kůň 🐑")
		w.expectDone("job-done", "žluťoučký kůň 🐑")
		s := w.status("job-done")
		if s.Enqueued == nil || s.Started == nil || s.Finished == nil || *s.Enqueued > *s.Started || *s.Started > *s.Finished {
			t.Errorf("times are not in order: %+v", s)
		}
		if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$`).MatchString(*s.Finished) {
			t.Errorf("finished_at is %q", *s.Finished)
		}
		w.eventually("the sheep has no job", func() bool { // which its worker notes while the job is ended
			_, text := w.request("GET", "/status", "")
			return compact(t, text) == `{"sheep":{"bare_sheep":{"model":{"name":"echo","version":"v1"},"request":null,"running":true}}}`
		})
	})
	t.Run("failed, then the next ones go on", func(t *testing.T) {
		w.submit("job-fail", "echo:v1", "fail")
		w.submit("job-key", "echo:v1", "key")
		w.submit("job-after", "echo:v1", "after")
		w.expectFailed("job-fail", "ValueError: deliberate failure")
		if code, text := w.request("GET", "/jobs/job-fail/result", ""); code != 500 || compact(t, text) != `{"message":"ValueError: deliberate failure"}` {
			t.Errorf("result of a failed job: %d %s", code, text)
		}
		s := w.await("job-key")
		if s.Error == nil || s.Error.Message != "KeyError: 'key'" || s.Error.Type == nil || *s.Error.Type != "<class 'KeyError'>" || s.Error.Traceback != nil {
			t.Errorf("error details are %+v", s.Error)
		}
		w.expectDone("job-after", "after")
	})
	t.Run("runner dies", func(t *testing.T) {
		w.submit("job-exit", "echo:v1", "exit 3")
		w.submit("job-exit-next", "echo:v1", "next")
		w.expectFailed("job-exit", "Sheep container died without notice", "exit code 3", "about to exit")
		w.expectDone("job-exit-next", "next")
		w.submit("job-kill", "echo:v1", "kill")
		w.expectFailed("job-kill", "Sheep container died without notice", "SIGKILL")
		w.submit("job-kill-next", "echo:v1", "next")
		w.expectDone("job-kill-next", "next")
	})
	t.Run("answer too large", func(t *testing.T) {
		w.submit("job-huge", "echo:v1", "huge 5000000")
		w.expectFailed("job-huge", "Sheep container died without notice", "at most 4194304 are allowed")
		w.submit("job-huge-next", "echo:v1", "next")
		w.expectDone("job-huge-next", "next")
	})
	t.Run("model missing", func(t *testing.T) {
		w.submit("job-missing", "no-such-model:v9", "x")
		w.expectFailed("job-missing", fmt.Sprintf("Failed to start sheep for this job (Cannot load model `no-such-model:v9`, file `%s/models/no-such-model/v9/config.yaml` does not exist.)", w.dir))
	})
	t.Run("model crashes at start", func(t *testing.T) {
		w.submit("job-crash", "crash:v1", "x")
		w.expectFailed("job-crash", "exit code 7", "this model crashes")
		w.submit("job-crash-other", "echo:v1", "other")
		w.expectDone("job-crash-other", "other")
	})
	t.Run("model switch and slashes", func(t *testing.T) {
		w.submit("job-v2", "echo:v2", "two")
		w.submit("job-deep", "deep/er:v1", "deep")
		w.expectDone("job-v2", "two")
		w.expectDone("job-deep", "deep")
	})
	t.Run("nested results", func(t *testing.T) {
		w.submit("job-nested", "echo:v1", "nested")
		w.expectDone("job-nested", "nested")
		for _, path := range []string{"/result/sub/x.txt", "/result/sub%2Fx.txt"} {
			if code, text := w.request("GET", "/jobs/job-nested"+path, ""); code != 200 || text != "nested" {
				t.Errorf("%s: %d %q", path, code, text)
			}
		}
		if code, text := w.request("GET", "/jobs/job-nested/result/none", ""); code != 404 || compact(t, text) != `{"message":"Requested file does not exist"}` {
			t.Errorf("missing file: %d %s", code, text)
		}
	})
	t.Run("links planted in outputs", func(t *testing.T) {
		w.submit("job-link", "echo:v1", "link")
		if s := w.await("job-link"); s.Status != "done" {
			t.Errorf("%+v", s)
		}
		if code, text := w.request("GET", "/jobs/job-link", ""); code != 200 || !strings.Contains(text, "leak") {
			t.Errorf("what was left out is not told: %d %s", code, text)
		}
		if code, _ := w.request("GET", "/jobs/job-link/result/leak", ""); code != 404 {
			t.Errorf("what the link leads to: %d", code)
		}
	})
	t.Run("no devices", func(t *testing.T) {
		w.submit("job-devices", "echo:v1", "devices")
		w.expectDone("job-devices", "")
	})
	t.Run("run again", func(t *testing.T) {
		if code, text := w.request("POST", "/start-job", jobBody("job-done", "echo:v1", "again")); code != 409 || compact(t, text) != `{"message":"A job with this ID was already submitted"}` {
			t.Errorf("second submission: %d %s", code, text)
		}
		w.submit("job-nested", "echo:v2", "")
		w.expectDone("job-nested", "nested")
		if s := w.status("job-nested"); s.Model.Version != "v2" {
			t.Errorf("model is %+v", s.Model)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for body, want := range map[string]string{
			jobBody("job-nope", "echo:v1", ""):                                "400 {\"message\":\"Data for job `job-nope` does not exist\"}",
			jobBody("job-sheep", "echo:v1", "x", "sheep_id", "no_such_sheep"): "400 {\"message\":\"Unknown sheep id `no_such_sheep`\"}",
		} {
			code, text := w.request("POST", "/start-job", body)
			if got := fmt.Sprint(code, " ", compact(t, text)); got != want {
				t.Errorf("%s: %s, want %s", body, got, want)
			}
		}
		for _, body := range []string{jobBody("job-escape", "../outside:v1", "x"), jobBody("Job_Upper", "echo:v1", "x"), `{"job_id":"j-1"}`, "not json", ""} {
			if code, text := w.request("POST", "/start-job", body); code != 400 || !strings.Contains(text, `"message"`) {
				t.Errorf("%s: %d %s", body, code, text)
			}
		}
		for _, id := range []string{"job-sheep", "job-escape", "never"} {
			if code, _ := w.request("GET", "/jobs/"+id+"/status", ""); code != 400 {
				t.Errorf("status of refused job %s: %d", id, code)
			}
		}
	})
	t.Run("working directories are gone", func(t *testing.T) {
		w.eventually("data_root is clean", func() bool {
			entries, err := os.ReadDir(filepath.Join(w.dir, "data", "bare_sheep"))
			return err == nil && len(entries) == 0
		})
	})
	if code := w.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Any number of jobs, from many clients, on several sheep, addressed or not.
func TestManyJobs(t *testing.T) {
	w := newWorld(t, "one", "two", "three")
	w.start()
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for j := range 25 {
				id := fmt.Sprintf("many-%d-%d", c, j)
				model := fmt.Sprintf("echo:v%d", 1+j%2)
				var more []string
				if j%5 == 0 {
					more = []string{"sheep_id", []string{"one", "two", "three"}[c%3]}
				}
				if code, text, err := w.try("POST", "/start-job", jobBody(id, model, id, more...)); err != nil || code != 200 {
					t.Errorf("start-job %s: %d %s %v", id, code, text, err)
				}
			}
		})
	}
	clients.Wait()
	for c := range 8 {
		for j := range 25 {
			id := fmt.Sprintf("many-%d-%d", c, j)
			w.expectDone(id, id)
		}
	}
	if jobs := w.noted("job"); len(jobs) != 200 {
		t.Errorf("runners were given %d jobs, want 200", len(jobs))
	}
}

// An addressed job waits for its sheep; another sheep does not take it.
func TestAddressedJob(t *testing.T) {
	w := newWorld(t, "one", "two")
	w.start()
	gate := filepath.Join(w.dir, "gate")
	w.submit("first", "echo:v1", "wait "+gate, "sheep_id", "one")
	w.eventually("the first job runs", func() bool { return len(w.noted("job")) == 1 })
	w.submit("second", "echo:v1", "second", "sheep_id", "one")
	w.submit("anyone", "echo:v1", "anyone")
	w.expectDone("anyone", "anyone") // by two
	if s := w.status("second"); s.Status != "queued" {
		t.Errorf("the second job is %s", s.Status)
	}
	write(t, gate, "")
	w.expectDone("second", "second")
	w.expectDone("first", "wait "+gate)
}

// A sheep that would be idle takes over what a busy one has only prepared.
func TestIdleSheepTakesOver(t *testing.T) {
	w := newWorld(t, "one", "two")
	w.start()
	gate1, gate2 := filepath.Join(w.dir, "gate1"), filepath.Join(w.dir, "gate2")
	w.submit("long-1", "echo:v1", "wait "+gate1)
	w.submit("long-2", "echo:v1", "wait "+gate2)
	w.eventually("both run", func() bool { return len(w.noted("job")) == 2 })
	w.submit("next-1", "echo:v1", "n1")
	w.submit("next-2", "echo:v1", "n2")
	write(t, gate2, "") // one sheep goes on; the other stays blocked
	w.expectDone("next-1", "n1")
	w.expectDone("next-2", "n2")
	write(t, gate1, "")
	w.expectDone("long-1", "wait "+gate1)
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.submit("running", "echo:v1", "sleep 1000")
	w.eventually("it runs", func() bool { return len(w.noted("job")) == 1 })
	w.submit("waiting", "echo:v1", "x")
	w.submit("last", "echo:v1", "last")
	for _, id := range []string{"waiting", "running"} {
		if code, text := w.request("POST", "/jobs/"+id+"/cancel", ""); code != 200 {
			t.Fatalf("cancel %s: %d %s", id, code, text)
		}
		if s := w.await(id); s.Status != "cancelled" {
			t.Errorf("job %s is %s", id, s.Status)
		}
	}
	w.expectDone("last", "last")
	if jobs := w.noted("job"); len(jobs) != 2 {
		t.Errorf("runners were given %v", jobs)
	}
}

// compact is the JSON text without spaces and with the keys of objects in order.
func compact(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
