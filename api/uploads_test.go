package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

// fakeUploads are the reservations of a fake.
type fakeUploads struct {
	asked   []job.UploadRequest
	plans   map[job.ID]job.UploadPlan
	origin  string
	refused error // what BeginUpload answers, when set
}

func (f *fake) BeginUpload(_ context.Context, r job.UploadRequest) (job.UploadPlan, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return job.UploadPlan{}, f.down
	}
	if f.uploads.refused != nil {
		return job.UploadPlan{}, f.uploads.refused
	}
	f.uploads.asked = append(f.uploads.asked, r)
	p := job.UploadPlan{Upload: job.Upload{ID: r.ID, Tenant: r.Tenant, Created: enqueued, Expires: enqueued.Add(24 * time.Hour), Files: r.Files}, AddressesExpire: enqueued.Add(r.Valid)}
	for _, file := range r.Files {
		address := "http://" + r.Host + ":7000/" + string(r.ID) + "/" + file.Path
		to := job.UploadTarget{Address: address}
		if file.Size > 1000 {
			to = job.UploadTarget{Parts: []job.UploadPart{{Number: 1, Size: 1000, Address: address + "?1"}, {Number: 2, Offset: 1000, Size: file.Size - 1000, Address: address + "?2"}}}
		}
		p.Targets = append(p.Targets, to)
	}
	if f.uploads.plans == nil {
		f.uploads.plans = map[job.ID]job.UploadPlan{}
	}
	f.uploads.plans[r.ID] = p
	return p, nil
}

func (f *fake) findUpload(id job.ID, tenant string) (job.UploadPlan, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return job.UploadPlan{}, f.down
	}
	p, ok := f.uploads.plans[id]
	if !ok || tenant != "" && p.Tenant != tenant {
		return p, fmt.Errorf("look: %w", job.ErrNoUpload)
	}
	if p.Removing {
		return p, job.ErrUploadOver
	}
	return p, nil
}

func (f *fake) UploadAddresses(_ context.Context, id job.ID, tenant string, to job.UploadAddressing) (job.UploadPlan, error) {
	p, err := f.findUpload(id, tenant)
	p.AddressesExpire = enqueued.Add(to.Valid)
	return p, err
}

func (f *fake) CompleteUpload(_ context.Context, id job.ID, tenant string) (job.UploadPlan, error) {
	p, err := f.findUpload(id, tenant)
	if err == nil && !p.Targets[0].Stored {
		err = &job.UploadIncomplete{Path: p.Files[0].Path, Problem: "is missing"}
	}
	return p, err
}

func (f *fake) GiveUpUpload(_ context.Context, id job.ID, tenant string) error {
	_, err := f.findUpload(id, tenant)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.uploads.plans, id)
	return err
}

func (f *fake) UploadOrigin(string) string { return f.uploads.origin }

