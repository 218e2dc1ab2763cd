package shepherd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/s3"
)

// partsStore is a watchedStore whose clients can send files in parts.
type partsStore struct {
	*watchedStore
	storage.Parts
}

// takesUploads lets clients put inputs into storage.
func (p *fixture) takesUploads() {
	p.t.Helper()
	signer, err := s3.NewPresigner(s3.Config{URL: p.url, AccessKey: "access", SecretKey: "secret-key"})
	if err != nil {
		p.t.Fatal(err)
	}
	p.config.Store = partsStore{p.store, p.store.Store.(storage.Parts)}
	p.config.Uploads = shepherd.Uploads{Ledger: p.ledger, Keep: time.Hour, Signer: func(string) (storage.Signer, error) { return signer, nil }}
	p.config.Retention = shepherd.Retention{Ledger: p.ledger, Interval: 20 * time.Millisecond}
}

// put sends a body to an address and returns the answer's status.
func put(t *testing.T, address string, body []byte) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode
}

// anHour is how long addresses are valid here.
var anHour = job.UploadAddressing{Valid: time.Hour}

func (p *fixture) beginUpload(id job.ID, tenant string, files ...job.UploadFile) job.UploadPlan {
	p.t.Helper()
	plan, err := p.core.BeginUpload(p.t.Context(), job.UploadRequest{ID: id, Tenant: tenant, Files: files, UploadAddressing: anHour})
	if err != nil {
		p.t.Fatal(err)
	}
	return plan
}

// TestUpload puts a small file, an empty one and one in parts into storage, and submits the job.
func TestUpload(t *testing.T) {
	p := newFixture(t)
	p.takesUploads()
	p.handle = func(_ context.Context, _ job.Model, in messenger.Input) error { return nil }
	p.start()
	large := bytes.Repeat([]byte("0123456789abcdef"), 65<<20/16)
	plan := p.beginUpload("upload", "", job.UploadFile{Path: "small", Size: 5}, job.UploadFile{Path: "dir/empty"}, job.UploadFile{Path: "dir/large", Size: int64(len(large))})
	parts := plan.Targets[2].Parts
	if plan.Targets[0].Address == "" || plan.Targets[1].Address == "" || len(parts) != 3 || parts[2].Number != 3 || parts[2].Offset+parts[2].Size != int64(len(large)) {
		t.Fatalf("the plan is %+v", plan.Targets)
	}
	if !plan.Expires.After(plan.Created) || plan.AddressesExpire.Before(plan.Created) {
		t.Errorf("it expires at %s, its addresses at %s", plan.Expires, plan.AddressesExpire)
	}
	submit := func() error { return p.core.Submit(t.Context(), job.Request{ID: "upload", Model: someModel}) }
	incomplete := func(path, problem string) {
		t.Helper()
		var lacks *job.UploadIncomplete
		if err := submit(); !errors.As(err, &lacks) || lacks.Path != path || !strings.Contains(lacks.Problem, problem) {
			t.Fatalf("submitted: %v", err)
		}
		if _, err := p.core.CompleteUpload(t.Context(), "upload", ""); !errors.As(err, &lacks) || lacks.Path != path {
			t.Fatalf("completed: %v", err)
		}
	}
	send := func(address string, body []byte) {
		t.Helper()
		if status := put(t, address, body); status != http.StatusOK {
			t.Fatalf("PUT: %d", status)
		}
	}
	incomplete("small", "is missing")
	send(plan.Targets[0].Address, []byte("small"))
	send(plan.Targets[1].Address, nil)
	incomplete("dir/large", "lacks 3 of its 3 parts")
	send(parts[1].Address, large[parts[1].Offset:][:parts[1].Size])
	incomplete("dir/large", "lacks 2 of its 3 parts")

	// Another client goes on with what is missing.
	rest, err := p.core.UploadAddresses(t.Context(), "upload", "", anHour)
	if err != nil || !rest.Targets[0].Stored || !rest.Targets[1].Stored || len(rest.Targets[2].Parts) != 2 || rest.Targets[2].Parts[1].Number != 3 {
		t.Fatalf("what is missing is %+v, %v", rest.Targets, err)
	}
	for _, part := range rest.Targets[2].Parts {
		send(part.Address, large[part.Offset:][:part.Size])
	}
	if err := submit(); err != nil {
		t.Fatal(err)
	}
	if status, err := p.core.Wait(t.Context(), "upload"); err != nil || status.State != job.Done {
		t.Fatalf("%+v, %v", status, err)
	}
	if found := p.inputsOf("upload"); len(found) != 3 || found["inputs/dir/large"] != int64(len(large)) || found["inputs/small"] != 5 {
		t.Errorf("in storage are %v", found)
	}
	if _, err := p.core.UploadAddresses(t.Context(), "upload", "", anHour); !errors.Is(err, job.ErrNoUpload) {
		t.Errorf("addresses of a job: %v", err)
	}
	if err := p.core.GiveUpUpload(t.Context(), "upload", ""); !errors.Is(err, job.ErrNoUpload) {
		t.Errorf("a job is given up: %v", err)
	}
	if err := submit(); err != nil { // as any job is run again
		t.Errorf("submitted again: %v", err)
	}
}

