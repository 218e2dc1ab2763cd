package postgres

import (
	"errors"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// TestUploadRemovalOfANode has one node begin a removal: it is no other's while the node is
// alive, and the next one's once it has joined again as that node.
func TestUploadRemovalOfANode(t *testing.T) {
	url := newDatabase(t)
	open := func(node string) *Ledger {
		t.Helper()
		l, err := Open(t.Context(), Config{URL: url, Lease: longLease})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if _, err := l.Join(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		return l
	}
	one, other := open("one"), open("other")
	if _, err := one.ReserveUpload(t.Context(), job.Upload{ID: "up"}, time.Microsecond); err != nil {
		t.Fatal(err)
	}
	if _, err := one.BeginUploadRemoval(t.Context(), "up", false); err != nil {
		t.Fatal(err)
	}
	if due, _, err := other.DueUploads(t.Context(), 10); err != nil || len(due) != 0 {
		t.Errorf("due for the other are %+v, %v", due, err)
	}
	if _, err := other.BeginUploadRemoval(t.Context(), "up", true); !errors.Is(err, ledger.ErrRemoving) {
		t.Errorf("begun by the other: %v", err)
	}
	if err := other.EndUploadRemoval(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Create(t.Context(), job.Record{ID: "up", Model: job.Model{Name: "m"}}); !errors.Is(err, ledger.ErrUploadOver) {
		t.Errorf("submitted to the other: %v", err)
	}
	again := open("one")
	if due, _, err := again.DueUploads(t.Context(), 10); err != nil || len(due) != 1 || !due[0].Removing {
		t.Errorf("due after a restart are %+v, %v", due, err)
	}
	if err := again.EndUploadRemoval(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Upload(t.Context(), "up"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
}
