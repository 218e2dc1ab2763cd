package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

func TestViews(t *testing.T) {
	p := newFixture(t)
	gate, begun := make(chan struct{}), make(chan struct{}, 1)
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		begun <- struct{}{}
		<-gate
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("job-0", "m", "x")
	receive(t, begun, "the job does not begin")
	for n := 1; n < 5; n++ {
		p.submit(fmt.Sprint("job-", n), "m", "x", func(r *job.Request) { r.Priority, r.Sheep = 3, "sheep" })
	}
	v, err := p.core.View(t.Context(), "job-0")
	if err != nil || v.State != job.Processing || v.Holder != "sheep" || v.Attempt != 1 || v.Sheep != "" {
		t.Errorf("the job under way: %+v, %v", v, err)
	}
	var seen []job.ID
	for cursor, pages := int64(0), 0; pages == 0 || cursor != 0; pages++ {
		page, next, err := p.core.Jobs(t.Context(), job.Query{States: []job.State{job.Queued}, Sheep: "sheep", Model: job.Model{Name: "m", Version: "v1"}}, cursor, 3)
		if err != nil || pages > 2 {
			t.Fatalf("page %d: %v", pages, err)
		}
		for _, v := range page {
			seen = append(seen, v.ID)
		}
		cursor = next
	}
	if fmt.Sprint(seen) != "[job-1 job-2 job-3 job-4]" {
		t.Errorf("waiting are %v", seen)
	}
	close(gate)
	for n := range 4 {
		receive(t, begun, "the next job does not begin")
		p.await(fmt.Sprint("job-", n), job.Done)
	}
	p.await("job-4", job.Done)
	p.submit("never", "m", "x", func(r *job.Request) { r.NotBefore = time.Now().Add(time.Hour) })
	if err := p.core.Cancel(t.Context(), "never"); err != nil {
		t.Fatal(err)
	}
	page, _, err := p.core.Jobs(t.Context(), job.Query{}, 0, 10)
	if err != nil || len(page) != 6 {
		t.Fatalf("%d jobs, %v", len(page), err)
	}
	for _, listed := range page {
		want := "sheep"
		if listed.ID == "never" {
			want = ""
		}
		v, err := p.core.View(t.Context(), listed.ID)
		if err != nil || listed.LastSheep != want || v.LastSheep != want || v.Holder != "" {
			t.Errorf("the last sheep of %s is %q in the list and %q by itself, want %q; %v", v.ID, listed.LastSheep, v.LastSheep, want, err)
		}
	}
	var unknown *job.UnknownJob
	if _, err := p.core.View(t.Context(), "nobody"); !errors.As(err, &unknown) {
		t.Errorf("a job that nobody submitted: %v", err)
	}
}
