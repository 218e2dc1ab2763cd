package remote

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/job"
)

// topView is how the flock is, as top shows it.
type topView struct {
	now    func() time.Time
	colour bool

	flock *client.Flock
	gpus  *client.GPUList
	heard time.Time // when the daemon was heard of last
	lost  error     // why it is not heard of now
}

// take notes what has changed.
func (v *topView) take(c client.FlockChange) {
	if v.lost = c.Lost; c.Lost != nil {
		return
	}
	v.heard = v.now()
	if c.Flock != nil {
		v.flock = c.Flock
	}
	if c.GPUs != nil {
		v.gpus = c.GPUs
	}
}

// Kinds of text, by their colours; what they say is said by words, too.
const (
	plain   = ""
	heading = "1"  // bold
	faint   = "2"  // dim
	good    = "32" // green
	busy    = "36" // cyan
	caution = "33" // yellow
	bad     = "31" // red
)

// span is a part of a line.
type span struct{ text, kind string }

// topLine is a line of the screen.
type topLine []span

// text is the line without colours.
func (l topLine) text() string {
	var b strings.Builder
	for _, s := range l {
		b.WriteString(s.text)
	}
	return strings.TrimRight(b.String(), " ")
}

// fit is the line in at most width columns, with colours where they are wanted.
func (l topLine) fit(width int, colour bool) string {
	var b strings.Builder
	for _, s := range l {
		text := s.text
		if room := width; cells.StringWidth(text) > room {
			text = cells.Truncate(text, room, "…")
		}
		width -= cells.StringWidth(text)
		if colour && s.kind != plain && text != "" {
			text = "\x1b[" + s.kind + "m" + text + "\x1b[m"
		}
		b.WriteString(text)
		if width <= 0 {
			break
		}
	}
	return b.String()
}

// columns are rows of a table whose cells have kinds.
type columns [][]span

// lastColumn is how much room the last column of a table, which says why, has at least
// where leaving out others makes that room.
const lastColumn = 18

// lines aligns the columns, whose first row is the heading. Where width has no room for the
// last one, those of spare are left out, in this order; 0 has room for all.
func (c columns) lines(width int, spare ...int) []topLine {
	widths := c.widths()
	var out []int
	for taken := c.taken(widths); width > 0 && len(spare) > 0 && taken+min(lastColumn, widths[len(widths)-1]) > width; spare = spare[1:] {
		taken -= widths[spare[0]] + 2
		out = append(out, spare[0])
	}
	lines := make([]topLine, len(c))
	for r, row := range c {
		for i, cell := range row {
			if slices.Contains(out, i) {
				continue
			}
			if r == 0 {
				cell.kind = faint
			}
			if i < len(row)-1 {
				cell.text += strings.Repeat(" ", widths[i]-cells.StringWidth(cell.text)+2)
			}
			lines[r] = append(lines[r], cell)
		}
	}
	return lines
}

// taken is how much room all columns but the last take.
func (c columns) taken(widths []int) int {
	sum := 0
	for _, w := range widths[:len(widths)-1] {
		sum += w + 2
	}
	return sum
}

// widths are those of the columns.
func (c columns) widths() []int {
	var widths []int
	for _, row := range c {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], cells.StringWidth(cell.text))
		}
	}
	return widths
}

// head is the line at the top of a screen that has no room for as many lines above and below.
func (v *topView) head(above, below int) topLine {
	line := topLine{{"shepherd top", heading}, {"  ", plain}}
	switch {
	case v.lost != nil && v.heard.IsZero():
		return append(line, span{"no daemon yet: " + clean(v.lost.Error()), bad})
	case v.lost != nil:
		return append(line, span{"not heard of for " + spent(v.now().Sub(v.heard)) + ": " + clean(v.lost.Error()), bad})
	case v.flock == nil:
		return append(line, span{"waiting for the daemon", faint})
	}
	line = append(line, span{"live", good}, span{"  " + v.now().UTC().Format("15:04:05") + " UTC  q quits", faint})
	if above > 0 {
		line = append(line, span{fmt.Sprintf("  ↑%d", above), plain})
	}
	if below > 0 {
		line = append(line, span{fmt.Sprintf("  ↓%d", below), plain})
	}
	return line
}

