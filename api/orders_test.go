package api

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Orders reach the sheep that the address names, as they were given.
func TestSheepOrders(t *testing.T) {
	h := newHarness(t, asAdmin)
	type told struct {
		sheep string
		order job.Order
	}
	var got []told
	h.service.order = func(_ context.Context, sheep string, o job.Order) error {
		got = append(got, told{sheep, o})
		return nil
	}
	const model = `{"model": {"name": "m", "version": "v1"}}`
	for _, path := range []string{"/sheep/a/drain", "/sheep/node%2Fa/resume", "/sheep/a/restart", "/sheep/a/restart?drain=5m", "/sheep/a/restart?drain="} {
		h.expect(h.do("POST", path, ""), 200, `{"success": true}`)
	}
	h.expect(h.do("POST", "/sheep/a/load", model), 200, `{"success": true}`)
	want := []told{
		{"a", job.Order{Do: job.Drain}}, {"node/a", job.Order{Do: job.Resume}}, {"a", job.Order{Do: job.Restart}},
		{"a", job.Order{Do: job.Restart, Drain: 5 * time.Minute}}, {"a", job.Order{Do: job.Restart, Drain: job.UsualDrain}},
		{"a", job.Order{Do: job.Load, Model: job.Model{Name: "m", Version: "v1"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the orders are %+v", got)
	}
	for path, body := range map[string]string{
		"/sheep/a/restart?drain=soon": "", "/sheep/a/restart?drain=-1s": "", "/sheep/a/load": `{}`, "/sheep/b/load": `{"model": {"name": "m", "version": "v1"}, "sheep_id": "a"}`,
		"/sheep/c/load": `{"model": {"name": "../m", "version": "v1"}}`,
	} {
		if answer := h.do("POST", path, body); answer.status != 400 || !strings.Contains(answer.body, "urn:shepherd:problem:invalid-request") {
			t.Errorf("%s %s: %d %s", path, body, answer.status, answer.body)
		}
	}
	if len(got) != len(want) {
		t.Errorf("a request that is wrong was obeyed: %+v", got[len(want):])
	}
}

// What keeps a sheep from an order is a problem with a type of its own.
func TestSheepOrderProblems(t *testing.T) {
	h := newHarness(t, asAdmin)
	states := make(map[string]error)
	for _, is := range job.SheepTroubles {
		states[string(is)] = &job.SheepState{Sheep: "a", Is: is}
	}
	for kind, c := range map[string]struct {
		err    error
		status int
		detail string
	}{
		"unknown-sheep":   {&job.UnknownSheep{Name: "a"}, 404, "Unknown sheep id `a`"},
		"unknown-model":   {&job.ModelError{Problem: "there is no m:v1", Class: errdefs.ErrNotFound}, 404, "there is no m:v1"},
		"model":           {&job.ModelError{Problem: "its runner ended", Class: errdefs.ErrFailedPrecondition}, 409, "its runner ended"},
		"model-refused":   {&job.Untrusted{Model: job.Model{Name: "m"}, Reason: "is not trusted"}, 403, "Model `m` is not trusted"},
		"shutting-down":   {job.ErrDraining, 503, job.ErrDraining.Error()},
		"internal":        {errors.New("a fault"), 500, "Internal server error"},
		"sheep-disturbed": {states["sheep-disturbed"], 409, "A job came to sheep `a` before the model was loaded; drain it first, and it takes none"},
	} {
		h.service.order = func(context.Context, string, job.Order) error { return c.err }
		answer := h.do("POST", "/sheep/a/load", `{"model": {"name": "m", "version": "v1"}}`)
		h.problem(answer, c.status, kind, c.detail)
	}
	for kind, err := range states {
		h.service.order = func(context.Context, string, job.Order) error { return err }
		answer := h.do("POST", "/sheep/a/drain", "")
		if h.problem(answer, 409, kind, err.Error()); strings.Contains(answer.body, "cannot do this now") {
			t.Errorf("%s: the problem is in no words", kind)
		}
	}
}
