package bench

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
)

// BenchmarkMillion sends requests to two daemons in turns, one with 1,000 jobs that wait
// for a busy sheep and one with 1,000,000: their time must not depend on the number. The
// jobs are written by package ledger/sqlite before the daemons start, as if an earlier
// daemon had accepted them.
func BenchmarkMillion(b *testing.B) {
	const few, many = 1000, 1_000_000
	null, _ := startNull(b)
	worlds := [2]*world{queuedWorld(b, null, few), queuedWorld(b, null, many)}
	for _, w := range worlds {
		w.start()
	}
	for _, step := range []struct {
		name string
		do   func(w *world, turn int) error
	}{
		{"submit", func(w *world, turn int) error {
			return w.submitTo(fmt.Sprintf("new-%d", turn), "noop:v1", "sheep")
		}},
		{"run a job of another sheep", func(w *world, turn int) error {
			id := fmt.Sprintf("other-%d", turn)
			if err := w.submitTo(id, "noop:v1", "free"); err != nil {
				return err
			}
			return w.await(id)
		}},
		{"list the oldest 100", func(w *world, _ int) error {
			_, err := w.get("/jobs?state=queued&order=oldest&limit=100")
			return err
		}},
		{"list the newest 100", func(w *world, _ int) error {
			_, err := w.get("/jobs?limit=100")
			return err
		}},
		{"look at a job", func(w *world, turn int) error {
			_, err := w.get("/jobs/" + string(queuedID(few/2+turn)))
			return err
		}},
		{"cancel", func(w *world, turn int) error {
			_, err := w.ask(http.MethodPost, "/jobs/"+string(queuedID(few/4+turn))+"/cancel", nil)
			return err
		}},
		{"scrape", func(w *world, _ int) error {
			_, err := w.get("/metrics")
			return err
		}},
	} {
		const warm, turns = 5, 60
		var took [2][]time.Duration
		for turn := range warm + turns {
			for i, w := range worlds {
				began := time.Now()
				if err := step.do(w, turn); err != nil {
					w.fatal("%s: %v", step.name, err)
				}
				if turn >= warm {
					took[i] = append(took[i], time.Since(began))
				}
			}
		}
		note(b, step.name+", a million jobs queued", ms(median(took[1])), "ms")
		atMost(b, step.name+", of that with a thousand", float64(median(took[1]))/float64(median(took[0])), "times", 1.5)
	}
	for i, w := range worlds {
		name := [2]string{"a thousand", "a million"}[i]
		note(b, "RSS with "+name+" jobs queued", resident(b, w.daemon.Process.Pid), "MiB")
		w.kill()
		hoped(b, "ready after kill -9 with "+name+" jobs queued", w.start().Seconds(), "s", 5)
	}
}

func queuedID(n int) job.ID { return job.ID(fmt.Sprintf("queued-%07d", n)) }

// queuedWorld makes a machine with a second sheep, "free", and n jobs that wait for the
// first, which is busy.
func queuedWorld(b *testing.B, url string, n int) *world {
	b.Helper()
	w := newWorld(b, url, "access-key", "secret-key")
	text, err := os.ReadFile(w.config)
	must(b, err)
	text = fmt.Appendf(text, "  free: {type: bare, working_directory: %s/models, command: [%s/noop]}\n", w.dir, programs)
	must(b, os.WriteFile(w.config, text, 0o644))
	must(b, os.MkdirAll(filepath.Join(w.dir, "state"), 0o700))
	ledger, err := sqlite.Open(b.Context(), sqlite.Config{Path: filepath.Join(w.dir, "state", "ledger.db")})
	must(b, err)
	queue := func(id job.ID, model string) error {
		_, err := ledger.Create(b.Context(), job.Record{ID: id, Model: job.Model{Name: model, Version: "v1"}, Sheep: "sheep"})
		return err
	}
	must(b, queue("busy", "hold"))
	together(b, 256, n, func(i int) error { return queue(queuedID(i), "noop") })
	must(b, ledger.Close())
	return w
}
