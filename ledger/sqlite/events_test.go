package sqlite

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func textLog(to io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }

// TestEventsInMemory records more events than are kept in memory, with long
// failures: memory stays bounded, and readers go from the file to memory and back
// without a gap.
func TestEventsInMemory(t *testing.T) {
	l := openTemp(t, Config{})
	const n = 600
	fill(t, l, 0, n)
	for i := range n {
		c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a"})
		if err != nil || c == nil {
			t.Fatalf("Claim = %v, %v", c, err)
		}
		outcome := ledger.Outcome{State: job.Failed, Cause: job.CauseError, Failure: &job.Failure{Message: fmt.Sprint(i), Traceback: strings.Repeat("x", job.MaxTraceback)}}
		if _, err := l.Finish(t.Context(), c.ID, c.Token, outcome); err != nil {
			t.Fatal(err)
		}
	}
	kept := 0
	for _, event := range l.recent.events {
		kept += failureBytes(event)
	}
	if len(l.recent.events) > maxRecentEvents || kept != l.recent.bytes || kept > maxRecentBytes || len(l.recent.events) < 100 {
		t.Errorf("%d events with failures of %d bytes are in memory, counted as %d", len(l.recent.events), kept, l.recent.bytes)
	}
	for _, filter := range []ledger.EventFilter{{}, {Job: numbered(7).ID}, {Job: numbered(n - 1).ID}} {
		var got []job.Event
		at := job.Cursor("")
		for {
			events, next, err := l.Events(t.Context(), at, filter, 100)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, events...)
			at = next
			if len(events) == 0 {
				break
			}
		}
		want := 3 * n
		if filter.Job != "" {
			want = 3
		}
		if len(got) != want {
			t.Errorf("%+v: %d events, want %d", filter, len(got), want)
		}
		ended := 0
		for _, event := range got {
			if event.Kind == job.EventEnded {
				if filter.Job == "" && event.Status.Failure.Message != fmt.Sprint(ended) {
					t.Fatalf("%s ended in place %d", event.Status.Failure.Message, ended)
				}
				ended++
			}
		}
	}
}

// TestEventsArePruned keeps the number of events bounded in the file, in steps,
// and says what is gone.
func TestEventsArePruned(t *testing.T) {
	const keep = 1000
	l := openTemp(t, Config{EventNumber: keep})
	fill(t, l, 0, 3*keep)
	var stored, pruned int
	if err := l.reads.QueryRow(`SELECT (SELECT count(*) FROM events), pruned FROM numbers`).Scan(&stored, &pruned); err != nil {
		t.Fatal(err)
	}
	if stored < keep || stored > keep+2*pruneWithChanges || stored+pruned != 3*keep {
		t.Errorf("%d events are stored, those up to %d are gone", stored, pruned)
	}
	// The last ones that are gone from the file may still be in memory.
	for after, want := range map[int]bool{0: false, pruned - 200: false, pruned: true, pruned + 1: true} {
		_, _, err := l.Events(t.Context(), cursor(int64(after)), ledger.EventFilter{}, 10)
		if (err == nil) != want {
			t.Errorf("after %d of %d: %v", after, pruned, err)
		}
	}
}
