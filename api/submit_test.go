package api

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

const someJob = `{"model": {"name": "m", "version": "v"}, "payload": "x"}`

// created reads the job that a request is answered with.
func created(t *testing.T, got reply, status int) Job {
	t.Helper()
	var j Job
	if err := json.Unmarshal([]byte(got.body), &j); err != nil || got.status != status || got.header.Get("Location") != "/jobs/"+j.JobId {
		t.Fatalf("%d %s at %q, want a %d; %v", got.status, got.body, got.header.Get("Location"), status, err)
	}
	return j
}

// A body that is compressed is refused by what it is, not by what its bytes look like.
func TestCompressedBody(t *testing.T) {
	h := newHarness(t)
	const refused = `body: has the Content-Encoding "gzip"; send it without one`
	h.expect(h.do("POST", "/start-job", start, "Content-Encoding", "gzip"), 400, `{"message": "`+strings.ReplaceAll(refused, `"`, `\"`)+`"}`)
	h.expect(h.do("POST", "/start-job", start, "Content-Encoding", "utf-8"), 200, `{"success": true}`) // as some clients send
	h.problem(h.do("POST", "/jobs", start, "Content-Encoding", "gzip"), 400, "invalid-request", refused)
	h.problem(h.do("POST", "/jobs", "--x--", "Content-Encoding", "gzip", "Content-Type", "multipart/form-data; boundary=x"), 400, "invalid-request", refused)
	h.expect(h.do("POST", "/start-job", start, "Content-Encoding", "Identity"), 200, `{"success": true}`)
}

func TestCreateJob(t *testing.T) {
	h := newHarness(t)
	h.service.enters = true
	got := h.do("POST", "/jobs", `{"model": {"name": "m", "version": "v"}, "payload": "x", "labels": {"batch": "1", "note": ""}, "priority": 3, "retries": 1, "run_timeout": "1m", "node_labels": {"gpu": "a100"}}`)
	j := created(t, got, 201)
	if job.ID(j.JobId) == "" || !strings.HasPrefix(j.JobId, "job-") || len(j.JobId) != 30 || !maps.Equal(j.Labels, map[string]string{"batch": "1", "note": ""}) {
		t.Errorf("%+v", j)
	}
	r := h.service.submitted[0]
	if string(r.Payload) != "x" || r.Priority != 3 || *r.Limits.Retries != 1 || *r.Limits.RunTimeout != time.Minute || r.Idempotency != "" || r.ID != job.ID(j.JobId) {
		t.Errorf("submitted %+v", r)
	}
	if !maps.Equal(r.NodeLabels, job.Labels{"gpu": "a100"}) {
		t.Errorf("for nodes with %v", r.NodeLabels)
	}
	if other := created(t, h.do("POST", "/jobs", someJob), 201); other.JobId == j.JobId {
		t.Error("two jobs have one id")
	}
	own := created(t, h.do("POST", "/jobs", `{"job_id": "mine", "model": {"name": "m", "version": ""}, "payload": ""}`, "Content-Type", "application/json; charset=utf-8"), 201)
	if last := h.service.submitted[2]; own.JobId != "mine" || last.Payload == nil || len(last.Payload) != 0 {
		t.Errorf("an empty payload is submitted as %+v", last)
	}
	h.problem(h.do("POST", "/jobs", `{"job_id": "mine", "model": {"name": "m", "version": ""}, "payload": "x"}`), 409, "id-in-use", job.ErrSubmitted.Error())

	// Files of other jobs.
	created(t, h.do("POST", "/jobs", `{"model": {"name": "m", "version": ""}, "inputs": [{"job": "mine"}, {"job": "mine", "path": "inputs/a/b.txt"}, {"job": "mine", "path": "outputs/x", "as": "y/z"}, {"job": "mine", "path": "outputs/d/", "as": "e/"}]}`), 201)
	want := []job.Copy{{From: "mine", Path: "outputs/"}, {From: "mine", Path: "inputs/a/b.txt", As: "b.txt"}, {From: "mine", Path: "outputs/x", As: "y/z"}, {From: "mine", Path: "outputs/d/", As: "e"}}
	if got := h.service.submitted[3].Copies; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("copies %v", got)
	}
}

