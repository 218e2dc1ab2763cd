package ledgertest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// machine makes the same calls to a ledger and to the reference.
type machine struct {
	*fixture
	reference *reference
	places    map[int64]int64 // the Seq in the ledger by the Seq in the reference
	last      ledger.Token
	tokens    []ledger.Token // all that were given out
}

func (s suite) machine(outer *testing.T, t *rapid.T, policy ledger.Policy) *machine {
	m := &machine{
		fixture:   newFixture(t, outer, s.newHarness(outer, Options{Policy: policy})),
		reference: newReference(policy),
		places:    map[int64]int64{},
	}
	t.Cleanup(m.close)
	return m
}

var (
	models       = []job.Model{red, blue, {Name: "red", Version: "2"}}
	drawSheep    = rapid.SampledFrom([]string{"a", "b", "c"})
	drawAddress  = rapid.SampledFrom([]string{"", "", "", "a", "b", "node/a", "@x=1"})
	drawOwn      = rapid.SampledFrom([][]string{nil, nil, {"node/a"}})
	drawOpen     = rapid.SampledFrom([][]string{nil, nil, {"@x=1"}, {"@x=2", "@x=1"}})
	drawModel    = rapid.SampledFrom(models)
	drawPrefer   = rapid.SampledFrom(append([]job.Model{{}, {}}, models...))
	drawExcept   = rapid.SampledFrom([][]job.Model{nil, nil, {red}, {blue, red}, models})
	drawPriority = rapid.SampledFrom([]int{0, 0, 0, 1, -1})
	drawTenant   = rapid.SampledFrom([]string{"", "", "wool", "meat"})
	drawCause    = rapid.SampledFrom([]job.Cause{job.CauseDone, job.CauseError, job.CauseHandedBack})
	drawLog      = rapid.SampledFrom([]string{"", "12:34/12:56"})
	drawOutcome  = rapid.SampledFrom([]ledger.Outcome{
		{State: job.Done, Warnings: []string{"w"}}, {State: job.Cancelled}, {State: job.Failed, Failure: &job.Failure{Message: "m"}},
	})
	drawUsage = rapid.SampledFrom([]job.Usage{{}, {GPUMemory: 1, GPUTime: time.Second}})
	// The zero time, one that has passed, or one after the end of the test.
	drawTime = rapid.SampledFrom([]time.Duration{0, 0, 0, 0, -time.Hour, longTime})
)

func timeIn(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return job.Now().Add(d)
}

func drawID(ids int) *rapid.Generator[job.ID] {
	return rapid.Custom(func(t *rapid.T) job.ID {
		return job.ID(fmt.Sprint("job", rapid.IntRange(0, ids-1).Draw(t, "id")))
	})
}

// drawAfter draws the jobs that a job is after: mostly none.
func drawAfter(ids int) *rapid.Generator[[]job.ID] {
	return rapid.Custom(func(t *rapid.T) []job.ID {
		if rapid.IntRange(0, 2).Draw(t, "after others") > 0 {
			return nil
		}
		return rapid.SliceOfNDistinct(drawID(ids), 1, 2, rapid.ID[job.ID]).Draw(t, "after")
	})
}

func (m *machine) doCreate(rec job.Record) {
	kept, err := m.Create(m.Context(), rec)
	want := m.reference.create(rec)
	m.checkAnswer("Create", err, want)
	if err == nil {
		m.places[m.reference.seq] = kept.Seq
	}
}

func (m *machine) doClaim(slot ledger.Slot) {
	before := m.reference.String()
	claim, err := m.Claim(m.Context(), slot)
	if err != nil {
		m.Fatalf("Claim: %v", err)
	}
	var token ledger.Token
	if claim != nil {
		token = claim.Token
		if token <= m.last {
			m.Fatalf("token %d after %d", token, m.last)
		}
		m.last = token
		m.tokens = append(m.tokens, token)
	}
	want := m.reference.claim(slot, token)
	if (claim == nil) != (want == nil) || claim != nil && claim.ID != want.ID {
		m.Fatalf("Claim(%+v) gave %s, want %s of%s", slot, name(claim), nameOf(want), before)
	}
	if claim != nil {
		m.compare(claim.Record)
	}
}

