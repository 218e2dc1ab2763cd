package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage/storagetest"
)

// sent are files of a request, in order: name, content, name, content…
func sent(pairs ...string) job.Files {
	return func() (string, io.Reader, error) {
		if len(pairs) == 0 {
			return "", nil, io.EOF
		}
		name, content := pairs[0], pairs[1]
		pairs = pairs[2:]
		return name, strings.NewReader(content), nil
	}
}

// inputsOf are the names and sizes of the inputs that a job has in storage.
func (p *fixture) inputsOf(id job.ID) map[string]int64 {
	p.t.Helper()
	listed, err := storagetest.All(p.store.List(p.t.Context(), id, job.InputDir+"/"))
	if err != nil {
		p.t.Fatal(err)
	}
	found := make(map[string]int64)
	for _, f := range listed {
		found[f.Name] = f.Size
	}
	return found
}

var someModel = job.Model{Name: "m", Version: "v1"}

func TestSubmitFiles(t *testing.T) {
	p := newFixture(t)
	large := strings.Repeat("0123456789", 20_000) // more than is kept in memory
	got := make(chan map[string]string, 1)
	p.handle = func(_ context.Context, _ job.Model, in messenger.Input) error {
		found := make(map[string]string)
		root := filepath.Join(in.IODataRoot, string(in.JobID), job.InputDir)
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			name, _ := filepath.Rel(root, path)
			found[name] = string(data)
			return err
		})
		got <- found
		return err
	}
	p.start()
	r := job.Request{ID: "with-files", Model: someModel, Labels: job.Labels{"batch": "1"}}
	if err := p.core.SubmitFiles(t.Context(), r, sent("input", "small", "dir/large", large, "dir/sub/empty", "")); err != nil {
		t.Fatal(err)
	}
	if status, err := p.core.Wait(t.Context(), r.ID); err != nil || status.State != job.Done {
		t.Fatalf("%+v, %v", status, err)
	}
	want := map[string]string{"input": "small", "dir/large": large, "dir/sub/empty": ""}
	if found := receive(t, got, "the runner has found nothing"); !maps.Equal(found, want) {
		t.Errorf("the runner found %d files: %.100v", len(found), found)
	}
	if names, _ := filepath.Glob(filepath.Join(p.dir, "data", ".staging", "upload-*")); len(names) > 0 {
		t.Errorf("%v stays", names)
	}
	if err := p.core.SubmitFiles(t.Context(), r, sent("input", "again")); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("the same id again: %v", err)
	}
	if v, err := p.core.View(t.Context(), r.ID); err != nil || v.Labels["batch"] != "1" || len(v.Timeline) < 3 || v.Timeline[0].Kind != job.EventQueued || v.Timeline[len(v.Timeline)-1].Kind != job.EventEnded {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestSubmitFilesRefused looks at uploads that cannot be taken: nothing of them
// stays, and the id can be used.
func TestSubmitFilesRefused(t *testing.T) {
	p := newFixture(t)
	p.start()
	broken := errors.New("the client has left")
	breaks := func(files job.Files) job.Files {
		return func() (string, io.Reader, error) {
			name, content, err := files()
			if errors.Is(err, io.EOF) {
				return "last", io.MultiReader(strings.NewReader(strings.Repeat("x", 100_000)), failing{broken}), nil
			}
			return name, content, err
		}
	}
	for name, c := range map[string]struct {
		files job.Files
		says  string
	}{
		"no file":        {sent(), "the request has no file"},
		"outside":        {sent("a", "x", "../b", "y"), `has the element ".."`},
		"twice":          {sent("a", "x", "a", "y"), "twice"},
		"broken":         {breaks(sent("a", "x")), broken.Error()},
		"broken listing": {func() (string, io.Reader, error) { return "", nil, broken }, broken.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			err := p.core.SubmitFiles(t.Context(), job.Request{ID: "refused", Model: someModel}, c.files)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, which does not say %s", err, c.says)
			}
			if there, err := p.store.Exists(t.Context(), "refused"); err != nil || there {
				t.Errorf("its place is there: %v, %v", there, err)
			}
		})
	}
	if err := p.core.SubmitFiles(t.Context(), job.Request{ID: "refused", Model: someModel}, sent("input", "x")); err != nil {
		t.Error(err)
	}

	// Inputs that somebody has put into storage are not replaced.
	if err := p.store.Init(t.Context(), "others", []byte("in")); err != nil {
		t.Fatal(err)
	}
	if err := p.core.SubmitFiles(t.Context(), job.Request{ID: "others", Model: someModel}, sent("a", "x")); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("over others' inputs: %v", err)
	}
	if got := p.inputsOf("others"); len(got) != 1 || got["inputs/input"] != 2 {
		t.Errorf("they are now %v", got)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestUploadCutShort has a daemon leave an upload that is not whole: it is not
// queued, and the next upload with the id takes its place.
func TestUploadCutShort(t *testing.T) {
	p := newFixture(t)
	p.config.Retention = shepherd.Retention{Ledger: p.ledger}
	p.start()
	under := make(chan struct{})
	release := make(chan struct{})
	ended := make(chan error, 1)
	files := sent("old", "x")
	go func() {
		ended <- p.core.SubmitFiles(t.Context(), job.Request{ID: "cut", Model: someModel}, func() (string, io.Reader, error) {
			name, content, err := files()
			if errors.Is(err, io.EOF) {
				close(under)
				<-release
				return "", nil, errors.New("over")
			}
			return name, content, err
		})
	}()
	receive(t, under, "the upload does not come to its end")
	if err := p.core.SubmitFiles(t.Context(), job.Request{ID: "cut", Model: someModel}, sent("a", "x")); !errors.Is(err, job.ErrUploading) {
		t.Errorf("beside another upload: %v", err)
	}
	if err := p.core.Submit(t.Context(), job.Request{ID: "cut", Model: someModel}); !errors.Is(err, job.ErrUploading) {
		t.Errorf("a submission beside an upload: %v", err)
	}
	status, err := p.core.Job(t.Context(), "cut")
	if err != nil || !status.Accepted || status.State != job.Queued || status.Failure == nil {
		t.Errorf("meanwhile it is %+v, %v", status, err)
	}
	close(release)
	if err := receive(t, ended, "the upload does not end"); err == nil {
		t.Error("an upload that broke off was taken")
	}

	// What a daemon that is killed leaves can be removed.
	if err := p.store.Reserve(t.Context(), "cut", status); err != nil {
		t.Fatal(err)
	}
	if err := p.core.Remove(t.Context(), "cut"); err != nil {
		t.Error(err)
	}
	if there, err := p.store.Exists(t.Context(), "cut"); err != nil || there {
		t.Errorf("after its removal: %v, %v", there, err)
	}

	// Or it is replaced.
	if err := p.store.Reserve(t.Context(), "cut", status); err != nil {
		t.Fatal(err)
	}
	if err := p.store.Put(t.Context(), "cut", "inputs/old", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	if err := p.core.SubmitFiles(t.Context(), job.Request{ID: "cut", Model: someModel}, sent("input", "new")); err != nil {
		t.Fatal(err)
	}
	if got := p.inputsOf("cut"); len(got) != 1 || got["inputs/input"] != 3 {
		t.Errorf("its inputs are %v", got)
	}
	if status, err := p.core.Wait(t.Context(), "cut"); err != nil || status.State != job.Done || status.Accepted {
		t.Errorf("%+v, %v", status, err)
	}
}

// TestRecoverSkipsUploads: what an upload has left is no job that was acknowledged.
func TestRecoverSkipsUploads(t *testing.T) {
	p := newFixture(t)
	p.start()
	status := job.Status{State: job.Queued, Accepted: true, Model: someModel, EnqueuedAt: time.Now(), Failure: &job.Failure{Message: "The inputs of this job are being uploaded, or their upload was cut short; submit it again"}}
	if err := p.store.Reserve(t.Context(), "cut", status); err != nil {
		t.Fatal(err)
	}
	var refused []shepherd.Rebuilt
	counts, err := shepherd.Rebuild(t.Context(), shepherd.RebuildConfig{Ledger: p.ledger, Store: p.store, Report: func(r shepherd.Rebuilt) { refused = append(refused, r) }})
	if err != nil || counts != (shepherd.RebuildCounts{Refused: 1}) || len(refused) != 1 || !strings.Contains(refused[0].Trouble.Error(), "submit it again") {
		t.Errorf("%+v, %+v, %v", counts, refused, err)
	}
}

func TestCopies(t *testing.T) {
	claims.Hold(t, "C10")
	p := newFixture(t)
	p.start()
	for id, tenant := range map[job.ID]string{"mine": "wool", "theirs": "meat"} {
		if err := p.core.SubmitFiles(t.Context(), job.Request{ID: id, Model: someModel, Tenant: tenant}, sent("input", "x", "more/a", "ya", "more/b", "yb")); err != nil {
			t.Fatal(err)
		}
		if status, err := p.core.Wait(t.Context(), id); err != nil || status.State != job.Done {
			t.Fatalf("%+v, %v", status, err)
		}
	}
	if err := p.core.Submit(t.Context(), job.Request{ID: "waits", Model: someModel, Tenant: "wool", Payload: []byte("x"), NotBefore: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	r := job.Request{ID: "copy", Model: someModel, Tenant: "wool", Copies: []job.Copy{
		{From: "mine", Path: "outputs/output", As: "input"}, {From: "mine", Path: "inputs/more/", As: "sub"}, {From: "mine", Path: "inputs/more/a", As: "a"},
	}}
	if err := p.core.SubmitFiles(t.Context(), r, sent("own", "1234")); err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{"inputs/input": 1, "inputs/sub/a": 2, "inputs/sub/b": 2, "inputs/a": 2, "inputs/own": 4}
	if got := p.inputsOf("copy"); !maps.Equal(got, want) {
		t.Errorf("the inputs are %v", got)
	}
	for i, c := range []struct {
		from job.ID
		path string
		says string
	}{
		{"theirs", "outputs/output", "there is no job `theirs`"},
		{"nobody", "outputs/output", "there is no job `nobody`"},
		{"mine", "outputs/", "twice"}, // with own's name
		{"mine", "outputs/none", "no file outputs/none"},
		{"mine", "inputs/mor", "no file inputs/mor"},
		{"waits", "outputs/output", "has not ended"},
	} {
		id := job.ID(fmt.Sprint("refused-", i))
		own := sent("own", "x")
		copies := []job.Copy{{From: c.from, Path: c.path, As: "own"}}
		if strings.HasSuffix(c.path, "/") {
			copies[0].As, own = "", sent("output", "x")
		}
		err := p.core.SubmitFiles(t.Context(), job.Request{ID: id, Model: someModel, Tenant: "wool", Copies: copies}, own)
		if invalid := new(job.Invalid); !errors.As(err, &invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, which does not say %s", c, err, c.says)
		}
		if there, err := p.store.Exists(t.Context(), id); err != nil || there {
			t.Errorf("%+v: its place is there: %v, %v", c, there, err)
		}
	}
}

// TestSubmitAgain sends a request with an idempotency twice: it runs once.
func TestSubmitAgain(t *testing.T) {
	p := newFixture(t)
	p.start()
	if err := p.store.Init(t.Context(), "again", []byte("in")); err != nil {
		t.Fatal(err)
	}
	r := job.Request{ID: "again", Model: someModel, Idempotency: "digest"}
	if err := p.core.Submit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if status, err := p.core.Wait(t.Context(), r.ID); err != nil || status.State != job.Done {
		t.Fatalf("%+v, %v", status, err)
	}
	if err := p.core.Submit(t.Context(), r); !errors.Is(err, job.ErrSubmitted) {
		t.Errorf("sent again: %v", err)
	}
	if rec, err := p.ledger.Get(t.Context(), r.ID); err != nil || rec.Run != 1 {
		t.Errorf("%+v, %v", rec, err)
	}
}