// TestCreateJobAfter submits a job that is after others, which needs no other inputs.
func TestCreateJobAfter(t *testing.T) {
	h := newHarness(t)
	h.service.enters = true
	j := created(t, h.do("POST", "/jobs", `{"model": {"name": "m", "version": "v"}, "after": ["a", "b"], "group": "g"}`), 201)
	if r := h.service.submitted[0]; fmt.Sprint(r.After) != "[a b]" || r.Group != "g" || r.Payload != nil || r.ID == "" {
		t.Errorf("submitted %+v", r)
	}
	if fmt.Sprint(j.After) != "[a b]" || j.Group == nil || *j.Group != "g" || j.WaitsFor != nil {
		t.Errorf("%+v", j)
	}
	h.problem(h.do("GET", "/jobs?group=a/b", ""), 400, "invalid-request", "group: is not a valid name of a group")
	if got := h.do("GET", "/jobs?group=g", ""); got.status != 200 || h.service.queried[0].Group != "g" {
		t.Errorf("%d %s", got.status, got.body)
	}
	for err, problem := range map[error]string{
		job.ErrNeeded: "needed", error(&job.AfterError{ID: "a", Problem: "Job `a` has failed"}): "after",
	} {
		h.service.down = fmt.Errorf("submit: %w", err)
		h.problem(h.do("POST", "/jobs", `{"job_id": "c", "model": {"name": "m", "version": "v"}, "after": ["a"]}`), 409, problem, err.Error())
	}
}

