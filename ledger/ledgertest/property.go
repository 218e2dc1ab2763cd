package ledgertest

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// machine drives a ledger and the reference side by side.
type machine struct {
	*fixture
	reference *reference
	places    map[int64]int64 // the ledger's place of each of the reference's
	last      ledger.Token
	tokens    []ledger.Token // all that were given out
}

func (s suite) machine(outer *testing.T, t *rapid.T, bound int) *machine {
	harness := s.newHarness(outer, Options{MaxOvertakes: bound})
	m := &machine{
		fixture:   &fixture{tb: t, outer: outer, harness: harness, Ledger: harness.Open(outer)},
		reference: &reference{maxOvertakes: bound},
		places:    map[int64]int64{},
	}
	t.Cleanup(m.close)
	return m
}

var (
	drawSheep    = rapid.SampledFrom([]string{"a", "b", "c"})
	drawAddress  = rapid.SampledFrom([]string{"", "", "", "a", "b"})
	drawModel    = rapid.SampledFrom([]job.Model{red, blue, {Name: "red", Version: "2"}})
	drawLoaded   = rapid.SampledFrom([]job.Model{red, blue, {Name: "red", Version: "2"}, {}})
	drawPriority = rapid.SampledFrom([]int{0, 0, 0, 1, -1})
)

func drawID(ids int) *rapid.Generator[job.ID] {
	return rapid.Custom(func(t *rapid.T) job.ID {
		return job.ID(fmt.Sprint("job", rapid.IntRange(0, ids-1).Draw(t, "id")))
	})
}