func TestUploads(t *testing.T) {
	claims.Hold(t, "C10")
	h := newHarness(t, asAdmin)
	read := func(got reply, status int) (u Upload) {
		t.Helper()
		if err := json.Unmarshal([]byte(got.body), &u); err != nil || got.status != status {
			t.Fatalf("%d %s, %v", got.status, got.body, err)
		}
		return u
	}
	as := func(token, method, path, body string) reply {
		t.Helper()
		return h.do(method, path, body, "Authorization", "Bearer "+token)
	}
	got := as("wool-token", "POST", "/uploads", `{"files": [{"path": "a b/ü", "size": 7}, {"size": 1500, "path": "large"}], "expires_in": "15m"}`)
	u := read(got, 201)
	if !strings.HasPrefix(u.JobId, "job-") || got.header.Get("Location") != "/uploads/"+u.JobId || got.header.Get("Cache-Control") != "no-store" || len(u.Files) != 2 {
		t.Fatalf("%+v at %s", u, got.header)
	}
	first, second := u.Files[0], u.Files[1]
	if first.Path != "a b/ü" || first.Size != 7 || first.Stored || !strings.HasPrefix(*first.Address, "http://127.0.0.1:7000/") || first.Parts != nil {
		t.Errorf("the first file: %+v", first)
	}
	if second.Address != nil || len(*second.Parts) != 2 || (*second.Parts)[1] != (UploadPart{Number: 2, Offset: 1000, Size: 500, Address: (*second.Parts)[1].Address}) {
		t.Errorf("the second file: %+v", second)
	}
	if asked := h.service.uploads.asked[0]; asked.Tenant != "wool" || asked.Valid != 15*time.Minute || asked.Host != "127.0.0.1" {
		t.Errorf("asked was %+v", asked)
	}
	path := "/uploads/" + u.JobId
	if again := read(as("wool-token", "POST", path+"/addresses", ""), 200); again.JobId != u.JobId || *again.AddressesExpireAt == *u.AddressesExpireAt {
		t.Errorf("the new addresses are %+v", again)
	}
	read(as("wool-token", "POST", path+"/addresses", `{"expires_in": 60}`), 200)
	h.problem(as("wool-token", "POST", path+"/complete", ""), 409, "upload-incomplete", `The upload is not complete: the file "a b/ü" is missing (POST /uploads/ID/addresses says where to put what is missing)`)

	if got := as("reader-token", "POST", "/uploads", `{"files": [{"path": "a", "size": 1}]}`); got.status != 403 {
		t.Errorf("who may read alone: %d", got.status)
	}
	read(as("admin-token", "POST", "/uploads", `{"job_id": "mine", "files": [{"path": "a", "size": 0}]}`), 201)
	if asked := h.service.uploads.asked[1]; asked.ID != "mine" || asked.Valid != time.Hour {
		t.Errorf("asked was %+v", asked)
	}
	// To others it is not there.
	for _, at := range []string{"/addresses", "/complete"} {
		h.problem(as("wool-token", "POST", "/uploads/mine"+at, ""), 404, "no-such-upload", job.ErrNoUpload.Error())
	}
	h.problem(as("wool-token", "DELETE", "/uploads/mine", ""), 404, "no-such-upload", job.ErrNoUpload.Error())
	over := h.service.uploads.plans["mine"]
	over.Removing = true
	h.service.uploads.plans["mine"] = over
	h.problem(as("admin-token", "POST", "/uploads/mine/addresses", ""), 410, "upload-over", job.ErrUploadOver.Error())
	if got := as("wool-token", "DELETE", path, ""); got.status != 200 {
		t.Errorf("given up: %d %s", got.status, got.body)
	}
	h.problem(as("wool-token", "DELETE", path, ""), 404, "no-such-upload", job.ErrNoUpload.Error())
	h.problem(as("wool-token", "DELETE", "/uploads/a%2Fb", ""), 404, "no-such-upload", job.ErrNoUpload.Error())
	h.service.uploads.refused = &job.NoUploads{Problem: "set storage.public_url"}
	h.problem(as("admin-token", "POST", "/uploads", `{"files": [{"path": "a", "size": 1}]}`), 409, "no-uploads", h.service.uploads.refused.Error())
}

func TestUploadsRefused(t *testing.T) {
	h := newHarness(t)
	for body, field := range map[string]string{
		`{"files": [{"path": "a"}]}`:                                     "files[0].size",
		`{"files": [{"size": 1}]}`:                                       "files[0].path",
		`{"files": [{"path": "a", "size": -1}]}`:                         "files[0].size",
		`{"files": [{"path": "a", "size": 1.5}]}`:                        "files[0].size",
		`{"files": [{"path": "a", "size": "1"}]}`:                        "files[0].size",
		`{"files": [{"path": "a", "size": 1, "x": 1}]}`:                  "files[0].x",
		`{"files": {}}`:                                                  "files",
		`{"job_id": "a/b", "files": [{"path": "a", "size": 1}]}`:         "job_id",
		`{"job_id": "", "files": [{"path": "a", "size": 1}]}`:            "job_id",
		`{"files": [{"path": "a", "size": 1}], "expires_in": "8d"}`:      "expires_in",
		`{"files": [{"path": "a", "size": 1}], "expires_in": 60, "a":1}`: "a",
		`{"files": [{"path": "a", "size": 1}], "expires_in": 0.5}`:       "expires_in",
		`{"model": 1}`: "model",
		`[]`:           "body",
		``:             "body",
	} {
		got := h.do("POST", "/uploads", body)
		var problem Problem
		if err := json.Unmarshal([]byte(got.body), &problem); err != nil || got.status != 400 || problem.Field == nil || *problem.Field != field {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	if got := h.do("POST", "/uploads", "x", "Content-Type", "text/plain"); got.status != 415 {
		t.Errorf("a text: %d", got.status)
	}
	if len(h.service.uploads.asked) > 0 {
		t.Errorf("asked were %+v", h.service.uploads.asked)
	}
}

// TestPageMayUpload looks whom the page may connect to: the daemon, and the storage that
// takes uploads.
func TestPageMayUpload(t *testing.T) {
	h := newHarness(t)
	for origin, want := range map[string]string{
		"":                           "connect-src 'self';",
		"http://gpu1:7000":           "connect-src 'self' http://gpu1:7000;",
		"https://*.s3.example.com":   "connect-src 'self' https://*.s3.example.com;",
		"https://x; script-src data": "connect-src 'self';",
	} {
		h.service.uploads.origin = origin
		policy := h.get("/", "Accept", "text/html").header.Get("Content-Security-Policy")
		if !strings.Contains(policy, want) || strings.Count(policy, "connect-src") != 1 || !strings.Contains(policy, "script-src 'self';") {
			t.Errorf("%q: %s", origin, policy)
		}
	}
}