func TestCreateJobRefused(t *testing.T) {
	h := newHarness(t)
	h.service.enters = true
	many := make([]string, job.MaxCopies+1)
	labels := make([]string, job.MaxLabels+1)
	for i := range many {
		many[i] = `{"job": "a"}`
	}
	for i := range labels {
		labels[i] = fmt.Sprintf(`"l%d": ""`, i)
	}
	model := `"model": {"name": "m", "version": "v"}`
	for _, c := range []struct{ body, field, says string }{
		{`{` + model + `}`, "inputs", "give a payload, files, jobs that it is after, or the job_id"},
		{`{"job_id": null, ` + model + `}`, "inputs", "the job has none"},
		{`[{` + model + `, "payload": "x"}]`, "body", "several jobs are sent to POST /groups"},
		{`{` + model + `, "payload": "x", "after": "a"}`, "after", "must be a list"},
		{`{` + model + `, "payload": "x", "after": [1]}`, "after[0]", "must be a string"},
		{`{` + model + `, "payload": "x", "after": ["a", "a"]}`, "after", "named twice"},
		{`{` + model + `, "payload": "x", "after": [".."]}`, "after", "job id"},
		{`{` + model + `, "payload": "x", "after": [` + strings.Repeat(`"a",`, job.MaxAfter) + `"b"]}`, "after", "more than 100"},
		{`{` + model + `, "payload": "x", "group": "a b"}`, "group", "must be a name"},
		{`{` + model + `, "payload": "x", "group": ""}`, "group", "must be a name"},
		{`{"payload": "x"}`, "model", "required"},
		{`{` + model + `, "payload": "x", "labels": ["a"]}`, "labels", "must be an object, not a list"},
		{`{` + model + `, "payload": "x", "labels": {"a": 1}}`, "labels.a", "must be a string"},
		{`{` + model + `, "payload": "x", "node_labels": "gpu=a100"}`, "node_labels", "must be an object"},
		{`{` + model + `, "payload": "x", "labels": {"a b": ""}}`, "labels", `key \"a b\"`},
		{`{` + model + `, "payload": "x", "labels": {"a": "", "a": ""}}`, "labels.a", "twice"},
		{`{` + model + `, "labels": {` + strings.Join(labels, ",") + `}}`, "labels", "more than 32"},
		{`{` + model + `, "inputs": {}}`, "inputs", "must be a list, not an object"},
		{`{` + model + `, "inputs": [1]}`, "inputs[0]", "must be an object"},
		{`{` + model + `, "inputs": [{"job": "a"} {"job": "b"}]}`, "body", "a comma or the end of the list"},
		{`{` + model + `, "inputs": [{"job": "a"}, {"path": "outputs/"}]}`, "inputs[1].job", "required"},
		{`{` + model + `, "inputs": [{"job": "../a"}]}`, "inputs[0].job", "contains"},
		{`{` + model + `, "inputs": [{"job": "a", "path": "job_status.json"}]}`, "inputs[0].path", "inputs/ or outputs/"},
		{`{` + model + `, "inputs": [{"job": "a", "path": "outputs"}]}`, "inputs[0].path", "with a slash at its end"},
		{`{` + model + `, "inputs": [{"job": "a", "more": 1}]}`, "inputs[0].more", "not known"},
		{`{` + model + `, "inputs": [` + strings.Join(many, ",") + `]}`, "inputs", "more than 100"},
		{`{` + model + `, "inputs": [{"job": "a"}], "payload": "x"}`, "payload", "cannot be combined with inputs"},
		{`{` + model + `, "payload": "x", "deadline": "2020-01-01T00:00:00Z"}`, "deadline", "has passed already"},
	} {
		got := h.do("POST", "/jobs", c.body)
		var p Problem
		if err := json.Unmarshal([]byte(got.body), &p); err != nil || got.status != 400 || p.Type != "urn:shepherd:problem:invalid-request" || p.Field == nil || *p.Field != c.field || !strings.Contains(got.body, c.says) {
			t.Errorf("%s\nis answered %d %s", c.body, got.status, got.body)
		}
	}
	h.problem(h.do("POST", "/jobs", "x", "Content-Type", "text/plain"), 415, "media-type", errMediaType.Error())
	h.problem(h.do("POST", "/jobs", someJob, "Idempotency-Key", strings.Repeat("k", 256)), 400, "invalid-request", "Idempotency-Key: must have 1 to 255 visible ASCII characters")
	if len(h.service.submitted) > 0 {
		t.Errorf("%+v was submitted", h.service.submitted)
	}
	// Labels and copies are no fields of the original's.
	for _, field := range []string{`"labels": {}`, `"inputs": []`} {
		if got := h.do("POST", "/start-job", `{"job_id": "a", `+model+`, `+field+`}`); got.status != 400 || !strings.Contains(got.body, "not known") {
			t.Errorf("start-job takes %s: %d %s", field, got.status, got.body)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	claims.Hold(t, "C10")
	h := newHarness(t, asAdmin)
	h.service.enters = true
	first := created(t, h.do("POST", "/jobs", someJob, "Idempotency-Key", "key-1"), 201)
	again := created(t, h.do("POST", "/jobs", `{"payload": "x",  "model": {"version": "v", "name": "m"}}`, "Idempotency-Key", "key-1"), 200)
	if first.JobId != again.JobId || len(h.service.submitted) != 1 {
		t.Errorf("%s, then %s; %d were submitted", first.JobId, again.JobId, len(h.service.submitted))
	}
	h.problem(h.do("POST", "/jobs", strings.Replace(someJob, `"x"`, `"y"`, 1), "Idempotency-Key", "key-1"), 422, "key-reused", errKeyReused.Error())
	if other := created(t, h.do("POST", "/jobs", someJob, "Idempotency-Key", "key-2"), 201); other.JobId == first.JobId {
		t.Error("two keys lead to one job")
	}
	// Each caller has keys of its own.
	if other := created(t, h.do("POST", "/jobs", someJob, "Idempotency-Key", "key-1", "Authorization", "Bearer wool-token"), 201); other.JobId == first.JobId {
		t.Error("two callers have one job")
	}

	// With an id of the client's.
	named := strings.Replace(someJob, "{", `{"job_id": "named", `, 1)
	created(t, h.do("POST", "/jobs", named, "Idempotency-Key", "key-3"), 201)
	created(t, h.do("POST", "/jobs", named, "Idempotency-Key", "key-3"), 200)
	h.problem(h.do("POST", "/jobs", strings.Replace(named, `"x"`, `"y"`, 1), "Idempotency-Key", "key-3"), 422, "key-reused", errKeyReused.Error())
	h.problem(h.do("POST", "/jobs", named, "Idempotency-Key", "key-4"), 409, "id-in-use", job.ErrSubmitted.Error())
	h.problem(h.do("POST", "/jobs", named), 409, "id-in-use", job.ErrSubmitted.Error())
	h.problem(h.do("POST", "/jobs", named, "Idempotency-Key", "key-3", "Authorization", "Bearer wool-token"), 409, "id-in-use", job.ErrSubmitted.Error())

	// A job that was run again is still the one that its key has made.
	h.service.jobs["named"].record = func(r *job.Record) {
		r.Idempotency = h.service.submitted[len(h.service.submitted)-1].Idempotency + ".2"
	}
	created(t, h.do("POST", "/jobs", named, "Idempotency-Key", "key-3"), 200)
}

// formOf is a form, and its Content-Type.
func formOf(t testing.TB, write func(*multipart.Writer)) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	write(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), w.FormDataContentType()
}

// field writes a part without a filename, and file one with.
func field(w *multipart.Writer, name, content string) {
	_ = w.WriteField(name, content) // to memory
}

func file(w *multipart.Writer, name, filename, content string) {
	part, _ := w.CreateFormFile(name, filename) // to memory
	_, _ = io.WriteString(part, content)
}

// tarOf is a tar file with these entries: name, content, name, content….
func tarOf(t testing.TB, zip bool, pairs ...string) string {
	t.Helper()
	var b bytes.Buffer
	var to io.WriteCloser = struct {
		io.Writer
		io.Closer
	}{&b, io.NopCloser(nil)}
	if zip {
		to = gzip.NewWriter(&b)
	}
	w := tar.NewWriter(to)
	for i := 0; i < len(pairs); i += 2 {
		header := &tar.Header{Name: pairs[i], Size: int64(len(pairs[i+1])), Mode: 0o644, Typeflag: tar.TypeReg}
		switch {
		case strings.HasSuffix(pairs[i], "/"):
			header.Typeflag = tar.TypeDir
		case strings.HasSuffix(pairs[i], "@"):
			header.Typeflag, header.Linkname, header.Size = tar.TypeSymlink, pairs[i+1], 0
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if header.Size > 0 {
			_, _ = io.WriteString(w, pairs[i+1])
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const described = `{"model": {"name": "m", "version": "v"}, "labels": {"a": "b"}}`

func TestCreateJobWithFiles(t *testing.T) {
	h := newHarness(t)
	large := strings.Repeat("0123456789", 50_000)
	body, kind := formOf(t, func(w *multipart.Writer) {
		field(w, "job", described)
		file(w, "file", "a.txt", "A")
		file(w, "file", "dir/sub/b.txt", large)
		file(w, "file", "./c", "")
		file(w, "file", "", "") // no file was chosen, as a browser sends it
		file(w, "archive", "", "")
		file(w, "unnamed", "", "U")
		field(w, "input", "0 0 5")
		file(w, "archive", "x.tgz", tarOf(t, true, "./", "", "./packed/", "", "./packed/d", "D", "e", "E"))
		file(w, "archive", "x.tar", tarOf(t, false, "f", "F"))
	})
	j := created(t, h.do("POST", "/jobs", body, "Content-Type", kind), 201)
	want := map[string]string{"a.txt": "A", "dir/sub/b.txt": large, "c": "", "unnamed": "U", "input": "0 0 5", "packed/d": "D", "e": "E", "f": "F"}
	if got := h.service.files[job.ID(j.JobId)]; !maps.Equal(got, want) {
		t.Errorf("the files are %.300v", got)
	}
	if r := h.service.submitted[0]; r.Labels["a"] != "b" || r.Payload != nil {
		t.Errorf("submitted %+v", r)
	}
	// The same request again is known by its description.
	for i, status := range []int{201, 200} {
		if again := created(t, h.do("POST", "/jobs", body, "Content-Type", kind, "Idempotency-Key", "k"), status); i == 1 && len(h.service.submitted) != 2 {
			t.Errorf("%s was submitted twice", again.JobId)
		}
	}
}

func TestFormsRefused(t *testing.T) {
	claims.Hold(t, "C9")
	h := newHarness(t, func(c *Config) { c.MaxUpload = 20_000 })
	for name, c := range map[string]struct {
		write  func(*multipart.Writer)
		cut    int // bytes that are missing at the end
		status int
		says   string
	}{
		"nothing":         {func(*multipart.Writer) {}, 0, 400, "the first part of a form"},
		"no description":  {func(w *multipart.Writer) { file(w, "file", "a", "A") }, 0, 400, "the first part of a form"},
		"bad description": {func(w *multipart.Writer) { field(w, "job", `{"model": 1}`) }, 0, 400, "model: must be an object"},
		"described twice": {func(w *multipart.Writer) { field(w, "job", described); field(w, "job", described) }, 0, 400, "described twice"},
		"with payload":    {func(w *multipart.Writer) { field(w, "job", someJob); file(w, "file", "a", "A") }, 0, 400, "as a file named input"},
		"outside":         {func(w *multipart.Writer) { field(w, "job", described); file(w, "file", "../a", "A") }, 0, 400, `has the element \"..\"`},
		"absolute":        {func(w *multipart.Writer) { field(w, "job", described); file(w, "file", "/etc/passwd", "A") }, 0, 400, "is absolute"},
		"twice":           {func(w *multipart.Writer) { field(w, "job", described); file(w, "f", "a", "A"); file(w, "g", "a", "B") }, 0, 400, "twice"},
		"no name":         {func(w *multipart.Writer) { field(w, "job", described); field(w, "", "A") }, 0, 400, "neither a filename nor a name"},
		"too large": {func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "file", "a", strings.Repeat("x", 20_000))
		}, 0, 413, "larger than 20000"},
		"cut short":     {func(w *multipart.Writer) { field(w, "job", described); file(w, "file", "a", "AAAA") }, 30, 400, "form"},
		"cut in a file": {func(w *multipart.Writer) { field(w, "job", described); file(w, "file", "a", strings.Repeat("A", 9000)) }, 500, 400, "form"},
		"no archive": {func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "a", strings.Repeat("no tar ", 1000))
		}, 0, 400, "archive: is not a valid tar file"},
		"half a gzip": {func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "a", tarOf(t, true, "a", "A")[:20])
		}, 0, 400, "valid"},
		"link in an archive": {func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "a", tarOf(t, false, "a@", "/etc/passwd"))
		}, 0, 400, "neither a file nor a directory"},
		"archive outside": {func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "a", tarOf(t, false, "a/../../b", "B"))
		}, 0, 400, `has the element \"..\"`},
		"bomb": {func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "a", tarOf(t, true, "a", strings.Repeat("\x00", 1<<20)))
		}, 0, 413, "larger than 20000"},
		"bomb of headers": {func(w *multipart.Writer) {
			field(w, "job", described)
			var b bytes.Buffer
			zipped := gzip.NewWriter(&b)
			header := tarOf(t, false, strings.Repeat("a", 101)+"/", "")[:1024] // of its long name, before its own
			for range 100 {
				_, _ = io.WriteString(zipped, header)
			}
			zipped.Close()
			file(w, "archive", "a", b.String())
		}, 0, 413, "larger than 20000"},
		"long description": {func(w *multipart.Writer) {
			field(w, "job", `{"model": {"name": "m", "version": "v"}, "payload": "`+strings.Repeat("x", 19_500)+`"}`)
		}, 0, 400, "as a file named input"},
	} {
		t.Run(name, func(t *testing.T) {
			body, kind := formOf(t, c.write)
			got := h.do("POST", "/jobs", body[:len(body)-c.cut], "Content-Type", kind)
			if got.status != c.status || !strings.Contains(got.body, c.says) {
				t.Errorf("%d %s, want %d and %s", got.status, got.body, c.status, c.says)
			}
		})
	}
	h.problem(h.do("POST", "/jobs", "--x--", "Content-Type", "multipart/form-data"), 400, "invalid-request", "body: the Content-Type of a form must name its boundary")
	if len(h.service.submitted) > 0 {
		t.Errorf("%+v was submitted", h.service.submitted)
	}
}