// TestUploadRefused looks at what cannot be reserved: nothing of it stays.
func TestUploadRefused(t *testing.T) {
	p := newFixture(t)
	p.takesUploads()
	p.config.Uploads.MaxSize = 1000
	p.start()
	for name, files := range map[string][]job.UploadFile{
		"there is no file":    nil,
		`has the element ".`:  {{Path: "a/../b", Size: 1}},
		"is there twice":      {{Path: "a", Size: 1}, {Path: "a", Size: 1}},
		"must be 0 to":        {{Path: "a", Size: -1}},
		"storage.max_upload":  {{Path: "a", Size: 600}, {Path: "b", Size: 401}},
		"must be 0 to 549755": {{Path: "a", Size: storage.MaxFile + 1}},
	} {
		var invalid *job.Invalid
		_, err := p.core.BeginUpload(t.Context(), job.UploadRequest{ID: "refused", Files: files, UploadAddressing: anHour})
		if !errors.As(err, &invalid) || invalid.Field != "files" || !strings.Contains(invalid.Problem, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := p.ledger.Upload(t.Context(), "refused"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("reserved: %v", err)
	}
	// The place is somebody's.
	if err := p.store.Init(t.Context(), "taken", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.core.BeginUpload(t.Context(), job.UploadRequest{ID: "taken", Files: []job.UploadFile{{Path: "a"}}, UploadAddressing: anHour}); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("the place of another: %v", err)
	}
	if found := p.inputsOf("taken"); len(found) != 1 {
		t.Errorf("in the place of another are %v", found)
	}
	if err := p.core.Submit(t.Context(), job.Request{ID: "taken", Model: someModel}); err != nil {
		t.Errorf("it cannot be submitted: %v", err)
	}
	p.beginUpload("mine", "", job.UploadFile{Path: "a"})
	if _, err := p.core.BeginUpload(t.Context(), job.UploadRequest{ID: "mine", Files: []job.UploadFile{{Path: "a"}}, UploadAddressing: anHour}); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("reserved twice: %v", err)
	}
	if err := p.core.SubmitFiles(t.Context(), job.Request{ID: "mine", Model: someModel}, sent("input", "x")); !errors.Is(err, job.ErrReserved) {
		t.Errorf("submitted with files: %v", err)
	}
	if err := p.core.Submit(t.Context(), job.Request{ID: "mine", Model: someModel, Payload: []byte("x")}); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("submitted with a payload: %v", err)
	}
	if err := p.core.Remove(t.Context(), "mine"); !errors.Is(err, job.ErrReserved) {
		t.Errorf("removed as a job: %v", err)
	}
}

