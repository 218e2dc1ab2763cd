package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

func TestExitCode(t *testing.T) {
	for want, err := range map[int]error{
		0:               nil,
		ExitFailure:     io.EOF,
		ExitUsage:       usage("x"),
		ExitJobFailed:   outcome(client.Job{Status: job.Failed}),
		ExitCancelled:   outcome(client.Job{Status: job.Cancelled}),
		ExitNotFound:    errors.Join(io.EOF, &client.StatusError{Status: 404}),
		ExitUnreachable: Hint(&client.UnreachableError{Err: io.EOF}),
		ExitRefused:     &client.StatusError{Status: 403},
		ExitConflict:    &client.StatusError{Status: 409},
		ExitInterrupted: Hint(&client.UnreachableError{Err: context.Canceled}),
	} {
		if got := ExitCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
	if err := outcome(client.Job{Status: job.Done}); err != nil {
		t.Errorf("a job that is done: %v", err)
	}
}

// Columns are as wide as a terminal shows them, and nothing that a job says reaches the
// terminal as an order.
func TestTable(t *testing.T) {
	var out strings.Builder
	if err := (table{{"A", "B"}, {"日本", "x"}, {"e\u0301", "y\x1b[31m\nz"}}).print(&out); err != nil {
		t.Fatal(err)
	}
	if want := "A     B\n日本  x\ne\u0301     y [31m z\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestFindInputs(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"a", "in/b", "in/sub/c", "x=y", "empty/sub/.keep"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("12345"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Remove("empty/sub/.keep"), os.Mkdir("circle", 0o755), os.Symlink("../circle", "circle/again"), os.Mkdir("links", 0o755), os.Symlink("../a", "links/l")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args  string
		names string // empty: an error
		size  int64
	}{
		{"a in", "a b sub/c", 15},
		{"in/", "b sub/c", 10},
		{"here=in", "here/b here/sub/c", 10},
		{"new/name=a", "new/name", 5},
		{"x=y", "x=y", 5},
		{"links", "l", 5},
		{"- a", "a input", -1},
		{"name=-", "name", -1},
		{"- -", "", 0},
		{"a b=a a", "", 0},
		{"absent", "", 0},
		{"name=absent", "", 0},
		{"empty", "", 0},
		{"circle", "", 0},
	} {
		found, err := findInputs(strings.Fields(test.args))
		var names []string
		for _, f := range found.files {
			names = append(names, f.name)
		}
		if (err != nil) != (test.names == "") || strings.Join(names, " ") != test.names || err == nil && found.size != test.size {
			t.Errorf("%s: %v, %d bytes, %v", test.args, names, found.size, err)
		}
	}
}