// TestStalledForm has a client stop in the middle of a form: it is answered, and its
// request ends.
// TestArchiveOfDirectories has an archive with more directories than files are allowed.
func TestArchiveOfDirectories(t *testing.T) {
	h := newHarness(t)
	var pairs []string
	for i := range job.MaxInputs {
		pairs = append(pairs, fmt.Sprintf("d%d/", i), "")
	}
	post := func(pairs ...string) reply {
		body, kind := formOf(t, func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "a", tarOf(t, true, pairs...))
		})
		return h.do("POST", "/jobs", body, "Content-Type", kind)
	}
	created(t, post(append(pairs, "file", "content")...), 201)
	h.problem(post(append(pairs, "one/", "")...), 400, "invalid-request", "archive: has more than 10000 directories; pack the files without them, or all into one file")
}

func TestStalledForm(t *testing.T) {
	claims.Hold(t, "C9")
	h := newHarness(t, func(c *Config) { c.UploadStall = 50 * time.Millisecond })
	body, kind := formOf(t, func(w *multipart.Writer) { field(w, "job", described); file(w, "file", "a", "AAAA") })
	for name, sent := range map[string]string{"in the description": body[:80], "in a file": body[:len(body)-30]} {
		from, to := io.Pipe()
		go func() { _, _ = io.WriteString(to, sent) }() // the request may end first
		request, err := http.NewRequestWithContext(t.Context(), "POST", h.url+"/jobs", from)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", kind)
		response, err := h.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		to.Close()
		h.problem(reply{response.StatusCode, response.Header, string(text)}, 408, "slow-body", errSlowBody.Error())
		if err != nil || len(h.service.submitted) > 0 {
			t.Errorf("%s: %v, and %d were submitted", name, err, len(h.service.submitted))
		}
	}
}

