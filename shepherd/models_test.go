package shepherd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
)

// shelf keeps models in memory. The version latest may be left out.
type shelf struct {
	mu     sync.Mutex
	models []job.Model
	pulls  []string
}

func (s *shelf) Pull(_ context.Context, m job.Model, sheep []string, report func(job.PullProgress)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pulls = append(s.pulls, fmt.Sprintf("%s for %v", m, sheep))
	report(job.PullProgress{Text: "half", Done: 1, Total: 2})
	s.models = append(s.models, m)
	return nil
}

func (s *shelf) List(context.Context) ([]job.KeptModel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []job.KeptModel
	for _, m := range s.models {
		list = append(list, job.KeptModel{Model: m})
	}
	return list, nil
}

func (s *shelf) Remove(_ context.Context, m job.Model, needed func(job.Model) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, written := range []job.Model{m, {Name: m.Name, Version: strings.TrimPrefix(m.Version, "latest")}} {
		if err := needed(written); err != nil {
			return err
		}
	}
	i := slices.Index(s.models, m)
	if i < 0 {
		return &job.ModelError{Problem: "not here", Class: errdefs.ErrNotFound}
	}
	s.models = slices.Delete(s.models, i, i+1)
	return nil
}

func TestPullModels(t *testing.T) {
	p := newFixture(t, "a", "b")
	s := &shelf{}
	p.keeper = s
	p.start()
	m := job.Model{Name: "m", Version: "v1"}
	var told []job.PullProgress
	report := func(progress job.PullProgress) { told = append(told, progress) }
	for _, sheep := range []string{"", "b"} {
		if err := p.core.PullModel(t.Context(), m, sheep, report); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"m:v1 for [a b]", "m:v1 for [b]"}; !slices.Equal(s.pulls, want) || len(told) != 2 {
		t.Errorf("pulled %q and told %v, want %q and two reports", s.pulls, told, want)
	}
	var unknown *job.UnknownSheep
	if err := p.core.PullModel(t.Context(), m, "wolf", report); !errors.As(err, &unknown) {
		t.Errorf("for a sheep that is not: %v", err)
	}
	var invalid *job.Invalid
	if err := p.core.PullModel(t.Context(), job.Model{Name: "../m"}, "", report); !errors.As(err, &invalid) {
		t.Errorf("a model that escapes: %v", err)
	}
	if list, err := p.core.Models(t.Context()); err != nil || len(list) != 2 || list[0].Model != m {
		t.Errorf("listed %v, %v", list, err)
	}
}

// With sheep that fetch nothing, there is nothing to pull, and that is said.
func TestNothingToPull(t *testing.T) {
	p := newFixture(t)
	p.start()
	m := job.Model{Name: "m", Version: "v1"}
	if err := p.core.PullModel(t.Context(), m, "", nil); !errors.Is(err, job.ErrNoModels) {
		t.Errorf("pull: %v", err)
	}
	var invalid *job.Invalid
	if err := p.core.PullModel(t.Context(), m, "sheep", nil); !errors.As(err, &invalid) || invalid.Field != "sheep_id" {
		t.Errorf("pull for a sheep: %v", err)
	}
	if err := p.core.RemoveModel(t.Context(), m); !errors.Is(err, job.ErrNoModels) {
		t.Errorf("remove: %v", err)
	}
	if list, err := p.core.Models(t.Context()); err != nil || list == nil || len(list) > 0 {
		t.Errorf("list: %v, %v", list, err)
	}
}

// A model stays while a job or a sheep needs it, whichever way it is written.
func TestRemoveModels(t *testing.T) {
	p := newFixture(t, "a")
	s := &shelf{}
	p.keeper = s
	begun, goOn := make(chan struct{}), make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		close(begun)
		<-goOn
		return echo(ctx, m, in)
	}
	p.start()
	s.models = []job.Model{{Name: "run", Version: "v1"}, {Name: "wait", Version: "latest"}, {Name: "idle", Version: "v1"}}
	p.submit("running", "run", "x", on("a"))
	receive(t, begun, "the job does not begin")
	p.submit("waiting", "wait", "x", func(r *job.Request) { r.Model.Version = "" })
	refused := func(m job.Model, id job.ID, sheep string) {
		t.Helper()
		var needed *job.ModelNeeded
		if err := p.core.RemoveModel(t.Context(), m); !errors.As(err, &needed) || needed.Job != id || needed.Sheep != sheep {
			t.Errorf("remove %s: %v, want that job %q or sheep %q needs it", m, err, id, sheep)
		}
	}
	refused(job.Model{Name: "run", Version: "v1"}, "running", "")
	refused(job.Model{Name: "wait", Version: "latest"}, "waiting", "")
	if err := p.core.RemoveModel(t.Context(), job.Model{Name: "idle", Version: "v1"}); err != nil {
		t.Errorf("remove what nobody needs: %v", err)
	}
	if err := p.core.RemoveModel(t.Context(), job.Model{Name: "idle", Version: "v1"}); !errdefs.IsNotFound(err) {
		t.Errorf("remove it again: %v", err)
	}
	if err := p.core.Cancel(t.Context(), "waiting"); err != nil {
		t.Fatal(err)
	}
	p.await("waiting", job.Cancelled)
	close(goOn)
	p.await("running", job.Done)
	refused(job.Model{Name: "run", Version: "v1"}, "", "a")
	if err := p.core.RemoveModel(t.Context(), job.Model{Name: "wait", Version: "latest"}); err != nil {
		t.Errorf("remove what only a cancelled job wanted: %v", err)
	}
}

