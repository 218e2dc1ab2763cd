package api

import (
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

// TestTenants asks for everything about one's own job, another's, nobody's and
// one that there is not. The last three are answered alike.
func TestTenants(t *testing.T) {
	claims.Hold(t, "C10")
	for key := range needs {
		method, path, _ := strings.Cut(key, " ")
		if !strings.Contains(path, "{job_id}") || strings.HasPrefix(path, "/uploads/") { // which are no jobs; see TestUploads
			continue
		}
		h := newHarness(t, asAdmin)
		for id, tenant := range map[job.ID]string{"mine-0": "wool", "their-0": "meat", "free-0": ""} {
			j := h.service.add(id, job.Done)
			j.tenant = tenant
			j.outputs["output"], j.inputs["input"] = []byte("x"), []byte("y")
		}
		administered := []string{"mine-0", "their-0", "free-0"}
		as := func(id string) reply {
			path := strings.NewReplacer("{job_id}", id, "{file}", "output").Replace(path)
			if strings.Contains(path, "/input/") {
				path = strings.Replace(path, "output", "input", 1)
			}
			got := h.do(method, path, "", "Authorization", "Bearer wool-token", "X-Request-Id", "one")
			got.body = strings.ReplaceAll(got.body, id, "ID")
			return got
		}
		own, none := as("mine-0"), as("none-0")
		absent := 400 // the original's
		if needs[key].job {
			absent = 404
		}
		if own.status == absent && strings.Contains(own.body, "does not exist") || none.status != absent || !strings.Contains(none.body, "\"message\": \"Data for job `ID` does not exist\"") {
			t.Errorf("%s: one's own job %d %s, none %d %s", key, own.status, own.body, none.status, none.body)
		}
		for _, id := range []string{"their-0", "free-0"} {
			if got := as(id); got.status != none.status || got.body != none.body {
				t.Errorf("%s of %s: %d %s, and where there is none %d %s", key, id, got.status, got.body, none.status, none.body)
			}
		}
		if method == "DELETE" { // one's own is gone
			administered = administered[1:]
		}
		if len(h.service.jobs) != len(administered) {
			t.Errorf("%s: %d jobs are left", key, len(h.service.jobs))
		}
		// Who has no tenant sees all.
		for _, id := range administered {
			if got := h.do(method, strings.NewReplacer("{job_id}", id, "{file}", "output").Replace(path), ""); got.status == 400 || strings.Contains(got.body, "Data for job") {
				t.Errorf("%s of %s by the administrator: %d %s", key, id, got.status, got.body)
			}
		}
	}
}

func TestTenantsSubmitAndList(t *testing.T) {
	claims.Hold(t, "C10")
	h := newHarness(t, asAdmin)
	h.service.add("theirs", job.Processing).tenant = "meat"
	h.service.add("mine", job.Processing).tenant = "wool"
	const start = `{"job_id": "new", "model": {"name": "m", "version": ""}, "payload": "p"}`
	h.expect(h.do("POST", "/start-job", start, "Authorization", "Bearer wool-token"), 200, `{"success": true}`)
	if got := h.service.submitted; len(got) != 1 || got[0].Tenant != "wool" {
		t.Errorf("submitted %+v", got)
	}
	list := h.get("/jobs", "Authorization", "Bearer wool-token")
	if !strings.Contains(list.body, `"mine"`) || strings.Contains(list.body, `"theirs"`) {
		t.Errorf("listed %s", list.body)
	}

	h.service.sheep = []job.Sheep{
		{Name: "a", Running: true, Model: someModel, Job: "mine", Tenant: "wool", Detail: "pulling mine"},
		{Name: "b", Running: true, Model: someModel, Job: "theirs", Tenant: "meat", Detail: "pulling theirs"},
	}
	for _, path := range []string{"/status", "/sheep"} {
		got := h.get(path, "Authorization", "Bearer wool-token")
		if !strings.Contains(got.body, `"mine"`) || strings.Contains(got.body, "theirs") || !strings.Contains(got.body, `"b"`) {
			t.Errorf("%s: %s", path, got.body)
		}
		if all := h.get(path); !strings.Contains(all.body, `"theirs"`) {
			t.Errorf("%s for the administrator: %s", path, all.body)
		}
	}
}