func TestLongDescription(t *testing.T) {
	h := newHarness(t)
	body, kind := formOf(t, func(w *multipart.Writer) { field(w, "job", strings.Repeat(" ", maxDescription+1)) })
	if got := h.do("POST", "/jobs", body, "Content-Type", kind); got.status != 400 || !strings.Contains(got.body, "the description has more than") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// FuzzForm sends forms of anything: what is taken has names that stay within a
// directory, and no more bytes than are allowed.
func FuzzForm(f *testing.F) {
	for _, write := range []func(*multipart.Writer){
		func(w *multipart.Writer) { field(w, "job", described); file(w, "file", "a/b", "A") },
		func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "x", tarOf(f, true, "a", "A", "b/", ""))
		},
		func(w *multipart.Writer) {
			field(w, "job", described)
			file(w, "archive", "x", tarOf(f, false, "../a", "A"))
		},
	} {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		_ = w.SetBoundary("boundary")
		write(w)
		_ = w.Close()
		f.Add(b.Bytes())
	}
	const limit = 100_000
	service := newFake()
	handler := New(Config{Service: service, MaxUpload: limit}) // once: it takes a while
	f.Fuzz(func(t *testing.T, body []byte) {
		service.submitted = nil
		clear(service.jobs)
		clear(service.files)
		r := httptest.NewRequest("POST", "/jobs", bytes.NewReader(body))
		r.Header.Set("Content-Type", "multipart/form-data; boundary=boundary")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code >= 500 || w.Code == 201 != (len(service.submitted) == 1) {
			t.Fatalf("%d %s, and %d were submitted", w.Code, w.Body, len(service.submitted))
		}
		total := 0
		for _, files := range service.files {
			for name, content := range files {
				total += len(content)
				for element := range strings.SplitSeq(name, "/") {
					if element == "" || element == "." || element == ".." {
						t.Errorf("%q was taken", name)
					}
				}
			}
		}
		if total > limit {
			t.Errorf("%d bytes were taken", total)
		}
	})
}

