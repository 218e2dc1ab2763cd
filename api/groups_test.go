package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
)

// group reads a group from an answer.
func group(t *testing.T, got reply, status int) Group {
	t.Helper()
	var g Group
	if err := json.Unmarshal([]byte(got.body), &g); err != nil || got.status != status {
		t.Fatalf("%d %s, want a %d; %v", got.status, got.body, status, err)
	}
	return g
}

func TestCreateGroup(t *testing.T) {
	h := newHarness(t)
	model := `"model": {"name": "m", "version": "v"}`
	got := h.do("POST", "/groups", `{"group": "g", "jobs": [{"job_id": "one", `+model+`, "payload": "x"}, {`+model+`, "after": ["one"], "priority": 2}, {`+model+`, "inputs": [{"job": "old"}], "group": "g"}]}`)
	g := group(t, got, 201)
	if got.header.Get("Location") != "/groups/g" || g.Group != "g" || g.Ended || g.Counts.Queued != 3 || len(g.Jobs) != 3 || g.More || g.Jobs[0].JobId != "one" {
		t.Errorf("%+v", g)
	}
	for i, want := range []string{"[] x 0", "[one]  2", "[]  0"} {
		r := h.service.submitted[i]
		if got := fmt.Sprint(r.After, " ", string(r.Payload), " ", r.Priority); got != want || r.Group != "g" || r.ID == "" {
			t.Errorf("job %d is submitted as %+v", i, r)
		}
	}
	made := group(t, h.do("POST", "/groups", `{"jobs": [{`+model+`, "payload": "x"}]}`), 201)
	if !strings.HasPrefix(made.Group, "group-") || len(made.Group) != 32 {
		t.Errorf("a name that was made: %s", made.Group)
	}

	if listed := group(t, h.do("GET", "/groups/g", ""), 200); listed.Group != "g" || len(listed.Jobs) != 3 {
		t.Errorf("%+v", listed)
	}
	for _, do := range []string{"cancel", "retry"} {
		if got := h.do("POST", "/groups/g/"+do, ""); got.status != 200 || got.body != `{"success": true}` {
			t.Errorf("%s: %d %s", do, got.status, got.body)
		}
		counts := group(t, h.do("GET", "/groups/g", ""), 200).Counts
		if do == "cancel" && counts.Cancelled != 3 || do == "retry" && counts.Queued != 3 {
			t.Errorf("%s: %+v", do, counts)
		}
		h.problem(h.do("POST", "/groups/none/"+do, ""), 404, "no-group", job.ErrNoGroup.Error())
	}
	h.problem(h.do("GET", "/groups/a%20b", ""), 404, "no-group", job.ErrNoGroup.Error())
}

// TestCreateGroupAgain sends a request again, and another one with the same key.
func TestCreateGroupAgain(t *testing.T) {
	h := newHarness(t)
	body := func(jobs string) string { return `{"jobs": [` + jobs + `]}` }
	item := func(n int) string {
		return fmt.Sprintf(`{"model": {"name": "m", "version": "v"}, "payload": "%d"}`, n)
	}
	send := func(body string) reply { return h.do("POST", "/groups", body, "Idempotency-Key", "key") }
	first := group(t, send(body(item(1)+","+item(2))), 201)
	again := group(t, send(body(item(1)+","+item(2))), 200)
	if first.Group != again.Group || first.Jobs[0].JobId != again.Jobs[0].JobId || len(h.service.submitted) != 2 {
		t.Errorf("%+v and %+v", first, again)
	}
	for _, other := range []string{body(item(1) + "," + item(3)), body(item(1) + "," + item(2) + "," + item(3)), body(item(1)), body(item(7))} {
		h.problem(send(other), 422, "key-reused", errKeyReused.Error())
	}
}

func TestCreateGroupRefused(t *testing.T) {
	h := newHarness(t)
	good := `{"model": {"name": "m", "version": "v"}, "payload": "x"}`
	for _, c := range []struct{ body, field, says string }{
		{`{"jobs": []}`, "jobs", "there is none"},
		{`{}`, "jobs", "there is none"},
		{`{"jobs": {}}`, "jobs", "must be a list"},
		{`{"jobs": [` + good + `], "group": "a b"}`, "group", "must be a name"},
		{`{"jobs": [` + good + `], "more": 1}`, "more", "not known"},
		{`{"jobs": [` + good + `, {"payload": "x"}]}`, "jobs[1].model", "jobs[1]: model: "},
		{`{"jobs": [` + good + `, {"model": {"name": "m", "version": 1}}]}`, "jobs[1].model.version", "must be a string"},
		{`{"jobs": [` + good + `, {"model": {"name": "m", "version": ""}}]}`, "jobs[1].inputs", "the job has none"},
		{`{"group": "g", "jobs": [{"group": "h", ` + good[1:] + `]}`, "jobs[0].group", "the group of the request"},
		{`{"jobs": [` + strings.Repeat(good+",", job.MaxGroup) + good + `]}`, "jobs", "more than 1000"},
		{`{"jobs": [` + good + `] x}`, "body", "a comma"},
	} {
		got := h.do("POST", "/groups", c.body)
		var p Problem
		if err := json.Unmarshal([]byte(got.body), &p); err != nil || got.status != 400 || p.Field == nil || *p.Field != c.field || !strings.Contains(got.body, c.says) {
			t.Errorf("%.200s\nis answered %d %s", c.body, got.status, got.body)
		}
	}
	h.problem(h.do("POST", "/groups", "x", "Content-Type", "text/plain"), 415, "media-type", errMediaType.Error())
	h.service.add("there", job.Done)
	h.problem(h.do("POST", "/groups", `{"jobs": [`+good+`, {"job_id": "there", `+good[1:]+`]}`), 409, "id-in-use", "jobs[1]: "+job.ErrSubmitted.Error())
	if len(h.service.submitted) > 0 {
		t.Errorf("submitted %+v", h.service.submitted)
	}
}
