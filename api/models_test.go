package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

func TestModels(t *testing.T) {
	h := newHarness(t, asAdmin)
	h.expect(h.get("/models"), 200, `{"models": []}`)
	h.service.models = []job.KeptModel{
		{Model: job.Model{Name: "a/b", Version: "v1"}, Reference: "r/a/b:v1", Digest: "sha256:0", Size: 5 << 40, Own: 7, LastUsed: enqueued, InUse: true},
		{Model: job.Model{Name: "c"}, LastUsed: time.Time{}},
	}
	h.service.usual = map[job.Model]job.Usual{{Name: "c"}: {Jobs: 3, Low: 500 * time.Millisecond, Likely: time.Second, High: 2 * time.Second, Load: time.Minute}}
	h.expect(h.get("/models"), 200, `{"models": [
		{"name": "a/b", "version": "v1", "reference": "r/a/b:v1", "digest": "sha256:0", "size": 5497558138880, "own_size": 7, "last_used_at": "2026-11-22T10:08:03.942214", "in_use": true, "usual": null},
		{"name": "c", "version": "", "reference": "", "digest": "", "size": 0, "own_size": 0, "last_used_at": null, "in_use": false,
		"usual": {"jobs": 3, "low": 0.5, "likely": 1, "high": 2, "load": 60}}]}`)
	h.service.usual, h.service.models = nil, []job.KeptModel{{Model: job.Model{Name: "c"}, Node: "gpu1"}}
	h.service.unanswered = []job.UnansweredNode{{Name: "gpu2", Problem: "does not answer"}}
	h.expect(h.get("/models"), 200, `{"models": [{"name": "c", "version": "", "reference": "", "digest": "", "size": 0, "own_size": 0, "last_used_at": null, "in_use": false, "usual": null, "node": "gpu1"}],
		"unanswered": [{"name": "gpu2", "problem": "does not answer"}]}`)
	h.service.down = &job.ModelError{Problem: "containerd cannot be reached", Class: errdefs.ErrUnavailable}
	h.expect(h.get("/models"), 503, `{"message": "containerd cannot be reached"}`)
}

