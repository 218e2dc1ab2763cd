package api

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage/storagetest"
)

func TestOutputs(t *testing.T) {
	h := newHarness(t)
	files := map[string]string{"output": "x", "a/b.txt": strings.Repeat("0123456789", 30_000), "empty": "", `c\d`: "backslash"}
	j := h.service.add("done", job.Done)
	for name, content := range files {
		j.outputs[name] = []byte(content)
	}
	h.expect(h.get("/jobs/done/outputs"), 200, `{"bytes": 300010, "files": [
		{"name": "a/b.txt", "size": 300000, "etag": "\"v1\"", "modified_at": "2026-11-22T10:08:04.500000"},
		{"name": "c\\d", "size": 9, "etag": "\"v1\"", "modified_at": "2026-11-22T10:08:04.500000"},
		{"name": "empty", "size": 0, "etag": "\"v1\"", "modified_at": "2026-11-22T10:08:04.500000"},
		{"name": "output", "size": 1, "etag": "\"v1\"", "modified_at": "2026-11-22T10:08:04.500000"}]}`)
	j.inputs["images/1.png"] = []byte("png")
	h.expect(h.get("/jobs/done/inputs"), 200, `{"bytes": 3, "files": [{"name": "images/1.png", "size": 3, "etag": "\"v1\"", "modified_at": "2026-11-22T10:08:04.500000"}]}`)
	if got := h.get("/jobs/unknown/inputs"); got.status != 404 {
		t.Errorf("the inputs of no job: %d %s", got.status, got.body)
	}
	h.service.add("none", job.Done)
	h.expect(h.get("/jobs/none/outputs"), 200, `{"bytes": 0, "files": []}`)
	want := maps.Clone(files)
	delete(want, `c\d`)
	want["c_d"] = "backslash"

	zipped := h.get("/jobs/done/outputs.zip")
	if zipped.status != 200 || zipped.header.Get("Content-Type") != "application/zip" || zipped.header.Get("Content-Disposition") != `attachment; filename="done-outputs.zip"` {
		t.Errorf("%d %v", zipped.status, zipped.header)
	}
	opened, err := zip.NewReader(strings.NewReader(zipped.body), int64(len(zipped.body)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range opened.File {
		content, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(content)
		if err != nil || !f.Modified.Equal(modified.Truncate(time.Second)) {
			t.Errorf("%s of %v: %v", f.Name, f.Modified, err)
		}
		got[f.Name] = string(data)
	}
	if !maps.Equal(got, want) {
		t.Errorf("the zip file has %.200v", got)
	}
	if got := untar(t, h.get("/jobs/done/outputs.tar").body); !maps.Equal(got, want) {
		t.Errorf("the tar file has %.200v", got)
	}
	for path, length := range map[string]int{"/jobs/none/outputs.tar": 1024, "/jobs/none/outputs.zip": 22} {
		if got := h.get(path); got.status != 200 || len(got.body) != length {
			t.Errorf("%s of no file: %d with %d bytes", path, got.status, len(got.body))
		}
	}
	if head := h.do(http.MethodHead, "/jobs/done/outputs.zip", ""); head.status != 200 || head.body != "" || head.header.Get("Content-Type") != "application/zip" {
		t.Errorf("HEAD: %d %v", head.status, head.header)
	}

	h.service.add("waits", job.Queued)
	h.service.add("failed", job.Failed)
	for _, path := range []string{"/outputs", "/outputs.zip", "/outputs.tar"} {
		h.problem(h.get("/jobs/waits"+path), 409, "job-not-ended", "the job has not ended yet")
		h.problem(h.get("/jobs/failed"+path), 409, "job-failed", "ValueError: deliberate failure")
		h.problem(h.get("/jobs/nobody"+path), 404, "unknown-job", "Data for job `nobody` does not exist")
	}
}

// TestArchiveNames has files whose names differ in a backslash, which archives do not have:
// none is lost when they are unpacked.
func TestArchiveNames(t *testing.T) {
	h := newHarness(t)
	j := h.service.add("done", job.Done)
	for _, name := range []string{`a\b.png`, "a_b.png", `c\d_e`, `c_d\e`, `c\d\e`, `f\g`} {
		j.outputs[name] = []byte(name)
	}
	want := map[string]string{
		"a_b.png": "a_b.png", "a_b~afc3db1b381c68e1.png": `a\b.png`,
		"c_d_e": `c\d\e`, "c_d_e~fbce28fe287939b0": `c\d_e`, "c_d_e~7b150298ad86576d": `c_d\e`, "f_g": `f\g`,
	}
	if got := untar(t, h.get("/jobs/done/outputs.tar").body); !maps.Equal(got, want) {
		t.Errorf("the tar file has %v", got)
	}
}

func untar(t *testing.T, text string) map[string]string {
	t.Helper()
	got := map[string]string{}
	for r := tar.NewReader(strings.NewReader(text)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[header.Name] = string(data)
	}
}

// TestArchiveBrokenOff has storage fail in the middle of an archive: the client sees
// that it is not whole.
func TestArchiveBrokenOff(t *testing.T) {
	h := newHarness(t)
	j := h.service.add("done", job.Done)
	j.outputs["a"], j.outputs["b"] = []byte(strings.Repeat("x", 100_000)), []byte("b")
	h.service.body = func(part job.Range) io.ReadCloser {
		return io.NopCloser(bytes.NewReader(make([]byte, part.Length/2)))
	}
	for _, path := range []string{"/jobs/done/outputs.zip", "/jobs/done/outputs.tar"} {
		response, err := h.client.Get(h.url + path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err == nil {
			t.Errorf("%s: half an archive looks whole", path)
		}
	}
	if !strings.Contains(h.log.String(), "answer broken off") {
		t.Error("the log does not say so")
	}
}

func TestRetryAndExplain(t *testing.T) {
	h := newHarness(t, asAdmin)
	h.service.add("failed", job.Failed)
	h.expect(h.get("/jobs/failed/explain"), 200, `{"job_id": "failed", "status": "failed", "summary": "It is failed.", "reasons": ["Asked by ."], "next": [], "text": "It is failed.\n- Asked by ."}`)
	if got := h.get("/jobs/failed/explain", "Accept", "text/plain"); got.body != "It is failed.\n- Asked by .\n" || got.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%s as %s", got.body, got.header.Get("Content-Type"))
	}
	h.service.add("theirs", job.Failed).tenant = "wool"
	if got := h.get("/jobs/theirs/explain", "Authorization", "Bearer wool-token"); !strings.Contains(got.body, "Asked by wool.") {
		t.Errorf("a tenant is told %s", got.body)
	}
	h.expect(h.do("POST", "/jobs/failed/retry", ""), 200, `{"success": true}`)
	if len(h.service.retried) != 1 || h.service.retried[0] != "failed" {
		t.Errorf("run again: %v", h.service.retried)
	}
	h.service.add("waits", job.Queued)
	h.problem(h.do("POST", "/jobs/waits/retry", ""), 409, "job-not-ended", job.ErrNothingToRetry.Error())
	h.problem(h.do("POST", "/jobs/nobody/retry", ""), 404, "unknown-job", "Data for job `nobody` does not exist")
	h.problem(h.get("/jobs/nobody/explain"), 404, "unknown-job", "Data for job `nobody` does not exist")
}

// TestPresign lists files with addresses that are valid for a time.
func TestPresign(t *testing.T) {
	h := newHarness(t)
	h.service.add("job-1", job.Done).outputs["output"] = []byte("x")
	got := h.get("/jobs/job-1/outputs?presign=15m")
	if got.status != 200 || !strings.Contains(got.body, `"address": "https://storage.example/job-1/outputs/output?valid=15m0s"`) || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s, %v", got.status, got.body, got.header)
	}
	if got := h.get("/jobs/job-1/inputs?presign=60"); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := h.get("/jobs/job-1/outputs"); got.status != 200 || strings.Contains(got.body, "address") {
		t.Errorf("%d %s", got.status, got.body)
	}
	for _, wrong := range []string{"", "x", "0", "-1s", "169h", "0.5"} {
		if got := h.get("/jobs/job-1/outputs?presign=" + wrong); got.status != 400 || !strings.Contains(got.body, "presign: must be") {
			t.Errorf("%q: %d %s", wrong, got.status, got.body)
		}
	}
}

// A list that is too long to be made before it is sent is the same text.
func TestManyOutputs(t *testing.T) {
	h := newHarness(t)
	j := h.service.add("done", job.Done)
	want := FileList{}
	for i := range streamedFiles + 1 {
		name := fmt.Sprintf("%05d", i)
		j.outputs[name] = []byte(name)
	}
	files, err := storagetest.All(h.service.Outputs(t.Context(), "done"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		want.Files = append(want.Files, fileEntry(f))
		want.Bytes += f.Size
	}
	text, err := job.JSON(want)
	if err != nil {
		t.Fatal(err)
	}
	got := h.get("/jobs/done/outputs")
	if got.status != 200 || got.body != string(text) || got.header.Get("Content-Length") != "" {
		t.Errorf("status %d, headers %v, %d bytes, want %d", got.status, got.header, len(got.body), len(text))
	}
}
