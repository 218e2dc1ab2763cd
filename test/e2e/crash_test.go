package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/crashpoint"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage/s3"
)

// crashSegment is how many daemons in a row are killed before everything is checked.
const crashSegment = 16

// maxBursts is how often a client submits jobs to one daemon. The last daemon has to
// complete all of them.
const maxBursts = 8

// The daemon is killed at each crash point, and at each ordered pair of them one
// after the other, while a client submits and cancels jobs and repeats requests that were
// not answered. Then a daemon without faults must end every acknowledged job correctly.
func TestCrashPoints(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-tags", "crashpoints", "-o", dir+"/", "../../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	sequence := allPairs(crashpoint.All())
	checkPairs(t, sequence, crashpoint.All())
	t.Run("points", func(t *testing.T) { // returns when its parallel parts have
		for first := 0; first < len(sequence)-1; first += crashSegment {
			part := sequence[first:min(first+crashSegment+1, len(sequence))] // the last is the next part's first: a pair, too
			t.Run(fmt.Sprintf("from-%d", first), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, "one", "two")
				w.bin = dir
				w.edit("sheep:\n", "scheduling: {max_attempts: 100}\nsheep:\n") // a job may be killed with every sheep
				c := &crashes{world: w, jobs: make(map[string]*crashJob)}
				for i, point := range part {
					c.life(point, (first+i)%2 == 1)
				}
				c.settle()
			})
		}
	})
}

// allPairs is the shortest sequence in which every ordered pair of points, those of
// a point with itself included, is found side by side: de Bruijn's of order 2, with
// its first point again at the end.
func allPairs(points []crashpoint.Point) []crashpoint.Point {
	var sequence []crashpoint.Point
	for i, p := range points {
		sequence = append(sequence, p)
		for _, q := range points[i+1:] {
			sequence = append(sequence, p, q)
		}
	}
	return append(sequence, points[0])
}

func checkPairs(t *testing.T, sequence, points []crashpoint.Point) {
	t.Helper()
	pairs := make(map[[2]crashpoint.Point]bool)
	for i, p := range sequence[1:] {
		pairs[[2]crashpoint.Point{sequence[i], p}] = true
	}
	if want := len(points) * len(points); len(pairs) != want || len(sequence) != want+1 {
		t.Fatalf("%d pairs in %d points, want %d", len(pairs), len(sequence), want)
	}
}

// crashes is a client of daemons that are killed.
type crashes struct {
	*world
	jobs   map[string]*crashJob
	order  []string
	killed []string // where the daemons were killed, and what else was
}

// crashJob is what the client knows of a job.
type crashJob struct {
	input                string
	acknowledged         bool
	cancel, cancelled    bool // a cancel was requested, and answered
	body                 string
	submissions, cancels int
}

