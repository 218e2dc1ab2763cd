package remote

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/job"
)

// Stages of a job, as they are shown.
const (
	stageUpload   = "upload"
	stageQueue    = "queue"
	stagePull     = "pull"
	stageLoad     = "load"
	stageRun      = "run"
	stageDownload = "download"
)

// display shows how far a job is: a bar for each stage on a terminal, elsewhere a line
// for each, and nothing where it is nil.
type display struct {
	to       io.Writer
	terminal bool
	now      func() time.Time

	mu       sync.Mutex
	progress *mpb.Progress // of a terminal, while a stage is shown
	bar      *mpb.Bar
	shown    *shown
	last     string          // the line that was printed last, where there is no terminal
	before   string          // the one before
	at       time.Time       // when the last was printed
	told     string          // why the last attempt ended that is to be followed by another
	since    map[string]bool // the lines printed since it was said
}

// shown is the stage that is shown.
type shown struct {
	name  string
	whole int64 // what the bar counts to; 0 where that is not known
	began time.Time

	mu    sync.Mutex
	text  string
	known bool // how much of it is done
}

// newDisplay returns a display on a stream, or nil.
func newDisplay(to io.Writer, quiet bool) *display {
	if quiet {
		return nil
	}
	return &display{to: to, terminal: isTerminal(to), now: time.Now}
}

// isTerminal reports whether bars can be drawn on a stream.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// job shows the stage that a job is in, and why it is tried again.
func (d *display) job(j client.Job) {
	stage, text, share := stageOf(j)
	if stage != "" {
		d.again(j)
	}
	if stage != "" {
		d.stage(stage, text, share)
	}
}

// again says why the last attempt ended at a job that has not, unless the one before ended
// for the same reason.
func (d *display) again(j client.Job) {
	if d == nil || len(deref(j.Attempts)) == 0 {
		return
	}
	last := (*j.Attempts)[len(*j.Attempts)-1]
	why, _, _ := strings.Cut(deref(last.Reason), "\n")
	d.mu.Lock()
	defer d.mu.Unlock()
	if last.Run != j.Run || why == "" || why == d.told {
		return
	}
	d.told, d.since = why, map[string]bool{}
	d.finish(dropped)
	fmt.Fprintf(d.to, "sheep %s: %s; the job is tried again\n", last.Sheep, strings.TrimSuffix(clean(why), "."))
}

// percent finds how much of something is done in what a sheep says of it.
var percent = regexp.MustCompile(`(\d{1,3}) ?%`)

// stageOf is what a job is at, in words and as a share; a negative share is unknown.
// The stage is empty for a job that has ended.
//
// What a sheep says of the model that it loads is known by its words. A runner's own report
// may have the same, and is of the run.
func stageOf(j client.Job) (stage, text string, share float64) {
	text, share = deref(j.Detail), -1
	if found := percent.FindStringSubmatch(text); found != nil {
		if n, err := strconv.Atoi(found[1]); err == nil && n <= 100 {
			share = float64(n) / 100
		}
	}
	if j.Progress != nil {
		share = j.Progress.Done
		text = cmp.Or(deref(j.Progress.Text), text)
	}
	switch {
	case j.Status.Final():
		return "", "", 0
	case j.Status == job.Queued && j.Sheep == nil:
		if text == "" && deref(j.Position) > 0 {
			text = fmt.Sprintf("number %d", *j.Position)
		}
		return stageQueue, text, -1
	case j.Progress != nil:
		return stageRun, text, share
	case beginsWith(text, "pulling", "unpacking", "asking the registry"):
		return stagePull, text, share
	case j.Status == job.Queued, beginsWith(text, "loading", "starting", "unloading", "waiting for"):
		return stageLoad, text, share
	}
	return stageRun, text, share
}

// beginsWith reports whether a text begins with one of some others.
func beginsWith(text string, with ...string) bool {
	return slices.ContainsFunc(with, func(w string) bool { return strings.HasPrefix(text, w) })
}

// lineEvery is the time between two lines of one stage.
const lineEvery = 10 * time.Second

// stage shows a stage: text says what is done, share how much of it, negative where
// that is not known.
func (d *display) stage(name, text string, share float64) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	text = clean(text)
	if !d.terminal {
		d.line(name, text)
		return
	}
	const whole = 1000
	d.begin(name, whole, text, share >= 0, decor.Any(func(decor.Statistics) string { return "" }))
	d.bar.SetCurrent(int64(min(max(share, 0), 1) * whole))
}