func name(c *ledger.Claim) string {
	if c == nil {
		return "nothing"
	}
	return string(c.ID)
}

func nameOf(j *referenceJob) string {
	if j == nil {
		return "nothing"
	}
	return string(j.ID)
}

// drawToken draws the token of the job's claim, or any other that was given out.
func (m *machine) drawToken(t *rapid.T, id job.ID) ledger.Token {
	if j := m.reference.find(id); j != nil && j.token != 0 && rapid.IntRange(0, 4).Draw(t, "stale") > 0 {
		return j.token
	}
	return rapid.SampledFrom(append([]ledger.Token{0, 1 << 40}, m.tokens...)).Draw(t, "token")
}

// drawClaimed draws the id of a claimed job, or any id where there is none.
func (m *machine) drawClaimed(t *rapid.T, ids int) job.ID {
	var claimed []job.ID
	for _, j := range m.reference.jobs {
		if j.token != 0 {
			claimed = append(claimed, j.ID)
		}
	}
	if len(claimed) == 0 || rapid.IntRange(0, 9).Draw(t, "any") == 0 {
		return drawID(ids).Draw(t, "id")
	}
	return rapid.SampledFrom(claimed).Draw(t, "claimed")
}

func (m *machine) checkAnswer(what string, got, want error) {
	m.Helper()
	var after, wanted *ledger.AfterError
	if errors.As(want, &wanted) {
		if !errors.As(got, &after) || *after != *wanted {
			m.Fatalf("%s answered %v, want %v", what, got, want)
		}
		return
	}
	if want == nil && got != nil || want != nil && !errors.Is(got, want) {
		m.Fatalf("%s answered %v, want %v", what, got, want)
	}
}

// checkRecord compares the record that a change returned.
func (m *machine) checkRecord(what string, got job.Record, err, want error) {
	m.Helper()
	m.checkAnswer(what, err, want)
	// A job whose waiting time is over may have failed in the reference.
	if err == nil && m.reference.find(got.ID).State == got.State {
		m.compare(got)
	}
}

// compare fails the test unless the ledger's record is the reference's.
func (m *machine) compare(got job.Record) {
	m.Helper()
	j := m.reference.find(got.ID)
	if j == nil {
		m.Fatalf("the ledger has %s, the reference does not", got.ID)
		return
	}
	want := j.Record
	want.Seq = m.places[j.Seq]
	want.EnqueuedAt, want.StartedAt, want.FinishedAt = got.EnqueuedAt, got.StartedAt, got.FinishedAt
	if got.Failure != nil && want.Failure != nil && want.Failure.Message == "" {
		want.Failure = got.Failure // the ledger's own words
	}
	m.checkSame("record", got, want)
	if got.FinishedAt.IsZero() == got.State.Final() || got.EnqueuedAt.IsZero() ||
		got.State == job.Processing && got.StartedAt.IsZero() || got.State == job.Queued && !got.StartedAt.IsZero() ||
		!got.StartedAt.IsZero() && got.StartedAt.Before(got.EnqueuedAt) || got.State.Final() && got.FinishedAt.Before(got.StartedAt) {
		m.Fatalf("times of %s", show(got))
	}
}

// compareEvents reads the events that the ledger recorded, and waits for those
// that it has to record by itself.
func (m *machine) compareEvents() {
	m.Helper()
	hung := time.After(patience)
	for len(m.reference.events) > 0 {
		changed := m.Changed()
		for _, got := range m.read() {
			if len(m.reference.events) == 0 {
				m.Fatalf("event %+v of nothing", got)
			}
			at := m.reference.next(got)
			want := m.reference.events[at]
			m.reference.events = slices.Delete(m.reference.events, at, at+1)
			if (got.Status != nil) != (got.Kind == job.EventEnded) || got.Status != nil && got.Status.State != got.State {
				m.Fatalf("event %+v, status %+v", got, got.Status)
			}
			got.Status = nil
			if want.Kind == job.EventEnded && want.Reason == "" {
				got.Reason = "" // the ledger's own words
			}
			checkEvent(m, got, want)
		}
		if len(m.reference.events) == 0 {
			break
		}
		select {
		case <-changed:
		case <-hung:
			m.Fatalf("no events %+v came", m.reference.events)
		}
	}
	clear(m.reference.loose)
	if more := m.read(); len(more) > 0 {
		m.Fatalf("events %+v of nothing", more)
	}
}

