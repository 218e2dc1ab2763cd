package fleet_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/fleet"
	"github.com/iterait/shepherd/job"
)

func TestNearest(t *testing.T) {
	m, other := job.Model{Name: "m", Version: "1"}, job.Model{Name: "m", Version: "2"}
	has := func(models ...job.Model) fleet.Node {
		n := fleet.Node{Name: "b", Alive: true}
		for _, m := range models {
			n.Sheep = append(n.Sheep, job.Sheep{Name: "s", Model: m})
		}
		return n
	}
	with := func(n fleet.Node, change func(*fleet.Node)) fleet.Node {
		change(&n)
		return n
	}
	disk := func(n *fleet.Node) { n.Models = []job.Model{other, m} }
	for name, test := range map[string]struct {
		to    string
		nodes []fleet.Node
		want  job.Nearness
	}{
		"nobody":           {"", nil, job.ModelAway},
		"another version":  {"", []fleet.Node{has(other)}, job.ModelAway},
		"loaded":           {"", []fleet.Node{has(other, m)}, job.ModelLoaded},
		"on disk":          {"", []fleet.Node{with(has(other), disk)}, job.ModelOnDisk},
		"the nearest":      {"", []fleet.Node{with(has(other), disk), with(has(m), func(n *fleet.Node) { n.Name = "c" })}, job.ModelLoaded},
		"itself":           {"", []fleet.Node{with(has(m), func(n *fleet.Node) { n.Name = "a" })}, job.ModelAway},
		"not up":           {"", []fleet.Node{with(has(m), func(n *fleet.Node) { n.Alive = false })}, job.ModelAway},
		"drained":          {"", []fleet.Node{with(has(m), func(n *fleet.Node) { n.Draining = true })}, job.ModelAway},
		"busy":             {"", []fleet.Node{with(has(m, m), func(n *fleet.Node) { n.Held = 2 })}, job.ModelAway},
		"one is free":      {"", []fleet.Node{with(has(m, m), func(n *fleet.Node) { n.Held = 1 })}, job.ModelLoaded},
		"no sheep":         {"", []fleet.Node{with(has(), disk)}, job.ModelAway},
		"addressed":        {"@gpu=a100", []fleet.Node{with(has(m), func(n *fleet.Node) { n.Labels = job.Labels{"gpu": "a100"} })}, job.ModelLoaded},
		"another's labels": {"@gpu=a100", []fleet.Node{has(m)}, job.ModelAway},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := newFleet(t, "", test.nodes...).Nearest(t.Context(), m, job.ParseAddress(test.to))
			if err != nil || got != test.want {
				t.Errorf("it is %d, %v, expected %d", got, err, test.want)
			}
		})
	}
}

// Many ask within a second, and the database is asked once; one that did not answer is
// asked again.
func TestNearestAsksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, failed := 0, errors.New("no database")
		f := fleet.New(fleet.Config{Self: "a", Log: discard, Directory: func(context.Context) ([]fleet.Node, error) {
			asked++
			return nil, failed
		}})
		ask := func() error {
			_, err := f.Nearest(t.Context(), job.Model{Name: "m"}, job.Address{})
			return err
		}
		if err := ask(); !errors.Is(err, failed) {
			t.Errorf("it says %v", err)
		}
		failed = nil
		for range 10 {
			if err := ask(); err != nil {
				t.Error(err)
			}
		}
		if asked != 2 {
			t.Errorf("the database was asked %d times", asked)
		}
		time.Sleep(time.Second)
		if err := ask(); err != nil || asked != 3 {
			t.Errorf("a second later it was asked %d times, %v", asked, err)
		}
	})
}