// line prints a line where the stage is new, or something has changed after a while. A
// job that goes back and forth between two stages is news as rarely; one that does so since
// it is tried again is none, until it is for another reason.
func (d *display) line(name, text string) {
	line := strings.TrimSuffix(name+": "+text, ": ")
	if d.since[line] {
		return
	}
	begun := strings.HasPrefix(d.last, name) && (len(d.last) == len(name) || d.last[len(name)] == ':')
	if now := d.now(); !begun && line != d.before || line != d.last && now.Sub(d.at) >= lineEvery {
		d.last, d.before, d.at = line, d.last, now
		if d.since != nil {
			d.since[line] = true
		}
		fmt.Fprintln(d.to, line)
	}
}

// begin shows a stage on the terminal, unless it is shown already.
func (d *display) begin(name string, total int64, text string, known bool, right decor.Decorator) {
	if d.shown != nil && d.shown.name == name {
		d.shown.mu.Lock()
		d.shown.text, d.shown.known = text, known
		d.shown.mu.Unlock()
		return
	}
	if d.told != "" {
		d.finish(dropped) // one bar for all tries that follow, rather than several for each
	} else {
		d.finish(done)
	}
	s := &shown{name: name, whole: total, began: d.now(), text: text, known: known}
	bar, spinner := mpb.BarStyle().Build(), mpb.SpinnerStyle().PositionLeft().Build()
	filler := mpb.BarFillerFunc(func(w io.Writer, stat decor.Statistics) error {
		s.mu.Lock()
		known := s.known
		s.mu.Unlock()
		if known || stat.Completed {
			return bar.Fill(w, stat)
		}
		return spinner.Fill(w, stat)
	})
	d.shown = s
	d.progress = mpb.New(mpb.WithOutput(d.to), mpb.WithWidth(30), mpb.WithAutoRefresh())
	// A bar that begins with a total ends when that is reached, and in no other way.
	d.bar = d.progress.MustAdd(0, filler,
		mpb.PrependDecorators(decor.Name(name, decor.WC{W: 10, C: decor.DindentRight})),
		mpb.AppendDecorators(right, decor.Any(func(decor.Statistics) string {
			s.mu.Lock()
			defer s.mu.Unlock()
			return " " + s.text
		})))
	d.bar.SetTotal(total, false)
}

// transfer shows a stage of bytes, total of them; negative where that is not known.
// The counter takes what passes.
func (d *display) transfer(name string, total int64) *counter {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.terminal {
		text := ""
		if total >= 0 {
			text = size.Text(total)
		}
		d.line(name, text)
		return nil
	}
	d.begin(name, max(total, 0), "", total >= 0, decor.Any(func(s decor.Statistics) string {
		if total < 0 {
			return " " + size.Text(s.Current)
		}
		return " " + size.Text(s.Current) + " of " + size.Text(s.Total)
	}))
	return &counter{bar: d.bar}
}

// counter counts the bytes of a transfer; nil counts nothing.
type counter struct{ bar *mpb.Bar }

func (c *counter) Write(p []byte) (int, error) {
	c.add(len(p))
	return len(p), nil
}

// add counts bytes.
func (c *counter) add(bytes int) {
	if c != nil {
		c.bar.IncrBy(bytes)
	}
}

// How the bar of a stage ends.
type ending int

const (
	done    ending = iota // it was got through, and took so long
	left                  // it stays as it was
	dropped               // it goes
)

// finish ends the stage that is shown.
func (d *display) finish(how ending) {
	if d.shown == nil {
		return
	}
	if how == done {
		if d.shown.whole > 0 {
			d.bar.SetCurrent(d.shown.whole)
		}
		d.shown.mu.Lock()
		d.shown.text = d.now().Sub(d.shown.began).Round(100 * time.Millisecond).String()
		d.shown.mu.Unlock()
		d.bar.SetTotal(-1, true)
	} else {
		d.bar.Abort(how == dropped)
	}
	d.progress.Wait()
	d.shown, d.bar, d.progress = nil, nil, nil
}

// end leaves the terminal as it was, below what was shown.
func (d *display) end() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finish(done)
}

// interrupted ends what is shown, so that something can be asked.
func (d *display) interrupted() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finish(left)
}

// pull shows how far the pull of a model is.
func (d *display) pull(p job.PullProgress) {
	text, share := p.Text, -1.0
	if p.Total > 0 {
		share = float64(p.Done) / float64(p.Total)
		if d != nil && d.terminal && p.Done < p.Total {
			text = fmt.Sprintf("%s of %s, %s/s", size.Text(p.Done), size.Text(p.Total), size.Text(int64(p.Rate)))
		}
	}
	d.stage(stagePull, text, share)
}
