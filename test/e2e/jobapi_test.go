package e2e

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/internal/testenv"
)

// curl runs curl and returns what it prints.
func (w *world) curlOut(args ...string) string {
	w.t.Helper()
	cmd := exec.Command(testenv.Command(w.t, "curl", "curl"), append([]string{"-sS", "--max-time", "60"}, args...)...)
	cmd.Dir = w.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("curl %q: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

// TestJobAPI does what docs/api.md shows, with curl and tar.
func TestJobAPI(t *testing.T) {
	w := newWorld(t)
	w.start()
	model := `"model": {"name": "echo", "version": "v1"}`
	parse := func(text string) (j api.Job) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &j); err != nil || j.JobId == "" {
			t.Fatalf("no job: %s", text)
		}
		return j
	}

	// One request, from the input to the end, and the same again.
	for range 2 {
		j := parse(w.curlOut("-H", "Prefer: wait=60", "-H", "Idempotency-Key: one", "-d", `{`+model+`, "payload": "hello", "labels": {"batch": "1"}}`, w.api+"/jobs"))
		if j.Status != "done" || len(*j.Timeline) < 3 || j.Run != 1 {
			t.Errorf("%+v", j)
		}
		w.expectDone(j.JobId, "hello")
	}
	var listed api.JobList
	w.get("/jobs?label=batch%3D1&prefix=job-&since=1h", &listed)
	if len(listed.Jobs) != 1 {
		t.Errorf("listed by label: %+v", listed)
	}

	// Files, a directory and the outputs of another job.
	write(t, w.dir+"/in/input", "from a directory")
	write(t, w.dir+"/in/sub/more.txt", strings.Repeat("more", 100_000))
	if out, err := exec.Command("tar", "cf", w.dir+"/in.tar", "-C", w.dir+"/in", ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	packed := parse(w.curlOut("-H", "Prefer: wait=60", "-F", `job={"job_id": "packed", `+model+`}`, "-F", "archive=@in.tar", "-F", "file=@in/input;filename=again/input", w.api+"/jobs"))
	w.expectDone(packed.JobId, "from a directory")
	for path, want := range map[string]string{"sub/more.txt": strings.Repeat("more", 100_000), "again/input": "from a directory"} {
		if _, text := w.request("GET", "/jobs/packed/input/"+path, ""); text != want {
			t.Errorf("input %s has %d bytes", path, len(text))
		}
	}
	next := parse(w.curlOut("-H", "Prefer: wait=60", "-d", `{`+model+`, "inputs": [{"job": "packed", "path": "outputs/output", "as": "input"}]}`, w.api+"/jobs"))
	w.expectDone(next.JobId, "from a directory")

	// What came out, whole.
	w.curlOut("-OJ", w.api+"/jobs/packed/outputs.zip")
	zipped, err := zip.OpenReader(w.dir + "/packed-outputs.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer zipped.Close()
	var outputs api.FileList
	w.get("/jobs/packed/outputs", &outputs)
	if len(zipped.File) != len(outputs.Files) || len(outputs.Files) == 0 {
		t.Errorf("%d files in the zip file, %d are listed", len(zipped.File), len(outputs.Files))
	}

	// A job that fails says why, and runs again.
	w.submit("fails", "echo:v1", "fail")
	w.expectFailed("fails")
	if text := w.curlOut("-H", "Accept: text/plain", w.api+"/jobs/fails/explain"); !strings.HasPrefix(text, "It failed at ") || !strings.Contains(text, "What to do: ") {
		t.Errorf("explained as %s", text)
	}
	said, err := exec.Command(w.bin+"/shepherdd", "jobs", "explain", "fails", "-c", w.config).Output()
	if text := w.curlOut("-H", "Accept: text/plain", w.api+"/jobs/fails/explain"); err != nil || string(said) != text {
		t.Errorf("the command says %s (%v), the API %s", said, err, text)
	}
	if said, err := exec.Command(w.bin+"/shepherdd", "jobs", "retry", "fails", "-c", w.config).CombinedOutput(); err != nil || string(said) != "fails is queued\n" {
		t.Errorf("%s %v", said, err)
	}
	w.expectFailed("fails")
	if j := w.view("fails"); j.Run != 2 {
		t.Errorf("after a retry: %+v", j)
	}
	w.eventually("nothing of uploads is left on the disk", func() bool { // nor of the last job, which is removed after its end
		left, err := os.ReadDir(w.dir + "/data/.staging")
		return err == nil && len(left) == 0
	})
}

// TestEventsAcrossRestarts follows the events over a kill and a restart: each comes
// once.
func TestEventsAcrossRestarts(t *testing.T) {
	w := newWorld(t)
	w.start()
	seen := make(map[string]string) // by id
	var last string
	follow := func(until func(api.Event) bool) {
		t.Helper()
		ctx, leave := context.WithTimeout(t.Context(), deadline)
		defer leave()
		request, err := http.NewRequestWithContext(ctx, "GET", w.api+"/events?after=oldest", nil)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			request.Header.Set("Last-Event-ID", last)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		for lines := bufio.NewScanner(response.Body); lines.Scan(); {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			var e api.Event
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatalf("%q: %v", data, err)
			}
			if seen[*e.Id] != "" {
				t.Errorf("event %s came twice", *e.Id)
			}
			last = *e.Id
			seen[last] = fmt.Sprintf("%s %s", e.JobId, e.Event)
			if until(e) {
				return
			}
		}
		t.Fatalf("the stream ended; seen %v\n%s", seen, w.log)
	}
	const n = 3
	ended := func(id string) func(api.Event) bool {
		return func(e api.Event) bool { return e.JobId == id && e.Event == "ended" }
	}
	for i := range n {
		id := fmt.Sprint("job-", i)
		w.submit(id, "echo:v1", "x")
		w.expectDone(id, "x")
		if i == 0 {
			follow(ended(id))
		}
	}
	w.kill()
	w.start()
	w.submit("last", "echo:v1", "x")
	follow(ended("last"))
	count := make(map[string]int)
	for _, what := range seen {
		count[what]++
	}
	for _, id := range []string{"job-0", "job-1", "job-2", "last"} {
		if count[id+" queued"] != 1 || count[id+" started"] != 1 || count[id+" ended"] != 1 {
			t.Errorf("of %s there came %v", id, count)
		}
	}
}

// TestUploadKilled kills the daemon in the middle of an upload: the job is not there,
// the same request sent again makes it, and nothing of the first try is in it.
func TestUploadKilled(t *testing.T) {
	w := newWorld(t)
	w.start()
	const boundary = "boundary"
	part := func(disposition, content string) string {
		return "--" + boundary + "\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\n" + content + "\r\n"
	}
	begin := part(`name="job"`, `{"job_id": "upload", "model": {"name": "echo", "version": "v1"}}`)
	send := func(body io.Reader) (*http.Response, error) {
		request, err := http.NewRequestWithContext(t.Context(), "POST", w.api+"/jobs", body)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "multipart/form-data; boundary="+boundary)
		request.Header.Set("Idempotency-Key", "upload-1")
		return http.DefaultClient.Do(request)
	}
	r, body := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		response, err := send(r)
		if err == nil {
			response.Body.Close()
			err = errors.New(response.Status)
		}
		failed <- err
	}()
	if _, err := io.WriteString(body, begin+part(`name="f"; filename="first"`, "x")+"--"+boundary+"\r\nContent-Disposition: form-data; name=\"f\"; filename=\"second\"\r\n\r\nbegun"); err != nil {
		t.Fatal(err)
	}
	w.eventually("the first file is stored", func() bool {
		code, _ := w.request("GET", "/jobs/upload/input/first", "")
		return code == 200
	})
	if _, text := w.request("GET", "/jobs/upload/status", ""); !strings.Contains(text, `"accepted"`) {
		t.Errorf("meanwhile it is %s", text)
	}
	w.kill()
	body.CloseWithError(io.ErrClosedPipe)
	if err := <-failed; err == nil {
		t.Error("the upload was taken")
	}
	w.start()
	var listed api.JobList
	if w.get("/jobs", &listed); len(listed.Jobs) != 0 {
		t.Errorf("there are %+v", listed.Jobs)
	}
	response, err := send(strings.NewReader(begin + part(`name="f"; filename="input"`, "whole") + "--" + boundary + "--\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		t.Fatalf("sent again: %s", response.Status)
	}
	w.expectDone("upload", "whole")
	if code, _ := w.request("GET", "/jobs/upload/input/first", ""); code != 404 {
		t.Errorf("a file of the first try: %d", code)
	}
}
