package container_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// push makes a model that cannot be run.
func (w *world) push(t *testing.T, m job.Model) {
	w.registry.Push(t, m.String(), testenv.Image(t, v1.Config{}, w.base, testenv.Layer(t, map[string][]byte{"model": []byte(m.String())})))
}

func nobody(job.Model) error { return nil }

func TestModels(t *testing.T) {
	w := newWorld(t, testenv.StartContainerd(t))
	d := w.driver(t)
	a, b := job.Model{Name: "team/a", Version: "v1"}, job.Model{Name: "b", Version: "latest"}
	w.push(t, a)
	w.push(t, b)
	if list, err := d.List(t.Context()); err != nil || len(list) > 0 {
		t.Fatalf("before the first pull: %v, %v", list, err)
	}
	var told []job.PullProgress
	if err := d.Pull(t.Context(), a, nil, func(p job.PullProgress) { told = append(told, p) }); err != nil {
		t.Fatal(err)
	}
	if len(told) == 0 || !strings.Contains(told[0].Text, "team/a:v1") {
		t.Errorf("the pull tells %v", told)
	}
	if err := d.Pull(t.Context(), job.Model{Name: "b"}, []string{"none-of-ours"}, func(job.PullProgress) {}); err != nil {
		t.Fatal(err)
	}
	list, err := d.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Model != b || list[1].Model != a {
		t.Fatalf("listed %+v, %v; want b:latest and team/a:v1", list, err)
	}
	for _, k := range list {
		if k.Size <= 0 || k.Own <= 0 || k.Own >= k.Size || k.LastUsed.IsZero() || k.InUse || !strings.HasPrefix(k.Digest, "sha256:") {
			t.Errorf("listed %+v, want its sizes: the two share a layer", k)
		}
	}

	var asked []job.Model
	refuse := errors.New("it is needed")
	err = d.Remove(t.Context(), job.Model{Name: "b"}, func(m job.Model) error {
		if asked = append(asked, m); m.Version == "latest" {
			return refuse
		}
		return nil
	})
	if !errors.Is(err, refuse) || len(asked) != 2 {
		t.Errorf("remove what is needed by another of its names: %v, asked for %v", err, asked)
	}
	if err := d.Remove(t.Context(), a, nobody); err != nil {
		t.Error(err)
	}
	if err := d.Remove(t.Context(), a, nobody); !errdefs.IsNotFound(err) {
		t.Errorf("remove it again: %v", err)
	}
	if list, err := d.List(t.Context()); err != nil || len(list) != 1 || list[0].Model != b {
		t.Errorf("listed %+v, %v; want b:latest alone", list, err)
	}
	if err := d.Remove(t.Context(), b, nobody); err != nil {
		t.Error(err)
	}
}

func TestModelsThatCannotBeHad(t *testing.T) {
	w := newWorld(t, testenv.StartContainerd(t))
	d := w.driver(t)
	silent := func(job.PullProgress) {}
	var known *job.ModelError
	if err := d.Pull(t.Context(), job.Model{Name: "no-such", Version: "v1"}, nil, silent); !errors.As(err, &known) || !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no-such:v1") {
		t.Errorf("an image that is not: %v", err)
	}
	var invalid *job.Invalid
	if err := d.Pull(t.Context(), job.Model{Name: "Capital"}, nil, silent); !errors.As(err, &invalid) || invalid.Field != "model.name" {
		t.Errorf("a name that no image can have: %v", err)
	}
	if err := d.Remove(t.Context(), job.Model{Name: "a", Version: "a b"}, nobody); !errors.As(err, &invalid) || invalid.Field != "model.version" {
		t.Errorf("a version that no image can have: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the client left")
	cancel(gone)
	if err := d.Pull(ctx, job.Model{Name: "a"}, nil, silent); !errors.Is(err, gone) {
		t.Errorf("a pull that is given up: %v", err)
	}
}

// What can be no image's name is known without asking anyone.
func TestCheckModel(t *testing.T) {
	d := (&world{dir: t.TempDir(), daemon: &testenv.Containerd{Address: "/nowhere"}, registry: &testenv.Registry{URL: "http://localhost:1"}}).driver(t)
	sheep, err := d.NewSheep("dolly", decode("type: docker\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer sheep.Close(t.Context())
	for m, field := range map[job.Model]string{
		{Name: "digits", Version: "v1"}: "", {Name: "team/digits"}: "", {Name: "a", Version: "sha256:" + strings.Repeat("0", 64)}: "",
		{Name: "Digits", Version: "v1"}: "model.name", {Name: "a b"}: "model.name", {Name: "a:b"}: "model.name",
		{Name: "a", Version: "-v"}: "model.version", {Name: "a", Version: "v/1"}: "model.version", {Name: "a", Version: "sha256:0"}: "model.version",
	} {
		var invalid *job.Invalid
		err := sheep.(runtime.ModelChecker).CheckModel(m)
		if errors.As(err, &invalid) != (field != "") || invalid != nil && invalid.Field != field {
			t.Errorf("%s: %v, want something about %q", m, err, field)
		}
		if advice := sheep.(runtime.ModelAdviser).ModelAdvice(m); (advice == "") != (field != "") {
			t.Errorf("%s: the advice is %q", m, advice)
		}
	}
	want := "A container sheep runs the image `localhost:1/digits:v1`: `shepherd models pull digits:v1` says whether the registry has it."
	if got := sheep.(runtime.ModelAdviser).ModelAdvice(job.Model{Name: "digits", Version: "v1"}); got != want {
		t.Errorf("the advice is %q, want %q", got, want)
	}
}