// TestUploadTenants has others ask for a tenant's upload: it is not there for them.
func TestUploadTenants(t *testing.T) {
	claims.Hold(t, "C10")
	p := newFixture(t)
	p.takesUploads()
	p.start()
	plan := p.beginUpload("wools", "wool", job.UploadFile{Path: "input", Size: 1})
	if status := put(t, plan.Targets[0].Address, []byte("x")); status != http.StatusOK {
		t.Fatalf("PUT: %d", status)
	}
	var unknown *job.UnknownJob
	if err := p.core.Submit(t.Context(), job.Request{ID: "wools", Model: someModel, Tenant: "meat"}); !errors.As(err, &unknown) {
		t.Errorf("submitted by another: %v", err)
	}
	err := p.core.SubmitAll(t.Context(), []job.Request{{ID: "wools", Model: someModel, Tenant: "meat"}})
	if item := (*job.ItemError)(nil); !errors.As(err, &item) || !errors.As(err, &unknown) {
		t.Errorf("submitted by another in a group: %v", err)
	}
	if err := p.core.SubmitFiles(t.Context(), job.Request{ID: "wools", Model: someModel, Tenant: "meat"}, sent("a", "b")); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("submitted by another with files: %v", err)
	}
	if _, err := p.core.UploadAddresses(t.Context(), "wools", "meat", anHour); !errors.Is(err, job.ErrNoUpload) {
		t.Errorf("addresses for another: %v", err)
	}
	if _, err := p.core.CompleteUpload(t.Context(), "wools", "meat"); !errors.Is(err, job.ErrNoUpload) {
		t.Errorf("completed by another: %v", err)
	}
	if err := p.core.GiveUpUpload(t.Context(), "wools", "meat"); !errors.Is(err, job.ErrNoUpload) {
		t.Errorf("given up by another: %v", err)
	}
	if err := p.core.SubmitAll(t.Context(), []job.Request{{ID: "wools", Model: someModel}, {ID: "more", Model: someModel, Payload: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if owner, err := p.core.Owner(t.Context(), "wools"); err != nil || owner != "wool" {
		t.Errorf("the job is %q's, %v", owner, err)
	}
}

// gone waits until nothing is left of an upload.
func (p *fixture) gone(id job.ID) {
	p.t.Helper()
	until := time.Now().Add(hang)
	for {
		_, err := p.ledger.Upload(p.t.Context(), id)
		if errors.Is(err, ledger.ErrNotFound) {
			break
		}
		if err != nil || time.Now().After(until) {
			p.t.Fatalf("the upload stays: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if there, err := p.store.Exists(p.t.Context(), id); err != nil || there {
		p.t.Errorf("its place stays: %t, %v", there, err)
	}
}

// TestUploadExpires submits nothing: what was uploaded is removed, parts as well, while the
// client is still at it.
func TestUploadExpires(t *testing.T) {
	p := newFixture(t)
	p.takesUploads()
	var plan job.UploadPlan
	for keep, stored := time.Second, false; !stored; keep *= 3 {
		if keep > hang {
			t.Fatal("the machine is too slow")
		}
		p.stop()
		p.config.Uploads.Keep = keep
		p.start()
		var err error
		plan, err = p.core.BeginUpload(t.Context(), job.UploadRequest{
			ID: "slow", Files: []job.UploadFile{{Path: "a", Size: 1}, {Path: "large", Size: wholeFile + 1}}, UploadAddressing: job.UploadAddressing{Valid: keep},
		})
		if err != nil {
			t.Fatal(err)
		}
		last := plan.Targets[1].Parts[len(plan.Targets[1].Parts)-1]
		status := put(t, last.Address, make([]byte, last.Size))
		if stored = status == http.StatusOK; !stored && status != http.StatusForbidden && status != http.StatusNotFound { // else it has expired before
			t.Fatalf("PUT: %d", status)
		}
		p.gone("slow")
	}
	if status := put(t, plan.Targets[0].Address, []byte("x")); status != http.StatusForbidden && status != http.StatusNotFound {
		t.Errorf("PUT after that: %d", status)
	}
	if _, err := p.core.UploadAddresses(t.Context(), "slow", "", anHour); !errors.Is(err, job.ErrNoUpload) {
		t.Errorf("addresses after that: %v", err)
	}
	var unknown *job.UnknownJob
	if err := p.core.Submit(t.Context(), job.Request{ID: "slow", Model: someModel}); !errors.As(err, &unknown) {
		t.Errorf("submitted after that: %v", err)
	}
	p.beginUpload("slow", "", job.UploadFile{Path: "a", Size: 1}) // the id is free
}

// wholeFile is the largest file that is sent by one request.
const wholeFile = 64 << 20

// TestUploadGivenUp gives an upload up, and has a daemon die between the mark in the ledger
// and the removal: nobody can submit it from then on, and the next daemon goes on.
func TestUploadGivenUp(t *testing.T) {
	p := newFixture(t)
	p.takesUploads()
	p.start()
	for _, id := range []job.ID{"given-up", "marked"} {
		plan := p.beginUpload(id, "", job.UploadFile{Path: "a", Size: 1})
		if status := put(t, plan.Targets[0].Address, []byte("x")); status != http.StatusOK {
			t.Fatalf("PUT: %d", status)
		}
	}
	if err := p.core.GiveUpUpload(t.Context(), "given-up", ""); err != nil {
		t.Fatal(err)
	}
	p.gone("given-up")

	p.stop()
	if _, err := p.ledger.BeginUploadRemoval(t.Context(), "marked", false); err != nil {
		t.Fatal(err)
	}
	away := p.config.Retention
	p.config.Retention = shepherd.Retention{} // removes nothing
	p.start()
	if err := p.core.Submit(t.Context(), job.Request{ID: "marked", Model: someModel}); !errors.Is(err, job.ErrUploadOver) {
		t.Errorf("submitted: %v", err)
	}
	err := p.core.SubmitAll(t.Context(), []job.Request{{ID: "marked", Model: someModel}})
	if !errors.Is(err, job.ErrUploadOver) {
		t.Errorf("submitted in a group: %v", err)
	}
	if err := p.core.SubmitFiles(t.Context(), job.Request{ID: "marked", Model: someModel}, sent("a", "b")); !errors.Is(err, job.ErrUploadOver) {
		t.Errorf("submitted with files: %v", err)
	}
	if _, err := p.core.UploadAddresses(t.Context(), "marked", "", anHour); !errors.Is(err, job.ErrUploadOver) {
		t.Errorf("addresses: %v", err)
	}
	p.stop()
	p.config.Retention = away
	p.start()
	p.gone("marked")
}

// TestUploadRaces has a submission race with another one, and with giving up. A job that
// was acknowledged has its inputs.
func TestUploadRaces(t *testing.T) {
	p := newFixture(t)
	p.takesUploads()
	p.start()
	for n := range 12 {
		id := job.ID("race-" + string(rune('a'+n)))
		plan := p.beginUpload(id, "", job.UploadFile{Path: "input", Size: 1})
		if status := put(t, plan.Targets[0].Address, []byte("x")); status != http.StatusOK {
			t.Fatalf("PUT: %d", status)
		}
		var first, second error
		var racing sync.WaitGroup
		racing.Go(func() { first = p.core.Submit(t.Context(), job.Request{ID: id, Model: someModel}) })
		racing.Go(func() {
			switch n % 3 {
			case 0:
				second = p.core.Submit(t.Context(), job.Request{ID: id, Model: someModel})
			case 1:
				second = p.core.GiveUpUpload(t.Context(), id, "")
			case 2: // another node's
				if _, second = p.ledger.BeginUploadRemoval(t.Context(), id, false); second == nil {
					second = errors.Join(p.store.Remove(t.Context(), id), p.ledger.EndUploadRemoval(t.Context(), id))
				}
			}
		})
		racing.Wait()
		if n%3 == 0 {
			if first != nil && second != nil {
				t.Fatalf("%s: nobody has it: %v, %v", id, first, second)
			}
		} else if (first == nil) == (second == nil) {
			t.Fatalf("%s: both or none has it: %v, %v", id, first, second)
		}
		if first == nil || n%3 == 0 {
			if status, err := p.core.Wait(t.Context(), id); err != nil || status.State != job.Done {
				t.Errorf("%s: %+v, %v", id, status, err)
			}
		}
	}
}

// crossedParts calls crossing once, after the first upload of parts was begun, and counts.
type crossedParts struct {
	storage.Parts
	crossing       func()
	begun, dropped []string // by what storage calls them
}

func (c *crossedParts) BeginParts(ctx context.Context, id job.ID, name string) (string, error) {
	upload, err := c.Parts.BeginParts(ctx, id, name)
	c.begun = append(c.begun, upload)
	if len(c.begun) == 1 {
		c.crossing()
	}
	return upload, err
}

func (c *crossedParts) DropParts(ctx context.Context, id job.ID, name, upload string) error {
	c.dropped = append(c.dropped, upload)
	return c.Parts.DropParts(ctx, id, name, upload)
}

// TestUploadPartsCross has a second client ask for addresses while the parts of the first
// are begun: both get addresses of the same upload, and no other one is left.
func TestUploadPartsCross(t *testing.T) {
	p := newFixture(t)
	p.takesUploads()
	parts := &crossedParts{Parts: p.store.Store.(storage.Parts)}
	p.config.Store = partsStore{p.store, parts}
	var second job.UploadPlan
	parts.crossing = func() {
		var err error
		if second, err = p.core.UploadAddresses(t.Context(), "crossed", "", anHour); err != nil {
			t.Error(err)
		}
	}
	p.start()
	first := p.beginUpload("crossed", "", job.UploadFile{Path: "large", Size: 65 << 20})
	if len(parts.begun) != 2 || first.Files[0].Parts != parts.begun[1] || second.Files[0].Parts != parts.begun[1] {
		t.Errorf("begun are %q; the clients have %+v and %+v", parts.begun, first.Files, second.Files)
	}
	if address := first.Targets[0].Parts[0].Address; !strings.Contains(address, "uploadId="+parts.begun[1]) {
		t.Errorf("the first client's address is %s", address)
	}
	if len(parts.dropped) != 1 || parts.dropped[0] != parts.begun[0] {
		t.Errorf("dropped are %q, begun %q", parts.dropped, parts.begun)
	}
}

// TestUploadPartsOfAnother has an upload given up, and its id reserved for other files, while
// parts of the first are begun: nothing of it gets into the second.
func TestUploadPartsOfAnother(t *testing.T) {
	for name, size := range map[string]int64{"whole": 1, "in parts": 65 << 20} {
		t.Run(name, func(t *testing.T) {
			p := newFixture(t)
			p.takesUploads()
			parts := &crossedParts{Parts: p.store.Store.(storage.Parts)}
			p.config.Store = partsStore{p.store, parts}
			var second job.UploadPlan
			parts.crossing = func() {
				if err := p.core.GiveUpUpload(t.Context(), "crossed", ""); err != nil {
					t.Error(err)
				}
				second = p.beginUpload("crossed", "", job.UploadFile{Path: "other", Size: size})
			}
			p.start()
			if err := p.store.Init(t.Context(), "crossed", []byte("x")); err != nil {
				t.Fatal(err)
			}
			// A daemon has reserved it, and was killed before it began the parts.
			files := []job.UploadFile{{Path: "small", Size: 1}, {Path: "large", Size: 65 << 20, PartSize: 32 << 20}}
			if _, err := p.ledger.ReserveUpload(t.Context(), job.Upload{ID: "crossed", Files: files}, time.Hour); err != nil {
				t.Fatal(err)
			}
			if plan, err := p.core.UploadAddresses(t.Context(), "crossed", "", anHour); !errors.Is(err, job.ErrNoUpload) {
				t.Errorf("the first has addresses of %+v, %v", plan.Files, err)
			}
			if kept, err := p.ledger.Upload(t.Context(), "crossed"); err != nil || !slices.Equal(kept.Files, second.Files) {
				t.Errorf("kept of the second are %+v, %v; want %+v", kept.Files, err, second.Files)
			}
			if len(parts.dropped) != 1 || parts.dropped[0] != parts.begun[0] {
				t.Errorf("dropped are %q, begun %q", parts.dropped, parts.begun)
			}
		})
	}
}

// TestNoUploads asks a core whose storage clients cannot reach.
func TestNoUploads(t *testing.T) {
	p := newFixture(t)
	p.start()
	var none *job.NoUploads
	if _, err := p.core.BeginUpload(t.Context(), job.UploadRequest{ID: "x", Files: []job.UploadFile{{Path: "a"}}, UploadAddressing: anHour}); !errors.As(err, &none) {
		t.Errorf("reserved: %v", err)
	}
	if _, err := p.core.CompleteUpload(t.Context(), "x", ""); !errors.Is(err, job.ErrNoUpload) {
		t.Errorf("completed: %v", err)
	}
	if origin := p.core.UploadOrigin(""); origin != "" {
		t.Errorf("addresses begin with %q", origin)
	}
}
