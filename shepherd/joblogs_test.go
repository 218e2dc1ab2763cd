package shepherd_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
)

func (p *fixture) jobLog(id string, q job.LogQuery) string {
	p.t.Helper()
	log, err := p.core.JobLogs(p.t.Context(), job.ID(id), q)
	if err != nil {
		p.t.Fatalf("log of %s: %v", id, err)
	}
	defer log.Close()
	text, err := io.ReadAll(log)
	if err != nil {
		p.t.Fatalf("log of %s: %v", id, err)
	}
	return string(text)
}

// What a runner tells of its work is seen with the job and the sheep, while it has
// the job and no longer.
func TestProgress(t *testing.T) {
	p := newFixture(t)
	told, goOn := make(chan struct{}), make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "job-a" {
			fake.Progress(ctx, 0.25, "a quarter")
			fake.Progress(ctx, 0.5, "half")
			close(told)
			<-goOn
		}
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("job-a", "m", "x")
	receive(t, told, "the job does not begin")
	var view job.View
	p.eventually("the job's progress is seen", func() bool {
		var err error
		if view, err = p.core.View(t.Context(), "job-a"); err != nil {
			t.Fatal(err)
		}
		return view.Progress != nil && view.Progress.Done == 0.5
	})
	if view.Progress.Text != "half" || view.Progress.At.IsZero() || view.Detail != "50 %: half" || view.Loading || view.RunningSince.IsZero() {
		t.Errorf("shown are %+v, %q", view.Progress, view.Detail)
	}
	sheep := p.core.Sheep(t.Context())[0]
	if sheep.Job != "job-a" || sheep.Progress == nil || sheep.Detail != "50 %: half" {
		t.Errorf("the sheep is %+v", sheep)
	}
	close(goOn)
	p.await("job-a", job.Done)
	p.submit("job-b", "m", "x")
	p.await("job-b", job.Done)
	for _, id := range []job.ID{"job-a", "job-b"} {
		if view, err := p.core.View(t.Context(), id); err != nil || view.Progress != nil || view.Detail != "" || view.Loading || !view.RunningSince.IsZero() {
			t.Errorf("%s: %+v, %q, loading %t, running since %v, %v", id, view.Progress, view.Detail, view.Loading, view.RunningSince, err)
		}
	}
}

// What happens to a runner under its job is told at once, and with the job's end.
func TestWarnings(t *testing.T) {
	p := newFixture(t)
	told, goOn := make(chan struct{}), make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		fake.Warn(ctx, "a child was killed")
		if in.JobID == "fails" {
			return errors.New("BrokenProcessPool")
		}
		close(told)
		<-goOn
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("does", "m", "x")
	receive(t, told, "the job does not begin")
	p.eventually("the warning is seen", func() bool {
		view, err := p.core.View(t.Context(), "does")
		return err == nil && view.Detail == "a child was killed"
	})
	close(goOn)
	p.await("does", job.Done)
	p.submit("fails", "m", "x")
	if s := p.await("fails", job.Failed); s.Failure.Message != "BrokenProcessPool (a child was killed)" {
		t.Errorf("the failure is %q", s.Failure.Message)
	}
	for _, id := range []job.ID{"does", "fails"} {
		if view, err := p.core.View(t.Context(), id); err != nil || len(view.Warnings) != 1 || view.Warnings[0] != "a child was killed" || view.Detail != "" {
			t.Errorf("%s: %q, %q, %v", id, view.Warnings, view.Detail, err)
		}
	}
}

// A job's log has the lines that the runner wrote while it had that job, whichever
// way the job ended, and after a restart of the daemon.
func TestJobLogs(t *testing.T) {
	p := newFixture(t)
	p.log = "of before\n"
	died := make(chan struct{}, 1)
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		fake.Print(ctx, string(in.JobID)+" 1")
		fake.Print(ctx, string(in.JobID)+" 2")
		switch in.JobID {
		case "fails":
			return errors.New("no")
		case "dies":
			select {
			case died <- struct{}{}:
				return &runtime.Exit{Code: 3}
			default:
			}
		}
		return echo(ctx, m, in)
	}
	p.start()
	once := 1
	p.submit("does", "m", "x")
	p.submit("fails", "m", "x")
	p.submit("dies", "m", "x", func(r *job.Request) { r.Limits.Retries = &once })
	p.await("does", job.Done)
	p.await("fails", job.Failed)
	p.await("dies", job.Done)
	check := func() {
		t.Helper()
		for id, want := range map[string]string{"does": "does 1\ndoes 2\n", "fails": "fails 1\nfails 2\n", "dies": "dies 1\ndies 2\ndies 1\ndies 2\n"} {
			if got := p.jobLog(id, job.LogQuery{Tail: -1}); got != want {
				t.Errorf("the log of %s is %q, want %q", id, got, want)
			}
		}
		if got := p.jobLog("dies", job.LogQuery{Tail: 1}); got != "dies 2\n" {
			t.Errorf("its last line is %q", got)
		}
		if got := p.jobLog("dies", job.LogQuery{Tail: 9, Follow: true}); got != "dies 1\ndies 2\n" {
			t.Errorf("the last lines of its last attempt are %q", got)
		}
	}
	check()
	p.stop()
	p.start()
	check()
	if _, err := p.core.JobLogs(t.Context(), "unknown", job.LogQuery{}); !errors.As(err, new(*job.UnknownJob)) {
		t.Errorf("got %v", err)
	}
}