// lines are all lines below the head, for a screen of this width; 0 is none, which has room
// for everything.
func (v *topView) lines(width int) []topLine {
	if v.flock == nil {
		return nil
	}
	lines := v.sheepLines(width)
	lines = append(lines, topLine{})
	lines = append(lines, v.queueLines(width)...)
	if v.gpus != nil && len(v.gpus.Gpus) > 0 {
		lines = append(lines, topLine{})
		lines = append(lines, v.gpuLines(width)...)
	}
	if trouble := cmp.Or(deref(v.flock.Trouble), v.gpuTrouble()); trouble != "" {
		lines = append(lines, topLine{}, topLine{{clean(trouble), caution}})
	}
	return lines
}

func (v *topView) gpuTrouble() string {
	if v.gpus == nil || len(v.gpus.Gpus)+len(v.gpus.Others) == 0 { // none is there to be in trouble
		return ""
	}
	return deref(v.gpus.Trouble)
}

// length is how many lines there are.
func (v *topView) length() int { return len(v.lines(0)) }

// screen is what a terminal of this size shows, from the line first on, which is brought
// within what there is.
func (v *topView) screen(width, height int, first *int) string {
	lines := v.lines(width)
	room := max(height-1, 0)
	*first = max(min(*first, len(lines)-room), 0)
	last := min(*first+room, len(lines))
	shown := []string{v.head(*first, len(lines)-last).fit(width, v.colour)}
	for _, line := range lines[*first:last] {
		shown = append(shown, line.fit(width, v.colour))
	}
	return strings.Join(shown, "\n")
}

// stateOfSheep is how a sheep is, in a word, the one that the page has for it.
func stateOfSheep(s client.Sheep) span {
	working := s.Job != nil || deref(s.Detail) == "busy"
	switch {
	case s.Condition == client.Blocked:
		return span{"out", bad}
	case s.Condition == client.Drained && working:
		return span{"draining", caution}
	case s.Condition != client.Able && (s.Condition != client.Resting || !working):
		return span{string(s.Condition), caution}
	case working && s.Running:
		return span{"working", busy}
	case working:
		return span{"preparing", busy}
	case s.Running:
		return span{"ready", good}
	}
	return span{"idle", faint}
}

func (v *topView) sheepLines(width int) []topLine {
	rows := columns{{{"SHEEP", faint}, {"STATE", faint}, {"MODEL", faint}, {"JOB", faint}, {"FOR", faint}, {"DETAIL", faint}}}
	counts := map[string]int{}
	var words []string
	for _, s := range v.flock.Sheep {
		state := stateOfSheep(ofFlock(s))
		if counts[state.text]++; counts[state.text] == 1 {
			words = append(words, state.text)
		}
		took := "-"
		if since, ok := moment(cmp.Or(deref(s.RunningSince), deref(s.StartedAt))); ok && s.Job != nil {
			took = spent(v.now().Sub(since))
			if s.Usual != nil && s.RunningSince != nil {
				took += " of ~" + spent(time.Duration(s.Usual.Likely*float64(time.Second)))
			}
		}
		detail := deref(s.Detail)
		if p := s.Progress; p != nil {
			detail = strings.TrimSpace(fmt.Sprintf("%.0f %% %s", 100*p.Done, deref(p.Text)))
		}
		rows = append(rows, []span{
			{clean(s.Name), plain}, state, {clean(cmp.Or(modelName(s.Model), "-")), plain}, {clean(cmp.Or(deref(s.Job), "-")), plain}, {took, plain}, {clean(detail), faint},
		})
	}
	title := topLine{{fmt.Sprintf("%d sheep", len(v.flock.Sheep)), heading}}
	for _, word := range words {
		title = append(title, span{fmt.Sprintf("  %d %s", counts[word], word), plain})
	}
	if len(v.flock.Sheep) == 0 {
		return []topLine{title}
	}
	return append([]topLine{title}, rows.lines(width, 4, 3)...) // without FOR and JOB
}