func (m *machine) doCreate(rec job.Record) {
	kept, err := m.Create(m.Context(), rec)
	want := m.reference.create(rec)
	m.checkAnswer("Create", err, want)
	if err == nil {
		m.places[m.reference.seq] = kept.Seq
		m.compare(kept)
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
	for _, j := range m.reference.jobs {
		if j.overtaken > m.reference.maxOvertakes {
			m.Fatalf("%s was overtaken %d times, at most %d are allowed:%s", j.ID, j.overtaken, m.reference.maxOvertakes, before)
		}
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

// drawToken is the token of the job's claim, or any other there ever was.
func (m *machine) drawToken(t *rapid.T, id job.ID) ledger.Token {
	if j := m.reference.find(id); j != nil && j.token != 0 && rapid.IntRange(0, 4).Draw(t, "stale") > 0 {
		return j.token
	}
	return rapid.SampledFrom(append([]ledger.Token{0, 1 << 40}, m.tokens...)).Draw(t, "token")
}

// drawClaimed is the id of a claimed job, or any id where there is none.
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
	if want == nil && got != nil || want != nil && !errors.Is(got, want) {
		m.Fatalf("%s answered %v, want %v", what, got, want)
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
	m.checkSame("record", timeless(got), want)
	if got.FinishedAt.IsZero() == got.State.Final() || got.EnqueuedAt.IsZero() ||
		got.State == job.Processing && got.StartedAt.IsZero() || got.State == job.Queued && !got.StartedAt.IsZero() {
		m.Fatalf("times of %s", show(got))
	}
}

// compareAll compares all that can be read.
func (m *machine) compareAll() {
	m.Helper()
	records := m.list(ledger.Filter{}, 100)
	if len(records) != len(m.reference.jobs) {
		m.Fatalf("%d records, want %d:%s", len(records), len(m.reference.jobs), m.reference)
	}
	for i, got := range records {
		if got.ID != m.reference.jobs[i].ID {
			m.Fatalf("%s is in place %d, want %s", got.ID, i, m.reference.jobs[i].ID)
		}
		m.compare(got)
	}
	counts, want := m.count(), m.reference.counts()
	for _, state := range []job.State{job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled} {
		if counts[state] != want[state] {
			m.Fatalf("counts are %v, want %v", counts, want)
		}
	}
	m.compareWaiting(records)
	held, err := m.Held(m.Context(), "node")
	if err != nil {
		m.Fatalf("Held: %v", err)
	}
	tokens := map[ledger.Token]job.ID{}
	for _, j := range m.reference.jobs {
		if j.token != 0 {
			tokens[j.token] = j.ID
		}
	}
	var last ledger.Token
	for _, c := range held {
		if tokens[c.Token] != c.ID || c.Token <= last {
			m.Fatalf("Held has %s with token %d after token %d:%s", c.ID, c.Token, last, m.reference)
		}
		last = c.Token
	}
	if len(held) != len(tokens) {
		m.Fatalf("%d claims are held, want %d", len(held), len(tokens))
	}
}

// compareWaiting compares the kinds of waiting jobs with what the records say.
func (m *machine) compareWaiting(records []job.Record) {
	m.Helper()
	type kind struct {
		sheep    string
		priority int
	}
	want := map[kind]ledger.Waiting{}
	for _, r := range records {
		if r.State != job.Queued || r.Holder != "" {
			continue
		}
		k := kind{r.Sheep, r.Priority}
		w, ok := want[k]
		if !ok || r.EnqueuedAt.Before(w.Oldest) {
			w.Oldest = r.EnqueuedAt
		}
		want[k] = ledger.Waiting{Sheep: r.Sheep, Priority: r.Priority, Jobs: w.Jobs + 1, Oldest: w.Oldest}
	}
	got, err := m.Waiting(m.Context(), 100)
	if err != nil || len(got) != len(want) {
		m.Fatalf("Waiting gave %+v, %v; want %+v", got, err, want)
	}
	for _, w := range got {
		if w != want[kind{w.Sheep, w.Priority}] {
			m.Fatalf("Waiting gave %+v; want %+v", got, want)
		}
	}
}

// testModel makes any calls in any order and compares every answer.
func (s suite) testModel(t *testing.T) {
	const jobs = 10
	rapid.Check(t, func(r *rapid.T) {
		m := s.machine(t, r, rapid.IntRange(0, 3).Draw(r, "MaxOvertakes"))
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				m.doCreate(job.Record{ID: drawID(jobs).Draw(r, "id"), Tenant: rapid.SampledFrom([]string{"", "", "wool", "meat"}).Draw(r, "tenant"), Model: drawModel.Draw(r, "model"),
					Sheep: drawAddress.Draw(r, "address"), Priority: drawPriority.Draw(r, "priority")})
			},
			"claim": func(r *rapid.T) {
				slot := ledger.Slot{Node: "node", Sheep: drawSheep.Draw(r, "sheep"), Loaded: drawLoaded.Draw(r, "loaded"),
					Ahead: rapid.Bool().Draw(r, "ahead"), Addressed: rapid.IntRange(0, 3).Draw(r, "addressed") == 0}
				if rapid.IntRange(0, 5).Draw(r, "by name") == 0 {
					slot.Only = drawID(jobs).Draw(r, "only")
				}
				m.doClaim(slot)
			},
			"start": func(r *rapid.T) {
				id := m.drawClaimed(r, jobs)
				token := m.drawToken(r, id)
				_, err := m.Start(m.Context(), id, token)
				m.checkAnswer("Start", err, m.reference.start(id, token))
			},
			"finish": func(r *rapid.T) {
				id := m.drawClaimed(r, jobs)
				token := m.drawToken(r, id)
				outcome := rapid.SampledFrom([]ledger.Outcome{{State: job.Done}, {State: job.Cancelled}, {State: job.Failed, Failure: &job.Failure{Message: "m"}}}).Draw(r, "outcome")
				_, err := m.Finish(m.Context(), id, token, outcome)
				m.checkAnswer("Finish", err, m.reference.finish(id, token, outcome))
			},
			"release": func(r *rapid.T) {
				id := m.drawClaimed(r, jobs)
				token := m.drawToken(r, id)
				unspent := rapid.Bool().Draw(r, "unspent")
				m.checkAnswer("Release", m.Release(m.Context(), id, token, unspent), m.reference.release(id, token, unspent))
			},
			"cancel": func(r *rapid.T) {
				id := drawID(jobs).Draw(r, "id")
				_, err := m.Cancel(m.Context(), id)
				m.checkAnswer("Cancel", err, m.reference.cancel(id))
			},
			"reopen": func(r *rapid.T) {
				if rapid.IntRange(0, 4).Draw(r, "really") > 0 {
					r.Skip("rarely enough")
				}
				m.reopen()
			},
			"": func(*rapid.T) { m.compareAll() },
		})
	})
}

// testModelOvertaking queues many jobs of few models and lets slots that have
// them loaded work them off while some are put back, cancelled and added: what
// brings jobs to their bound most.
func (s suite) testModelOvertaking(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := s.machine(t, r, rapid.IntRange(0, 4).Draw(r, "MaxOvertakes"))
		next := 0
		add := func() {
			m.doCreate(job.Record{ID: job.ID(fmt.Sprint("job", next)), Model: drawModel.Draw(r, "model"), Sheep: drawAddress.Draw(r, "address")})
			next++
		}
		for range rapid.IntRange(5, 25).Draw(r, "jobs") {
			add()
		}
		for range rapid.IntRange(10, 50).Draw(r, "claims") {
			m.doClaim(ledger.Slot{Node: "node", Sheep: drawSheep.Draw(r, "sheep"), Loaded: drawLoaded.Draw(r, "loaded"),
				Ahead: true, Addressed: rapid.IntRange(0, 3).Draw(r, "addressed") == 0})
			switch rapid.IntRange(0, 5).Draw(r, "then") {
			case 0, 1:
				id := m.drawClaimed(r, next)
				token := m.drawToken(r, id)
				m.checkAnswer("Release", m.Release(m.Context(), id, token, true), m.reference.release(id, token, true))
			case 2:
				add()
			case 3:
				id := drawID(next).Draw(r, "id")
				_, err := m.Cancel(m.Context(), id)
				m.checkAnswer("Cancel", err, m.reference.cancel(id))
			}
		}
		m.compareAll()
	})
}