// life is a daemon that is killed at the point; all says that shims and runners are
// killed with it.
func (c *crashes) life(point crashpoint.Point, all bool) {
	c.t.Helper()
	note := string(point)
	if all {
		note += "+sheep"
	}
	c.killed = append(c.killed, note)
	c.launchAt(point)
	began := time.Now()
	bursts, last := 0, time.Time{}
	for !c.dead() {
		if time.Since(began) > deadline {
			c.t.Fatalf("the daemon does not reach %s; so far %v\n%s", point, c.killed, c.log)
		}
		if c.api == "" {
			if m := regexp.MustCompile(`Shepherd API is available at (http://[^\s"]+)`).FindStringSubmatch(c.log.String()); m != nil {
				c.api = m[1]
			}
			time.Sleep(2 * time.Millisecond)
			continue
		}
		c.retry()
		if bursts < maxBursts && time.Since(last) > time.Second { // one may miss the point
			bursts, last = bursts+1, time.Now()
			c.more(point)
			if point == crashpoint.Started || point == crashpoint.SentUnstarted { // of a job that was prepared while both sheep had one
				c.more(point)
				c.more(point)
				c.more(point)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got := c.daemon.ProcessState.Sys().(syscall.WaitStatus); !got.Signaled() || got.Signal() != syscall.SIGKILL {
		c.t.Fatalf("the daemon ends with %v at %v\n%s", c.daemon.ProcessState, c.killed, c.log)
	}
	if all { // shims first: one whose runner is killed reports that to the next daemon
		left := c.processes()
		for _, shims := range []bool{true, false} {
			for pid, command := range left {
				if strings.Contains(command, "shepherd-shim") == shims {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
	}
}

func (c *crashes) launchAt(point crashpoint.Point) {
	env := c.env
	defer func() { c.env = env }()
	c.env = append(slices.Clone(env), crashpoint.Environment+"="+string(point))
	c.api = ""
	c.launch()
}

// more makes the client send a new request that leads to the point.
func (c *crashes) more(point crashpoint.Point) {
	id := fmt.Sprintf("job-%d", len(c.order)+1)
	j := &crashJob{input: "text of " + id}
	more := ""
	switch {
	case point == crashpoint.Released && len(c.order)%2 == 0: // the runner exits once, and the job is tried again
		j.input = "once " + filepath.Join(c.dir, id)
		more = `"retries": 50, "retry_pause": "1ms", ` // attempts that were killed count, too
	case point == crashpoint.Started, point == crashpoint.SentUnstarted:
		j.input = "sleep 0.2"
	case point == crashpoint.CancelRecorded && len(c.order)%2 == 0: // a job that runs
		j.input, j.cancel = "wait "+filepath.Join(c.dir, "never"), true
	case point == crashpoint.CancelRecorded: // a job that waits
		j.cancel = true
		more = `"not_before": "2099-01-01T00:00:00Z", `
	}
	j.body = strings.Replace(jobBody(id, "echo:v1", j.input), "{", "{"+more, 1)
	c.jobs[id] = j
	c.order = append(c.order, id)
	c.retry()
}

// retry repeats requests that were not answered, as a client does that knows only that the
// connection broke.
func (c *crashes) retry() {
	for _, id := range c.order {
		j := c.jobs[id]
		if !j.acknowledged {
			j.submissions++
			code, text, err := c.try("POST", "/start-job", j.body)
			switch {
			case err != nil:
				return // it is dead, or dies
			case code == 200, code == 409 && j.submissions > 1: // an earlier try was taken
				j.acknowledged = true
			case code == 503:
				return
			default:
				c.t.Fatalf("start-job %s: %d %s; killed at %v", id, code, text, c.killed)
			}
		}
		if j.cancel && !j.cancelled {
			j.cancels++
			code, text, err := c.try("POST", "/jobs/"+id+"/cancel", "")
			switch {
			case err != nil:
				return
			case code == 200:
				j.cancelled = true
			case code == 409 && j.cancels > 1: // an earlier cancel was carried out
				j.cancelled = true
			case code == 503:
				return
			default:
				c.t.Fatalf("cancel %s: %d %s; killed at %v", id, code, text, c.killed)
			}
		}
	}
}

// settle starts a daemon without faults, and checks how all jobs have ended.
func (c *crashes) settle() {
	c.t.Helper()
	c.start()
	c.retry()
	store, err := s3.New(s3.Config{URL: c.s3, AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, id := range c.order {
		j := c.jobs[id]
		if !j.acknowledged || j.cancel && !j.cancelled {
			c.t.Errorf("%s is not acknowledged by a daemon that is left alone: %+v", id, j)
			continue
		}
		s := c.await(id)
		want := "done"
		if j.cancel {
			want = "cancelled"
		}
		if s.Status != want {
			c.t.Errorf("%s (%s) is %s, want %s: %+v", id, j.input, s.Status, want, s.Error)
			continue
		}
		if want == "done" {
			if got := c.result(id); got != j.input {
				c.t.Errorf("%s gave %q, want %q", id, got, j.input)
			}
		}
		if kept, err := keptStatus(c.t.Context(), store, id, want, s.Finished); err != nil {
			c.t.Errorf("%s: storage says %+v (%v), the API %+v", id, kept, err, s)
		}
	}
	c.eventually("no working directory is left", func() bool {
		left, err := filepath.Glob(c.dir + "/data/*/attempt-*")
		staged, err2 := filepath.Glob(c.dir + "/data/.staging/*")
		return err == nil && err2 == nil && len(left)+len(staged) == 0
	})
	if c.t.Failed() {
		c.t.Logf("killed at %v", c.killed)
	}
}

// keptStatus waits until the state of an ended job in storage agrees with the API. The error
// describes the difference.
func keptStatus(ctx context.Context, store *s3.Store, id, state string, finished *string) (kept job.Status, err error) {
	for end := time.Now().Add(deadline); ; time.Sleep(5 * time.Millisecond) {
		kept, err = store.Status(ctx, job.ID(id))
		if err == nil && string(kept.State) == state && !kept.FinishedAt.IsZero() && finished != nil && *job.FormatTime(kept.FinishedAt) == *finished {
			return kept, nil
		}
		if time.Now().After(end) {
			return kept, cmp.Or(err, errors.New("another status"))
		}
	}
}

// The ledger is lost with the daemon and its sheep; `shepherdd recover` queues the jobs that
// had not ended again, and they are done.
func TestRecover(t *testing.T) {
	w := newWorld(t)
	w.start()
	store, err := s3.New(s3.Config{URL: w.s3, AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		t.Fatal(err)
	}
	gate := w.dir + "/gate"
	w.submit("ended", "echo:v1", "one")
	w.expectDone("ended", "one")
	w.submit("running", "echo:v1", "wait "+gate)
	w.submit("waiting", "echo:v1", "three")
	for id, want := range map[job.ID]job.State{"running": job.Processing, "waiting": job.Queued} {
		w.eventually("storage has the state of "+string(id), func() bool {
			kept, err := store.Status(t.Context(), id)
			return err == nil && kept.State == want
		})
	}
	w.kill()
	for pid := range w.processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	lost, err := filepath.Glob(w.dir + "/state/ledger.db*")
	if err != nil || len(lost) == 0 {
		t.Fatal(lost, err)
	}
	for _, file := range lost {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	write(t, gate, "")
	if got := w.must("recover"); !strings.Contains(got, "running\techo:v1\tqueued\nwaiting\techo:v1\tqueued\n2 jobs are queued again, 0 cannot be, 1 have ended") {
		t.Errorf("recover says %q", got)
	}
	w.start()
	w.expectDone("running", "wait "+gate)
	w.expectDone("waiting", "three")
	if got := w.result("ended"); got != "one" {
		t.Errorf("what had ended gave %q", got)
	}
	if out, err := w.command("recover"); err == nil || !strings.Contains(out, "another shepherdd") {
		t.Errorf("beside a daemon: %v: %s", err, out)
	}
}