// A follower is told the lines as they are written, through attempts and up to the
// end of the job, and none of another job.
func TestFollowJobLog(t *testing.T) {
	p := newFixture(t)
	p.log = "of before\n"
	say := make(chan string)
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if in.JobID == "next" {
			fake.Print(ctx, "another job's")
			return echo(ctx, m, in)
		}
		for line := range say {
			if line == "die" {
				return &runtime.Exit{Code: 3}
			}
			fake.Print(ctx, line)
		}
		return echo(ctx, m, in)
	}
	p.start()
	once := 1
	p.submit("job-a", "m", "x", func(r *job.Request) { r.Limits.Retries = &once })
	log, err := p.core.JobLogs(t.Context(), "job-a", job.LogQuery{Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	lines := bufio.NewScanner(log)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("read %q, %v, want %q", lines.Text(), lines.Err(), want)
		}
	}
	say <- "first"
	expect("first")
	say <- "second"
	say <- "die"
	expect("second")
	say <- "again"
	expect("again")
	p.submit("next", "m", "x")
	say <- "last"
	close(say)
	expect("last")
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the end came %q, %v", lines.Text(), lines.Err())
	}
	p.await("job-a", job.Done)
	p.await("next", job.Done)
}

// Following ends with its reader, and with its context.
func TestFollowJobLogIsLeft(t *testing.T) {
	p := newFixture(t)
	p.log = "of before\n"
	goOn := make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		fake.Print(ctx, "here")
		<-goOn
		return echo(ctx, m, in)
	}
	p.start()
	p.submit("job-a", "m", "x")
	for _, how := range []string{"closed", "cancelled"} {
		gone := errors.New("the client has left")
		ctx, cancel := context.WithCancelCause(t.Context())
		log, err := p.core.JobLogs(ctx, "job-a", job.LogQuery{Tail: -1, Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 5)
		if _, err := io.ReadFull(log, line); err != nil || string(line) != "here\n" {
			t.Fatalf("read %q, %v", line, err)
		}
		if how == "cancelled" {
			cancel(gone)
			if _, err := log.Read(line); !errors.Is(err, gone) {
				t.Errorf("Read ended with %v", err)
			}
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
		cancel(nil)
	}
	close(goOn)
	p.await("job-a", job.Done)
}

// Jobs of which no log is kept.
func TestNoJobLog(t *testing.T) {
	p := newFixture(t) // whose sheep keep none
	p.start()
	p.submit("job-a", "m", "x")
	p.await("job-a", job.Done)
	for _, follow := range []bool{false, true} {
		if _, err := p.core.JobLogs(t.Context(), "job-a", job.LogQuery{Tail: -1, Follow: follow}); !errors.Is(err, job.ErrNoJobLog) {
			t.Errorf("got %v", err)
		}
	}
}

// What a timeout quotes is what the runner wrote that was stopped, and not an
// earlier one of the sheep.
func TestQuotedLog(t *testing.T) {
	p := newFixture(t)
	p.log = "of before\n"
	p.deaf = func(m job.Model) bool { return m.Name == "deaf" }
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		fake.Print(ctx, "a line of "+string(in.JobID))
		if m.Name == "slow" {
			<-ctx.Done()
			return ctx.Err()
		}
		return echo(ctx, m, in)
	}
	p.start()
	limit := func(load, run time.Duration) func(*job.Request) {
		return func(r *job.Request) { r.Limits.LoadTimeout, r.Limits.RunTimeout = &load, &run }
	}
	p.submit("before", "m", "x")
	p.await("before", job.Done)
	p.submit("deaf", "deaf", "x", limit(20*time.Millisecond, time.Hour))
	if s := p.await("deaf", job.Failed); strings.Contains(s.Failure.Message, "log lines") || !strings.Contains(s.Failure.Message, "load_timeout") {
		t.Errorf("the failure is %q", s.Failure.Message)
	}
	p.inTime(time.Second, func(run time.Duration) (problem string) { // by when it has written its line
		id := "slow-" + run.String()
		p.submit(id, "slow", "x", limit(time.Hour, run))
		s := p.await(id, job.Failed)
		if strings.Contains(s.Failure.Message, "a line of before") {
			t.Errorf("the failure is %q", s.Failure.Message)
		}
		if !strings.Contains(s.Failure.Message, "last log lines: a line of "+id+")") {
			problem = s.Failure.Message
		}
		return problem
	})
}