func FuzzDecodeJob(f *testing.F) {
	f.Add([]byte(someJob))
	f.Add([]byte(described))
	for _, text := range []string{
		`{"model": {"name": "m", "version": "v"}, "after": ["a", "b"], "labels": {"k": "v", "é": ""}, "priority": -3, "retries": 0, "run_timeout": "1h30m", "keep": "7d"}`,
		`{"model": {"name": "m", "version": ""}, "inputs": [{"job": "a", "path": "outputs/../x"}, {"job": "a", "path": "inputs/x", "as": "y/z"}], "payload": "x"}`,
		`{"model": {"name": "m", "version": ""}, "webhook": {"url": "https://example.com", "events": ["ended"]}, "node_labels": {"gpu": "a100"}, "sheep_id": "n/s"}`,
		`{"model": null}`, `{"model": {"name": "m", "version": ""}, "model": {"name": "n", "version": ""}}`, `[]`, "\xff", `{"job_id": "a\u0000", "model": {"name": "m", "version": ""}}`,
	} {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"model": {"name": "m", "version": ""}, "inputs": [{"job": "a", "path": "outputs/x", "as": null}], "labels": null, "job_id": null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeJob(bytes.Clone(body))
		if err != nil {
			if _, ok := asError[*job.Invalid](err); !ok {
				if _, ok := asError[*job.UnknownSheep](err); !ok {
					t.Fatalf("%T %v", err, err)
				}
			}
			return
		}
		if r.Model.Validate() != nil || r.Labels.Validate() != nil || len(r.Copies) > job.MaxCopies || r.Payload != nil && len(r.Copies) > 0 {
			t.Errorf("%+v is taken", r)
		}
		for _, c := range r.Copies {
			if !strings.HasPrefix(c.Path, "inputs/") && !strings.HasPrefix(c.Path, "outputs/") {
				t.Errorf("a copy of %q is taken", c.Path)
			}
		}
	})
}