// Nothing is written outside the directory, and no part of a file is left.
func TestWriteOutput(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/to", 0o755), os.Symlink("..", dir+"/to/up")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir + "/to")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, ok := range map[string]bool{"a/b": true, "c": true, "../d": false, "/e": false, "up/f": false, "": false, "a/../../g": false} {
		if err := writeOutput(root, name, strings.NewReader("x")); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := writeOutput(root, "c", io.MultiReader(strings.NewReader("y"), errorReader{})); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that breaks off: %v", err)
	}
	if text, err := os.ReadFile(dir + "/to/c"); string(text) != "x" || err != nil {
		t.Errorf("what was there is %q, %v", text, err)
	}
	var left []string
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if !d.IsDir() {
			left = append(left, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if want := []string{"to/a/b", "to/c", "to/up"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("there are %q, %v", left, err)
	}
}

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Where there is no terminal, there is a line for each stage, and one for news of a
// stage that lasts.
func TestDisplay(t *testing.T) {
	var out bytes.Buffer
	d := newDisplay(&out, false)
	now := time.Now()
	d.now = func() time.Time { return now }
	sheep, pull, unpack := "s", "pulling m: 3 %", "pulling m: 60 %"
	number := 7
	d.transfer(stageUpload, 2048)
	for _, j := range []client.Job{
		{Status: job.Queued, Position: &number},
		{Status: job.Queued, Sheep: &sheep, Detail: &pull},
		{Status: job.Processing, Sheep: &sheep, Detail: &unpack},
		{Status: job.Processing, Sheep: &sheep},
		{Status: job.Processing, Sheep: &sheep, Progress: &client.Progress{Done: 0.5}},
		{Status: job.Done},
	} {
		d.job(j)
		if j.Detail == &pull {
			now = now.Add(lineEvery)
		}
	}
	d.end()
	if want := "upload: 2.0 KiB\nqueue: number 7\npull: pulling m: 3 %\npull: pulling m: 60 %\nrun\n"; out.String() != want {
		t.Errorf("shown is %q", out.String())
	}
	var none *display
	none.stage("x", "", 0)
	none.end()
	if n, err := none.transfer("x", 1).Write([]byte("abc")); n != 3 || err != nil {
		t.Errorf("counted %d, %v", n, err)
	}
}

// TestTriedAgain shows a job whose attempts end for the sheep's reasons: each reason once,
// and no line for each time that it goes back to the queue.
func TestTriedAgain(t *testing.T) {
	var out bytes.Buffer
	d := newDisplay(&out, false)
	now := time.Now()
	d.now = func() time.Time { return now }
	away := "containerd's socket does not exist; install containerd\nand more"
	attempts := func(reasons ...*string) *[]client.Attempt {
		list := make([]client.Attempt, len(reasons))
		for i, reason := range reasons {
			list[i] = client.Attempt{Run: 2, Number: i + 1, Sheep: "dev", Reason: reason}
		}
		return &list
	}
	first := 1
	for _, j := range []client.Job{
		{Status: job.Queued, Position: &first, Attempts: &[]client.Attempt{{Run: 1, Sheep: "old", Reason: &away}}},
		{Status: job.Processing, Sheep: new("dev"), Attempts: attempts(nil)},
		{Status: job.Queued, Position: &first, Attempts: attempts(&away)},
		{Status: job.Processing, Sheep: new("dev"), Attempts: attempts(&away, nil)},
		{Status: job.Queued, Position: &first, Attempts: attempts(&away, &away)},
		{Status: job.Queued, Position: &first, Attempts: attempts(&away, new("the disk is full."))},
		{Status: job.Processing, Sheep: new("dev"), Attempts: attempts(&away, &away, new("the disk is full."))},
		{Status: job.Queued, Position: &first, Attempts: attempts(&away, &away, new("the disk is full."))},
		{Status: job.Processing, Sheep: new("dev"), Attempts: attempts(&away, &away, new("the disk is full."))},
		{Status: job.Failed, Attempts: attempts(&away, &away, &away)},
	} {
		j.Run = 2
		d.job(j)
		now = now.Add(lineEvery)
	}
	want := "queue: number 1\nrun\nsheep dev: containerd's socket does not exist; install containerd; the job is tried again\n" +
		"queue: number 1\nrun\nsheep dev: the disk is full; the job is tried again\nqueue: number 1\nrun\n"
	if out.String() != want {
		t.Errorf("shown is\n%swant\n%s", out.String(), want)
	}
}

// TestStages names the stage that a job is in.
func TestStages(t *testing.T) {
	text := func(s string) *string { return &s }
	for _, c := range []struct {
		j    client.Job
		want string
	}{
		{client.Job{Status: job.Queued}, stageQueue},
		{client.Job{Status: job.Queued, Sheep: text("s")}, stageLoad},
		{client.Job{Status: job.Processing, Detail: text("asking the registry for r/m:v")}, stagePull},
		{client.Job{Status: job.Processing, Detail: text("pulling r/m:v: 3%")}, stagePull},
		{client.Job{Status: job.Processing, Detail: text("unloading m:v: another model is needed")}, stageLoad},
		{client.Job{Status: job.Processing, Detail: text("waiting for port 9999")}, stageLoad},
		{client.Job{Status: job.Processing, Detail: text("waiting for port 9999"), Progress: &client.Progress{Done: 0.1, Text: text("loading pages")}}, stageRun},
		{client.Job{Status: job.Processing}, stageRun},
		{client.Job{Status: job.Done, Detail: text("pulling")}, ""},
	} {
		if stage, _, _ := stageOf(c.j); stage != c.want {
			t.Errorf("%s, %q: stage %q, want %q", c.j.Status, deref(c.j.Detail), stage, c.want)
		}
	}
}

// On a terminal each stage is a bar, which ends whether or not it was filled.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	d := newDisplay(&out, false)
	d.terminal = true
	count := d.transfer(stageUpload, 10)
	if _, err := count.Write([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	d.stage(stageQueue, "number 7", -1)
	d.stage(stageRun, "", -1)
	d.stage(stageRun, "half", 0.5)
	count = d.transfer("unknown", -1)
	if _, err := count.Write([]byte("1234567")); err != nil {
		t.Fatal(err)
	}
	d.transfer(stageDownload, 0)
	d.interrupted()
	d.stage(stageLoad, "", -1)
	d.end()
	d.end()
	for _, want := range []string{"upload     [", "10 B of 10 B", "queue      [=", "run        [=", "unknown ", " 7 B", "download ", "load "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

// The question is asked again until there is an answer; nothing to read is no.
func TestAsk(t *testing.T) {
	for in, want := range map[string]string{"y\n": "cancel", "YES": "cancel", "n\n": "leave", "w\n": "wait", "what\n\nwait\n": "wait", "": "leave"} {
		s := &session{err: io.Discard}
		if got := s.ask("?", bufio.NewReader(strings.NewReader(in))); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	interrupts := make(chan os.Signal, 1)
	interrupts <- os.Interrupt
	typed, terminal := io.Pipe()
	defer terminal.Close()
	s := &session{err: io.Discard, interrupts: interrupts}
	if got := s.ask("?", bufio.NewReader(typed)); got != "leave" {
		t.Errorf("a second interrupt: %s", got)
	}
}

func TestExpected(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	estimate := func(earliest, likely, latest time.Duration) *client.Estimate {
		return &client.Estimate{
			Earliest: job.FormatTime(now.Add(earliest)), Likely: job.FormatTime(now.Add(likely)), Latest: job.FormatTime(now.Add(latest)),
		}
	}
	for want, e := range map[string]*client.Estimate{
		"":                           nil,
		"about now":                  estimate(-2*time.Minute, -time.Minute, 400*time.Millisecond),
		"in about 2m0s (0s to 5m1s)": estimate(-time.Second, 2*time.Minute, 5*time.Minute+time.Second),
	} {
		if got := expected(e, now); got != want {
			t.Errorf("%+v is %q, not %q", e, got, want)
		}
	}
	var out bytes.Buffer
	if err := printStatus(&out, client.Job{JobId: "j", Status: job.Queued, ExpectedStart: estimate(time.Hour, 2*time.Hour, 3*time.Hour)}, ""); err != nil || !strings.Contains(out.String(), "To start:") || strings.Contains(out.String(), "To end:") {
		t.Errorf("the status is %q, %v", out.String(), err)
	}
}