func (v *topView) queueLines(width int) []topLine {
	queue := v.flock.Queue
	more := ""
	if queue.More {
		more = "+"
	}
	title := topLine{{fmt.Sprintf("%d%s waiting", queue.Total, more), heading}}
	for _, group := range queue.Models {
		title = append(title, span{fmt.Sprintf("  %s %d", clean(group.Name), group.Jobs), plain})
	}
	if len(queue.Head) == 0 {
		return []topLine{title}
	}
	rows := columns{{{"#", faint}, {"JOB", faint}, {"MODEL", faint}, {"PRIORITY", faint}, {"STARTS", faint}, {"WHY", faint}}}
	for _, j := range queue.Head {
		position, starts := "-", "-"
		if j.Position != nil {
			position = strconv.Itoa(*j.Position)
		}
		if j.ExpectedStart != nil {
			if at, ok := moment(deref(j.ExpectedStart.Likely)); ok {
				starts = "soon"
				if left := at.Sub(v.now()); left > time.Second {
					starts = "in ~" + spent(left)
				}
			}
		}
		rows = append(rows, []span{
			{position, plain}, {clean(j.JobId), plain}, {clean(modelName(j.Model)), plain}, {strconv.Itoa(j.Priority), plain}, {starts, plain},
			{clean(strings.ReplaceAll(deref(j.Reason), "`", "")), faint},
		})
	}
	lines := append([]topLine{title}, rows.lines(width, 3, 2)...) // without PRIORITY and MODEL
	if behind := queue.Total - len(queue.Head); behind > 0 {
		lines = append(lines, topLine{{fmt.Sprintf("and %d%s behind these", behind, more), faint}})
	}
	return lines
}

// barWidth is how many columns show a GPU's memory.
const barWidth = 20

func (v *topView) gpuLines(width int) []topLine {
	title := topLine{{counted(len(v.gpus.Gpus), "GPU"), heading}}
	rows := columns{{{"GPU", faint}, {"MEMORY", faint}, {"", faint}, {"LOAD", faint}, {"TEMP", faint}, {"HEALTH", faint}, {"SHEEP", faint}}}
	for _, g := range v.gpus.Gpus {
		name := fmt.Sprintf("%d %s", g.Index, clean(g.Name))
		if g.Node != nil {
			name = clean(*g.Node) + " " + name
		}
		filled := 0
		if g.Memory > 0 {
			filled = int(min(max(g.Used*barWidth/g.Memory, 0), barWidth))
		}
		health := span{string(g.Health), good}
		if g.Health == client.Out {
			health.kind = bad
		}
		var sheep []string
		for _, s := range g.Sheep {
			sheep = append(sheep, clean(s.Name))
		}
		if g.Detail != nil {
			sheep = append(sheep, clean(*g.Detail))
		}
		rows = append(rows, []span{
			{name, plain}, {size.Text(g.Used) + " of " + size.Text(g.Memory), plain}, {strings.Repeat("#", filled) + strings.Repeat(".", barWidth-filled), busy},
			{orDash(g.Utilization, "%d %%"), plain}, {orDash(g.Temperature, "%d °C"), plain}, health, {strings.Join(sheep, ", "), plain},
		})
	}
	return append([]topLine{title}, rows.lines(width, 2, 4)...) // without the bar and TEMP
}

// moment reads a time of the API's.
func moment(text string) (time.Time, bool) {
	at, err := time.Parse("2006-01-02T15:04:05.999999", text)
	return at, err == nil
}

// spent is a duration for people, in whole seconds.
func spent(d time.Duration) string { return job.FormatDuration(max(d.Round(time.Second), 0)) }