func TestPreferredWait(t *testing.T) {
	for _, c := range []struct {
		headers []string
		want    time.Duration
	}{
		{nil, 0}, {[]string{"wait=10"}, 10 * time.Second}, {[]string{"respond-async, WAIT = 10"}, 10 * time.Second}, {[]string{"return=minimal", "wait=3"}, 3 * time.Second},
		{[]string{"wait=3; x=y"}, 3 * time.Second}, {[]string{`wait="4"`}, 4 * time.Second}, {[]string{"wait=3", "wait=9"}, 3 * time.Second},
		{[]string{"wait=99999"}, time.Hour}, {[]string{"wait"}, 0}, {[]string{"wait=-1"}, 0}, {[]string{"wait=x"}, 0}, {[]string{"wait=1.5"}, 0}, {[]string{"wait=99999999999999999999"}, 0},
	} {
		r := &http.Request{Header: http.Header{"Prefer": c.headers}}
		if got := preferredWait(r, time.Hour); got != c.want {
			t.Errorf("%q: %s, want %s", c.headers, got, c.want)
		}
	}
}

// send asks a handler without a network, in a test's bubble.
func send(t *testing.T, handler http.Handler, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	handler.ServeHTTP(w, r)
	return w
}

func TestCreateJobAndWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.enters = true
		handler := New(Config{Service: service})
		named := strings.Replace(someJob, "{", `{"job_id": "a", `, 1)
		begin := time.Now()
		if w := send(t, handler, "POST", "/jobs", named, "Prefer", "wait=20"); w.Code != 201 || !strings.Contains(w.Body.String(), `"status": "queued"`) ||
			w.Header().Get("Preference-Applied") != "wait=20" || time.Since(begin) != 20*time.Second {
			t.Errorf("after %s: %d %s, %v", time.Since(begin), w.Code, w.Body, w.Header())
		}
		answered := make(chan *httptest.ResponseRecorder)
		go func() { answered <- send(t, handler, "GET", "/jobs/a", "", "Prefer", "wait=20") }()
		time.Sleep(time.Second)
		service.finish("a")
		if w := <-answered; w.Code != 200 || !strings.Contains(w.Body.String(), `"status": "done"`) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
	// Who may not read is answered at once.
	service := newFake()
	service.enters = true
	gate := access.NewGate(access.Config{Tokens: []access.Token{{Digest: access.DigestOf("writer-token"), Caller: tokens["writer-token"]}}})
	handler := New(Config{Service: service, Gate: gate})
	if w := send(t, handler, "POST", "/jobs", someJob, "Prefer", "wait=3600", "Authorization", "Bearer writer-token"); w.Code != 201 || w.Header().Get("Preference-Applied") != "" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestETagOfAJob(t *testing.T) {
	h := newHarness(t)
	h.service.add("a", job.Processing)
	first := h.get("/jobs/a")
	tag := first.header.Get("ETag")
	if tag == "" || first.header.Get("Cache-Control") != "no-cache" {
		t.Fatalf("%v", first.header)
	}
	if same := h.get("/jobs/a", "If-None-Match", tag); same.status != 304 || same.body != "" || same.header.Get("ETag") != tag {
		t.Errorf("%d %s", same.status, same.body)
	}
	h.service.change("a", func(j *fakeJob) { j.detail = "loading" })
	if other := h.get("/jobs/a", "If-None-Match", tag); other.status != 200 || other.header.Get("ETag") == tag {
		t.Errorf("after a change: %d %s", other.status, other.header.Get("ETag"))
	}
}

func TestWaitForAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Processing)
		handler := New(Config{Service: service})
		tag := send(t, handler, "GET", "/jobs/a", "").Header().Get("ETag")
		begin := time.Now()
		if w := send(t, handler, "GET", "/jobs/a", "", "If-None-Match", tag, "Prefer", "wait=10"); w.Code != 304 || time.Since(begin) != 10*time.Second {
			t.Errorf("after %s: %d %s", time.Since(begin), w.Code, w.Body)
		}
		answered := make(chan *httptest.ResponseRecorder)
		go func() { answered <- send(t, handler, "GET", "/jobs/a", "", "If-None-Match", tag, "Prefer", "wait=10") }()
		time.Sleep(time.Second)
		service.change("a", func(*fakeJob) {}) // a change of what is not shown
		time.Sleep(time.Second)
		service.change("a", func(j *fakeJob) { j.detail = "loading" })
		begin = time.Now()
		if w := <-answered; w.Code != 200 || !strings.Contains(w.Body.String(), "loading") || time.Since(begin) != 0 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if len(service.bells["a"]) != 0 {
			t.Error("somebody still watches")
		}
	})
}

