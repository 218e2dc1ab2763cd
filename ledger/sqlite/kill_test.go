package sqlite

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// killEnv makes the test binary the process that TestKilled kills: it names the
// ledger to work on.
const killEnv = "SHEPHERD_TEST_LEDGER_TO_KILL"

const killNode = "node"

// workUntilKilled creates, claims and ends jobs in many goroutines without end. It prints a
// line after each change that was acknowledged, and one before it releases or ends a claim.
func workUntilKilled(path string) int {
	ctx := context.Background()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l, err := Open(ctx, Config{Path: path})
	if err != nil {
		return fail(err)
	}
	held, err := l.Held(ctx, killNode)
	if err != nil {
		return fail(err)
	}
	for _, c := range held {
		if _, err := l.Release(ctx, c.ID, c.Token, ledger.Return{Cause: job.CauseInterrupted, Spent: true}); err != nil {
			return fail(err)
		}
	}
	failed := make(chan error)
	for w := range 6 {
		go func() { failed <- work(ctx, l, w) }()
	}
	return fail(<-failed)
}

func work(ctx context.Context, l *Ledger, w int) error {
	// A line is one write, so lines of several goroutines do not mix.
	say := func(format string, args ...any) { fmt.Fprintf(os.Stdout, format+"\n", args...) }
	for i := 0; ; i++ {
		rec := job.Record{ID: job.ID(fmt.Sprintf("job-%d-%d-%d", os.Getpid(), w, i)), Priority: i % 3}
		if _, err := l.Create(ctx, rec); err != nil {
			return err
		}
		say("created %s", rec.ID)
		c, err := l.Claim(ctx, ledger.Slot{Node: killNode, Sheep: fmt.Sprint("sheep", w), Ahead: i%2 == 0})
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		say("claimed %s %d", c.ID, c.Token)
		switch i % 5 {
		case 3:
			say("releasing %s %d", c.ID, c.Token)
			if _, err := l.Release(ctx, c.ID, c.Token, ledger.Return{Cause: job.CauseHandedBack}); err != nil {
				return err
			}
		case 4: // still held after the kill
		default:
			say("ending %s %d", c.ID, c.Token)
			if _, err := l.Finish(ctx, c.ID, c.Token, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: fmt.Sprint(c.Token)}, Cause: job.CauseError}); err != nil {
				return err
			}
			say("ended %s %d", c.ID, c.Token)
		}
	}
}

// TestKilled kills a process that works on a ledger, repeatedly: the ledger has every
// change that was acknowledged.
func TestKilled(t *testing.T) {
	t.Parallel()
	const rounds = 25
	path := filepath.Join(t.TempDir(), "ledger.db")
	seen := acknowledged{created: map[job.ID]bool{}, held: map[job.ID]ledger.Token{}, ended: map[job.ID]ledger.Token{}}
	for round := range rounds {
		seen.round(t, path, rand.IntN(150)+1)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if len(seen.ended) == 0 {
		t.Fatal("no job ended: nothing was tested")
	}
	t.Logf("%d jobs created, %d ended", len(seen.created), len(seen.ended))
}

// acknowledged are the changes that were acknowledged to the processes killed so far.
type acknowledged struct {
	created map[job.ID]bool
	held    map[job.ID]ledger.Token // of which no release or end was begun
	ended   map[job.ID]ledger.Token
	highest ledger.Token // given out in earlier rounds
}

// round starts a process, kills it after it has printed so many lines, and checks the
// ledger.
func (a *acknowledged) round(t *testing.T, path string, lines int) {
	t.Helper()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), killEnv+"="+path)
	var complaints strings.Builder
	process.Stderr = &complaints
	output, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	clear(a.held) // the process begins by releasing the claims of the last one
	highest := a.highest
	said := bufio.NewScanner(output)
	for n := 0; said.Scan(); n++ { // lines that it printed while it was killed count, too
		highest = max(highest, a.note(t, said.Text()))
		if n == lines {
			process.Process.Kill()
		}
	}
	a.highest = highest
	process.Wait()
	if complaints.Len() > 0 {
		t.Fatalf("the process failed by itself: %s", complaints.String())
	}
	a.check(t, path)
}