// A model that can be no sheep's is refused when it is submitted.
func TestSubmitChecksModels(t *testing.T) {
	p := newFixture(t, "strict", "strict-too", "lax")
	p.check = func(sheep string, m job.Model) error {
		if strings.HasPrefix(sheep, "strict") && m.Name == "Bad" {
			return &job.Invalid{Field: "model.name", Problem: "no capitals for " + sheep}
		}
		return nil
	}
	p.start()
	p.submit("any", "Bad", "x") // lax runs it
	p.submit("lax", "Bad", "x", on("lax"))
	p.submit("good", "good", "x", on("strict"))
	var invalid *job.Invalid
	err := p.core.Submit(t.Context(), job.Request{ID: "bad", Model: job.Model{Name: "Bad"}, Sheep: "strict-too", Payload: []byte("x")})
	if !errors.As(err, &invalid) || invalid.Field != "model.name" || invalid.Problem != "no capitals for strict-too" {
		t.Errorf("submit for one sheep: %v", err)
	}
	if there, err := p.store.Exists(t.Context(), "bad"); there || err != nil {
		t.Errorf("a place was made in storage for a job that was refused: %v", err)
	}
	for _, id := range []string{"any", "lax", "good"} {
		p.await(id, job.Done)
	}
	p.stop()
	p.sheep = []string{"strict", "strict-too"}
	p.start()
	err = p.core.Submit(t.Context(), job.Request{ID: "bad", Model: job.Model{Name: "Bad"}, Payload: []byte("x")})
	if !errors.As(err, &invalid) || invalid.Problem != "no capitals for strict" {
		t.Errorf("submit where no sheep can run it: %v", err)
	}
}

// syncBuffer is a log that is written by many.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// How far a pull is shows in the sheep's status, and, not too often, in the log;
// the job is queued meanwhile or processing, as ever.
func TestPullProgressShows(t *testing.T) {
	p := newFixture(t)
	log := &syncBuffer{}
	p.config.Log = slog.New(slog.NewTextHandler(log, nil))
	p.events = []runtime.Event{
		{Stage: runtime.Pulling, Text: "pulling m: 1%"}, {Stage: runtime.Pulling, Text: "pulling m: 2%"}, {Stage: runtime.Pulling, Text: "pulling m: 40%", Done: 40, Total: 100, Rate: 7},
	}
	loading, goOn := make(chan struct{}), make(chan struct{})
	p.load = func(context.Context, job.Model) error {
		close(loading)
		<-goOn
		return nil
	}
	p.start()
	p.submit("job", "m", "x")
	receive(t, loading, "the model is not loaded")
	if s := p.core.Sheep(t.Context())[0]; s.Detail != "pulling m: 40%" || s.Running || s.Pull == nil || *s.Pull != (job.PullProgress{Text: s.Detail, Done: 40, Total: 100, Rate: 7}) {
		t.Errorf("the sheep shows %+v", s)
	}
	if v, err := p.core.View(t.Context(), "job"); err != nil || v.Detail != "pulling m: 40%" || !v.Loading || !v.RunningSince.IsZero() {
		t.Errorf("the job shows %+v, %v", v, err)
	}
	if s, err := p.core.Job(t.Context(), "job"); err != nil || s.State.Final() {
		t.Errorf("the job shows %+v, %v", s, err)
	}
	close(goOn)
	p.await("job", job.Done)
	if s := p.core.Sheep(t.Context())[0]; strings.Contains(s.Detail, "pulling") || s.Pull != nil || !s.Running {
		t.Errorf("after the pull the sheep shows %+v", s)
	}
	if text := log.String(); strings.Count(text, "Loading the model") != 1 || !strings.Contains(text, `progress="pulling m: 1%"`) {
		t.Errorf("the log says %s", text)
	}
}

func TestLogsOfSheepWithoutAny(t *testing.T) {
	p := newFixture(t)
	p.start()
	if _, err := p.core.Logs(t.Context(), "sheep", job.LogQuery{}); !errors.Is(err, job.ErrNoLog) {
		t.Errorf("a sheep that keeps no log: %v", err)
	}
	var unknown *job.UnknownSheep
	if _, err := p.core.Logs(t.Context(), "wolf", job.LogQuery{}); !errors.As(err, &unknown) || unknown.Name != "wolf" {
		t.Errorf("a sheep that is not: %v", err)
	}
}

// The models that stay are those of jobs that have not ended, each once, however
// many jobs there are.
func TestNeededModels(t *testing.T) {
	records, err := sqlite.Open(t.Context(), sqlite.Config{Path: t.TempDir() + "/ledger.db", Keep: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer records.Close()
	var creating sync.WaitGroup
	for i := range 2100 { // more than are read at a time
		creating.Go(func() {
			m := job.Model{Name: "m", Version: fmt.Sprint(i % 3)}
			if _, err := records.Create(t.Context(), job.Record{ID: job.ID(fmt.Sprintf("job-%d", i)), Model: m}); err != nil {
				t.Error(err)
			}
		})
	}
	creating.Wait()
	for _, id := range []job.ID{"last", "gone"} {
		if _, err := records.Create(t.Context(), job.Record{ID: id, Model: job.Model{Name: string(id)}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := records.Cancel(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	got, err := shepherd.NeededModels(t.Context(), records)
	slices.SortFunc(got, func(a, b job.Model) int { return strings.Compare(a.String(), b.String()) })
	want := []job.Model{{Name: "last"}, {Name: "m", Version: "0"}, {Name: "m", Version: "1"}, {Name: "m", Version: "2"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("needed: %v, %v; want %v", got, err, want)
	}
}

func on(sheep string) func(*job.Request) { return func(r *job.Request) { r.Sheep = sheep } }