func TestRequestIDs(t *testing.T) {
	h := newHarness(t)
	h.service.add("a", job.Done)
	for sent, kept := range map[string]bool{"": false, "my-request_1": true, "a b": false, "a\"b": false, strings.Repeat("x", 128): true, strings.Repeat("x", 129): false} {
		got := h.get("/jobs/a/status", "X-Request-Id", sent)
		if id := got.header.Get("X-Request-Id"); (id == sent) != kept || id == "" {
			t.Errorf("%q becomes %q", sent, id)
		}
	}
	if one, two := h.get("/version").header.Get("X-Request-Id"), h.get("/version").header.Get("X-Request-Id"); one == two {
		t.Error("two requests have one id")
	}
	if !strings.Contains(h.log.String(), `"request":"my-request_1"`) {
		t.Error("the log does not name the request")
	}
	// The original's routes answer problems to those that ask for them.
	h.problem(h.get("/jobs/none/status", "Accept", "application/problem+json, application/json"), 400, "unknown-job", "Data for job `none` does not exist")
	h.expect(h.get("/jobs/none/status", "Accept", "application/json"), 400, "{\"message\": \"Data for job `none` does not exist\"}")
}

func TestListJobsBy(t *testing.T) {
	h := newHarness(t)
	now := job.Now()
	if got := h.get("/jobs?label=batch%3D42&label=team%3Dx%3Dy&prefix=ab&since=2026-01-02T03:04:05Z&before=1h"); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	q := h.service.queried[0]
	if !maps.Equal(q.Labels, job.Labels{"batch": "42", "team": "x=y"}) || q.Prefix != "ab" || !q.Since.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) || q.Before.Before(now.Add(-time.Hour)) || q.Before.After(job.Now().Add(-time.Hour)) {
		t.Errorf("asked for %+v", q)
	}
	for query, says := range map[string]string{
		"label=batch": "is not KEY=VALUE", "label=a+b%3Dx": "key", "label=a%3D1&label=a%3D2": "two values", "since=yesterday": "must be a time with its zone", "before=2026-01-02": "must be a time", "since=-1h": "must be a time",
	} {
		if got := h.get("/jobs?" + query); got.status != 400 || !strings.Contains(got.body, says) {
			t.Errorf("%s: %d %s", query, got.status, got.body)
		}
	}
}

// TestSubmitOutlivesTheServersTimeouts goes through an http.Server: what a request brings, or
// has copied, may take longer to store than its timeouts, and the client learns of the job.
func TestSubmitOutlivesTheServersTimeouts(t *testing.T) {
	form, kind := formOf(t, func(w *multipart.Writer) {
		field(w, "job", `{"model": {"name": "m", "version": "v"}}`)
		file(w, "file", "a", "A")
	})
	copies := `{"model": {"name": "m", "version": "v"}, "inputs": [{"job": "made-before", "path": "outputs/"}]}`
	for name, sent := range map[string]struct{ path, kind, body string }{
		"a form": {"/jobs", kind, form},
		"copies": {"/jobs", "application/json", copies},
		"group":  {"/groups", "application/json", `{"jobs": [` + copies + `]}`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := newFake()
				service.store = func(ctx context.Context) error {
					select {
					case <-ctx.Done():
						return ctx.Err()
					case <-time.After(time.Hour):
						return nil
					}
				}
				listener := &pipeListener{connections: make(chan net.Conn), closed: make(chan struct{})}
				defer listener.Close()
				server := &http.Server{Handler: New(Config{Service: service}), ReadTimeout: time.Minute, WriteTimeout: time.Minute}
				served := make(chan error)
				go func() { served <- server.Serve(listener) }()
				client := &http.Client{Transport: &http.Transport{DialContext: listener.dial}}
				for range 2 { // on one connection
					response, err := client.Post("http://shepherd"+sent.path, sent.kind, strings.NewReader(sent.body))
					if err != nil {
						t.Fatal(err)
					}
					if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 201 {
						t.Errorf("%d %s, %v", response.StatusCode, text, err)
					}
					response.Body.Close()
				}
				if n := listener.dialled.Load(); n != 1 {
					t.Errorf("%d connections", n)
				}
				client.CloseIdleConnections()
				if err := server.Close(); err != nil {
					t.Error(err)
				}
				<-served
			})
		})
	}
}