// note records a line and returns the token in it.
func (a *acknowledged) note(t *testing.T, line string) ledger.Token {
	t.Helper()
	var what string
	var id job.ID
	var token ledger.Token
	fmt.Sscan(line, &what, &id, &token)
	switch what {
	case "created":
		a.created[id] = true
	case "claimed":
		if token <= a.highest {
			t.Errorf("token %d was given out again", token)
		}
		if _, ended := a.ended[id]; ended {
			t.Errorf("%s was claimed after it ended", id)
		}
		a.held[id] = token
	case "releasing", "ending": // from here on it may be held or not
		delete(a.held, id)
	case "ended":
		if other, twice := a.ended[id]; twice {
			t.Errorf("%s ended twice, by tokens %d and %d", id, other, token)
		}
		a.ended[id] = token
	default:
		t.Fatalf("the process says %q", line)
	}
	return token
}

func (a *acknowledged) check(t *testing.T, path string) {
	t.Helper()
	l, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for id := range a.created {
		if _, err := l.Get(t.Context(), id); err != nil {
			t.Errorf("created, then lost: %v", err)
		}
	}
	for id, token := range a.ended {
		rec, err := l.Get(t.Context(), id)
		if err != nil || rec.State != job.Failed || rec.Failure.Message != fmt.Sprint(token) {
			t.Errorf("%s ended by token %d, found %+v, %v", id, token, rec, err)
		}
	}
	a.checkEvents(t, l)
	claims, err := l.Held(t.Context(), killNode)
	if err != nil {
		t.Fatal(err)
	}
	found := map[job.ID]ledger.Token{}
	for _, c := range claims {
		found[c.ID] = c.Token
	}
	for id, token := range a.held {
		if found[id] != token {
			t.Errorf("%s was held by token %d, found held by %d", id, token, found[id])
		}
	}
}

// checkEvents replays the events: they lead to the records as they are, and the
// attempts that ended are kept.
func (a *acknowledged) checkEvents(t *testing.T, l *Ledger) {
	t.Helper()
	states := map[job.ID]job.State{}
	returned := map[job.ID]int{}
	for at := job.Cursor(""); ; {
		events, next, err := l.Events(t.Context(), at, ledger.EventFilter{}, 500)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			break
		}
		at = next
		for _, event := range events {
			if before := states[event.Job]; before.Final() || (before == "") != (event.Kind == job.EventQueued) {
				t.Errorf("%s was %q when it was %s", event.Job, before, event.Kind)
			}
			states[event.Job] = event.State
			if event.Kind == job.EventReturned || event.Kind == job.EventEnded {
				returned[event.Job]++
			}
		}
	}
	records, _, err := l.List(t.Context(), ledger.Filter{}, 0, 1_000_000)
	if err != nil || len(records) != len(states) {
		t.Errorf("%d records, %v; events of %d", len(records), err, len(states))
	}
	for _, rec := range records {
		attempts, err := l.Attempts(t.Context(), rec.ID)
		if err != nil || states[rec.ID] != rec.State {
			t.Errorf("%s is %s, its events say %s, %v", rec.ID, rec.State, states[rec.ID], err)
		}
		ended := 0
		for _, attempt := range attempts {
			if !attempt.Ended.IsZero() {
				ended++
			}
		}
		if ended != min(returned[rec.ID], lifecycle.KeepAttempts) || len(attempts) != min(rec.Attempt, lifecycle.KeepAttempts+1) && len(attempts) != min(rec.Attempt, lifecycle.KeepAttempts) {
			t.Errorf("%s has %d attempts, %d of them ended; its events say %d ended, its record %d", rec.ID, len(attempts), ended, returned[rec.ID], rec.Attempt)
		}
	}
}