// compareAll compares all that can be read.
func (m *machine) compareAll() {
	m.Helper()
	m.compareEvents()
	records := m.list(ledger.Filter{}, 100)
	if len(records) != len(m.reference.jobs) {
		m.Fatalf("%d records, want %d:%s", len(records), len(m.reference.jobs), m.reference)
	}
	for i, got := range records {
		if got.ID != m.reference.jobs[i].ID {
			m.Fatalf("%s is in place %d, want %s", got.ID, i, m.reference.jobs[i].ID)
		}
		m.compare(got)
		m.compareAttempts(m.reference.jobs[i])
	}
	counts, want := m.count(), m.reference.counts()
	for _, state := range []job.State{job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled} {
		if counts[state] != want[state] {
			m.Fatalf("counts are %v, want %v", counts, want)
		}
	}
	m.compareWaiting(records)
	m.compareLoad()
	for _, node := range nodes {
		m.compareHeld(node)
	}
}

func (m *machine) compareAttempts(j *referenceJob) {
	m.Helper()
	got, want := m.attempts(string(j.ID)), m.reference.attempts(j)
	for i := range got {
		if got[i].Began.IsZero() || got[i].Ended.IsZero() != (got[i].Cause == "") || !got[i].Ended.IsZero() && got[i].Ended.Before(latest(got[i].Began, got[i].Started)) {
			m.Fatalf("times of attempt %+v", got[i])
		}
		got[i].Began, got[i].Started, got[i].Ended = time.Time{}, time.Time{}, time.Time{}
	}
	if !slices.Equal(got, want) {
		m.Fatalf("attempts of %s:\n got %+v\nwant %+v", j.ID, got, want)
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (m *machine) compareHeld(node string) {
	m.Helper()
	held, err := m.Held(m.Context(), node)
	if err != nil {
		m.Fatalf("Held: %v", err)
	}
	var want []*referenceJob
	for _, j := range m.reference.jobs {
		if j.token != 0 && j.Node == node {
			want = append(want, j)
		}
	}
	slices.SortFunc(want, func(a, b *referenceJob) int { return cmp.Compare(a.token, b.token) })
	if len(held) != len(want) {
		m.Fatalf("%d claims are held, want %d", len(held), len(want))
	}
	for i, c := range held {
		if c.ID != want[i].ID || c.Token != want[i].token {
			m.Fatalf("Held has %s with token %d, want %s with %d", c.ID, c.Token, want[i].ID, want[i].token)
		}
		m.compare(c.Record)
	}
}

// compareWaiting compares the groups of waiting jobs with what the records say.
func (m *machine) compareWaiting(records []job.Record) {
	m.Helper()
	type group struct {
		model job.Model
		sheep string
	}
	want := map[group]ledger.Waiting{}
	for _, r := range records {
		if r.State != job.Queued || r.Holder != "" || r.Blocked || r.NotBefore.After(time.Now()) {
			continue
		}
		k := group{r.Model, r.Sheep}
		w, ok := want[k]
		if !ok {
			w = ledger.Waiting{Model: r.Model, Sheep: r.Sheep, Oldest: r.EnqueuedAt}
		}
		w.Jobs++
		want[k] = w
	}
	got, err := m.Waiting(m.Context(), 100)
	if err != nil || len(got) != len(want) {
		m.Fatalf("Waiting gave %+v, %v; want %+v", got, err, want)
	}
	for i, w := range got {
		if w != want[group{w.Model, w.Sheep}] || i > 0 && w.Jobs > got[i-1].Jobs {
			m.Fatalf("Waiting gave %+v; want %+v", got, want)
		}
	}
}

// testModel makes any calls in any order and compares every answer, every event
// and every attempt, across closes and kills.
func (s suite) testModel(t *testing.T) {
	const jobs = 10
	policies := []ledger.Policy{{}, limits(t)}
	rapid.Check(t, func(r *rapid.T) {
		m := s.machine(t, r, policies[rapid.IntRange(0, 1).Draw(r, "policy")])
		rarely := func(r *rapid.T) {
			if rapid.IntRange(0, 4).Draw(r, "really") > 0 {
				r.Skip("rarely enough")
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				m.doCreate(job.Record{
					ID: drawID(jobs).Draw(r, "id"), Tenant: drawTenant.Draw(r, "tenant"), Model: drawModel.Draw(r, "model"),
					Sheep: drawAddress.Draw(r, "address"), Priority: drawPriority.Draw(r, "priority"), After: drawAfter(jobs).Draw(r, "after"),
					NotBefore: timeIn(drawTime.Draw(r, "not before")), WaitUntil: timeIn(drawTime.Draw(r, "wait until")), Deadline: timeIn(drawTime.Draw(r, "deadline")),
				})
			},
			"claim": func(r *rapid.T) {
				slot := ledger.Slot{
					Node: rapid.SampledFrom(nodes).Draw(r, "node"), Sheep: drawSheep.Draw(r, "sheep"),
					Own: drawOwn.Draw(r, "own"), Open: drawOpen.Draw(r, "open"),
					Prefer: drawPrefer.Draw(r, "prefer"), Except: drawExcept.Draw(r, "except"),
					Ahead: rapid.Bool().Draw(r, "ahead"), Addressed: rapid.IntRange(0, 3).Draw(r, "addressed") == 0,
				}
				if rapid.IntRange(0, 5).Draw(r, "by name") == 0 {
					slot.Only = drawID(jobs).Draw(r, "only")
				}
				m.doClaim(slot)
			},
			"start": func(r *rapid.T) {
				id := m.drawClaimed(r, jobs)
				token := m.drawToken(r, id)
				rec, err := m.Start(m.Context(), id, token)
				m.checkRecord("Start", rec, err, m.reference.start(id, token))
			},
			"finish": func(r *rapid.T) {
				id := m.drawClaimed(r, jobs)
				token := m.drawToken(r, id)
				outcome := drawOutcome.Draw(r, "outcome")
				outcome.Cause, outcome.Reason, outcome.Usage = drawCause.Draw(r, "cause"), "r", drawUsage.Draw(r, "usage")
				outcome.Log = drawLog.Draw(r, "log")
				rec, err := m.Finish(m.Context(), id, token, outcome)
				m.checkRecord("Finish", rec, err, m.reference.finish(id, token, outcome))
			},
			"release": func(r *rapid.T) {
				id := m.drawClaimed(r, jobs)
				token := m.drawToken(r, id)
				why := ledger.Return{
					Cause: drawCause.Draw(r, "cause"), Reason: "r", Spent: rapid.Bool().Draw(r, "spent"),
					NotBefore: timeIn(drawTime.Draw(r, "not before")), Usage: drawUsage.Draw(r, "usage"), Log: drawLog.Draw(r, "log"),
				}
				rec, err := m.Release(m.Context(), id, token, why)
				m.checkRecord("Release", rec, err, m.reference.release(id, token, why))
			},
			"cancel": func(r *rapid.T) {
				id := drawID(jobs).Draw(r, "id")
				rec, err := m.Cancel(m.Context(), id)
				m.checkRecord("Cancel", rec, err, m.reference.cancel(id))
			},
			"reopen": func(r *rapid.T) { rarely(r); m.reopen() },
			"crash":  func(r *rapid.T) { rarely(r); m.crash() },
			"":       func(*rapid.T) { m.compareAll() },
		})
	})
}