func TestRemoveModel(t *testing.T) {
	h := newHarness(t, asAdmin)
	for path, want := range map[string]job.Model{
		"digits:v1": {Name: "digits", Version: "v1"}, "digits": {Name: "digits"}, "a/b:v1": {Name: "a/b", Version: "v1"},
		"a%2Fb%3Av1": {Name: "a/b", Version: "v1"}, "a:sha256:00": {Name: "a", Version: "sha256:00"},
		"a@sha256:00": {Name: "a", Version: "sha256:00"}, "a:v1@sha256:00": {Name: "a", Version: "v1@sha256:00"}, "pull": {Name: "pull"},
	} {
		h.service.removed = nil
		h.expect(h.do(http.MethodDelete, "/models/"+path, ""), 200, `{"success": true}`)
		if len(h.service.removed) != 1 || h.service.removed[0] != want {
			t.Errorf("%s removes %+v, want %+v", path, h.service.removed, want)
		}
	}
	for _, path := range []string{":v1", "..", "a/../b", "a//b", "a:..", "a%00"} {
		h.service.removed = nil
		if got := h.do(http.MethodDelete, "/models/"+path, ""); got.status != 400 || len(h.service.removed) > 0 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if h.service.removedOf != "" {
		t.Errorf("a removal from all nodes is one from %s", h.service.removedOf)
	}
	if h.expect(h.do(http.MethodDelete, "/models/digits:v1?node=gpu1", ""), 200, `{"success": true}`); h.service.removedOf != "gpu1" {
		t.Errorf("a removal from one node is one from %q", h.service.removedOf)
	}
	h.service.down = &job.ModelNeeded{Model: someModel, Job: "j"}
	h.expect(h.do(http.MethodDelete, "/models/x", ""), 409, "{\"message\": \"Model `emloop-test:test2` is needed by job `j`; wait until it has ended or cancel it\"}")
	h.service.down = &job.ModelNeeded{Model: someModel, Sheep: "s"}
	h.expect(h.do(http.MethodDelete, "/models/x", ""), 409, "{\"message\": \"Model `emloop-test:test2` is loaded by sheep `s`; it can be removed when that has loaded another\"}")
}

func TestPull(t *testing.T) {
	h := newHarness(t, asAdmin)
	body := `{"model": {"name": "a/b", "version": "v1"}, "sheep_id": "dock"}`
	got := h.do("POST", "/models/pull", body)
	if got.status != 409 || !strings.Contains(got.body, "nothing to pull") {
		t.Errorf("without anyone to pull for: %d %s", got.status, got.body)
	}
	var asked []string
	var fails error
	h.service.pull = func(_ context.Context, o job.PullOrder, report func(job.PullProgress)) error {
		asked = append(asked, o.Model.String()+" for "+o.Sheep+" of "+o.Node)
		if errors.Is(fails, errdefs.ErrNotFound) {
			return fails
		}
		report(job.PullProgress{Text: "asking"})
		return fails
	}
	h.expect(h.do("POST", "/models/pull", body), 200, `{"success": true}`)
	h.expect(h.do("POST", "/models/pull?progress=false&node=gpu1", `{"model": {"version": "", "name": "c"}, "sheep_id": null}`), 200, `{"success": true}`)
	if len(asked) != 2 || asked[0] != "a/b:v1 for dock of " || asked[1] != "c for  of gpu1" {
		t.Errorf("pulled %q", asked)
	}
	for body, message := range map[string]string{
		``: "body: ", `{}`: "model: this field is required", `{"model": {"name": "a"}}`: "model.version: this field is required",
		`{"model": {"name": "..", "version": ""}}`:                "model.name: ",
		`{"model": {"name": "a", "version": ".."}}`:               "model.version: ",
		`{"model": {"name": "a", "version": "b"}, "more": 1}`:     "more: this field is not known",
		`{"model": {"name": "a", "version": "b", "more": 1}}`:     "model.more: this field is not known",
		`{"model": {"name": "a", "version": "b"}, "model": {}}`:   "model: this field is given twice",
		`{"model": {"name": "a", "version": "b"}, "sheep_id":0}`:  "sheep_id: ",
		`{"model": {"name": "a", "version": "b"}, "sheep_id":""}`: "Unknown sheep id",
	} {
		asked = nil
		if got := h.do("POST", "/models/pull", body); got.status != 400 || !strings.Contains(got.body, message) || len(asked) > 0 {
			t.Errorf("%s: %d %s, want %q", body, got.status, got.body, message)
		}
	}
	fails = &job.ModelError{Problem: "no such image", Class: errdefs.ErrNotFound}
	for _, query := range []string{"", "?progress"} { // before there was anything to tell
		h.expect(h.do("POST", "/models/pull"+query, body), 404, `{"message": "no such image"}`)
	}
}

// A stream tells how far it is, line by line, and ends with how it went.
func TestPullAloud(t *testing.T) {
	h := newHarness(t, asAdmin)
	body := `{"model": {"name": "a", "version": "v1"}}`
	step := make(chan struct{})
	var fails error
	h.service.pull = func(ctx context.Context, _ job.PullOrder, report func(job.PullProgress)) error {
		report(job.PullProgress{Text: "asking"})
		<-step
		report(job.PullProgress{Text: "half", Done: 5, Total: 10, Rate: 2.5})
		<-step
		return fails
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, `{"success":true,"text":"model a:v1 is here"}`},
		{&job.ModelError{Problem: "the disk is full", Class: errdefs.ErrResourceExhausted}, `{"error":"the disk is full","text":"the disk is full"}`},
		{errors.New("secret"), `{"error":"Internal server error","text":"Internal server error"}`},
	} {
		fails = c.err
		response, err := h.client.Post(h.url+"/models/pull?progress=true", "", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{`{"text":"asking"}`, `{"done":5,"rate":2,"text":"half","total":10}`, c.want} {
			line := make([]byte, len(want)+1)
			if _, err := io.ReadFull(response.Body, line); err != nil || string(line) != want+"\n" {
				t.Fatalf("line %q, %v; want %s", line, err, want)
			}
			if i < 2 {
				step <- struct{}{}
			}
		}
		if n, _ := response.Body.Read(make([]byte, 1)); n > 0 {
			t.Error("more after the last line")
		}
		response.Body.Close()
		if kind := response.Header.Get("Content-Type"); response.StatusCode != 200 || kind != "application/x-ndjson" {
			t.Errorf("%d, %s", response.StatusCode, kind)
		}
	}
}

// A panic of a pull that is told of is this request's trouble alone.
func TestPullPanics(t *testing.T) {
	h := newHarness(t, asAdmin)
	begun := false
	h.service.pull = func(_ context.Context, _ job.PullOrder, report func(job.PullProgress)) error {
		if begun {
			report(job.PullProgress{Text: "asking"})
		}
		panic("secret")
	}
	for _, query := range []string{"", "?progress=true"} {
		h.expect(h.do("POST", "/models/pull"+query, `{"model": {"name": "a", "version": "v1"}}`), 500, `{"message": "Internal server error"}`)
	}
	begun = true
	response, err := h.client.Post(h.url+"/models/pull?progress=true", "", strings.NewReader(`{"model": {"name": "a", "version": "v1"}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	told, err := io.ReadAll(response.Body)
	// Whether it was told of anything before the panic is a matter of chance.
	if err != nil || !strings.Contains(string(told), `"message": "Internal server error"`) &&
		!strings.Contains(string(told), `"error":"Internal server error"`) {
		t.Errorf("told %s, %v", told, err)
	}
	if strings.Contains(string(told), "secret") || !strings.Contains(h.log.String(), "secret") {
		t.Errorf("told %s, logged %s", told, h.log.String())
	}
}

// A client that leaves gives the pull up.
func TestPullIsGivenUp(t *testing.T) {
	h := newHarness(t, asAdmin)
	begun, ended := make(chan struct{}), make(chan struct{})
	h.service.pull = func(ctx context.Context, _ job.PullOrder, _ func(job.PullProgress)) error {
		close(begun)
		<-ctx.Done()
		close(ended)
		return context.Cause(ctx)
	}
	ctx, leave := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, "POST", h.url+"/models/pull?progress", strings.NewReader(`{"model": {"name": "a", "version": "v1"}}`))
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-begun; leave() }()
	if response, err := h.client.Do(request); err == nil {
		response.Body.Close()
		t.Error("a pull that was given up was answered")
	}
	receive(t, ended, "the pull is not given up")
}
