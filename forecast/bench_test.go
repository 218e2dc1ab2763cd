package forecast_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/iterait/shepherd/forecast"
	"github.com/iterait/shepherd/job"
)

func BenchmarkSimulate(b *testing.B) {
	for _, c := range []struct{ jobs, models, sheep int }{{50, 5, 4}, {2000, 20, 8}, {2000, 20, 100}, {2000, 1000, 8}} {
		b.Run(fmt.Sprintf("%d jobs of %d models on %d sheep", c.jobs, c.models, c.sheep), func(b *testing.B) {
			s, h := queue(c.jobs, c.models, c.sheep)
			for b.Loop() {
				forecast.Simulate(s, h)
			}
		})
	}
}

// queue is jobs of the models in turn, each of which runs 20 s and loads 10 s, and as many
// idle sheep.
func queue(jobs, models, sheep int) (forecast.State, *forecast.History) {
	h := new(forecast.History)
	model := func(i int) job.Model { return job.Model{Name: fmt.Sprintf("m%d", i%models), Version: "v1"} }
	for i := range models {
		for range 8 {
			h.Add(model(i), 20*time.Second, 10*time.Second)
		}
	}
	s := forecast.State{
		Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Ahead: true,
		Turn: func(load time.Duration) time.Duration { return max(10*load, 5*time.Second) },
	}
	for i := range jobs {
		s.Jobs = append(s.Jobs, forecast.Job{ID: job.ID(fmt.Sprintf("job-%d", i)), Model: model(i)})
	}
	for i := range sheep {
		s.Sheep = append(s.Sheep, forecast.Sheep{Name: fmt.Sprintf("sheep-%d", i), Can: func(job.Model) bool { return true }})
	}
	return s, h
}
