package sqlite

import (
	"database/sql"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"modernc.org/sqlite/vfs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// countingFS counts how many pages SQLite reads of a file.
type countingFS struct {
	fs.FS
	pages atomic.Int64
}

func (c *countingFS) Open(name string) (fs.File, error) {
	f, err := c.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return &countingFile{f.(*os.File), c}, nil
}

type countingFile struct {
	*os.File
	counter *countingFS
}

func (f *countingFile) Read(p []byte) (int, error) {
	f.counter.pages.Add(1)
	return f.File.Read(p)
}

var _ io.ReadSeeker = (*countingFile)(nil)

// TestCosts runs the statements that read on a ledger with many jobs, without a
// cache, and counts the pages that they read: those of what they return, however
// many jobs there are before, between and after. A plan does not show as much: an
// index can be searched from a place far before the first row that matches.
func TestCosts(t *testing.T) {
	const n = 10_000
	long := strings.Repeat("m", 200) // so that few entries fit into a page
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	l := mustOpen(t, Config{Path: path})
	err := l.change(t.Context(), "fill", func(tx *tx) error {
		for i := range n {
			rec := numbered(i)
			rec.Model.Name, rec.Tenant, rec.Priority = long, fmt.Sprint("tenant", i%2), n-i
			if i%4 == 0 {
				rec.Sheep = "sheep"
			}
			r, err := tx.create(rec)
			if err != nil {
				return err
			}
			if i%4 == 1 {
				r.Claim(ledger.Slot{Node: "node", Sheep: "sheep"}, 1, tx.moment())
				end := ledger.Outcome{State: job.Failed, Failure: &job.Failure{Traceback: strings.Repeat("t", 2000)}, Cause: job.CauseError}
				change, err := r.Finish(1, end, nil, tx.moment())
				if err != nil {
					return err
				}
				if err := tx.writeChange(r, change); err != nil {
					return err
				}
			}
		}
		_, err := tx.create(job.Record{ID: "last", Model: job.Model{Name: "other"}, Tenant: "tenant0", Priority: -n})
		return err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	counter := &countingFS{FS: os.DirFS(dir)}
	name, registered, err := vfs.New(counter)
	if err != nil {
		t.Fatal(err)
	}
	defer registered.Close()
	db, err := sql.Open("sqlite", "file:ledger.db?vfs="+name+"&immutable=1&mode=ro&_pragma=cache_size(1)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)

	read := func(query string, args ...any) (rows int, pages int64) {
		t.Helper()
		before := counter.pages.Load()
		found, err := db.QueryContext(t.Context(), query, args...)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		defer found.Close()
		for found.Next() {
			rows++
		}
		if err := found.Err(); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return rows, counter.pages.Load() - before
	}
	texts := map[string]string{}
	for _, one := range append(new(statements).list(), new(readStatements).list()...) {
		texts[one.name] = one.text
	}
	type query struct {
		text string
		args []any
	}
	queries := map[string]query{
		"byID":      {texts["byID"], []any{"last"}},
		"heads":     {texts["heads"], []any{"sheep"}},
		"head":      {texts["head"], []any{"sheep"}},
		"byModel":   {texts["byModel"], []any{""}},
		"preferred": {texts["preferred"], []any{"", -n, "other", ""}},
		"oldest":    {texts["oldest"], []any{"other", "", ""}},
		"due":       {texts["due"], []any{1 << 60, 64}},
		"overdue":   {texts["overdue"], []any{1 << 60, 64}},
		"nextTimer": {texts["nextTimer"], nil},
		"attempts":  {texts["attempts"], []any{"last"}},
		"held":      {texts["held"], []any{"node"}},
		"oldEvents": {texts["oldEvents"], []any{64}},
	}
	for name, filter := range map[string]ledger.Filter{
		"list": {}, "list a state": {States: []job.State{job.Failed}}, "list states": {States: []job.State{job.Failed, job.Cancelled, job.Queued}},
		"list a sheep": {Sheep: "sheep"}, "list a model": {Model: job.Model{Name: "other"}}, "list a tenant": {Tenant: "tenant1"}, "list another tenant": {Tenant: "none"},
	} {
		for _, newest := range []bool{false, true} {
			filter.Newest = newest
			text, args := listQuery(filter, 0, 10)
			queries[fmt.Sprint(name, ", newest first ", newest)] = query{text, args}
		}
	}
	for name, filter := range map[string]ledger.EventFilter{"events": {}, "events of a job": {Job: "last"}, "events of a tenant": {Tenant: "none"}} {
		text, args := eventsQuery(0, 1<<60, filter, 10)
		queries[name] = query{text, args}
	}
	for name, q := range queries {
		rows, pages := read(q.text, q.args...)
		// A search reads a page per level of the tree and of each row's own; no
		// statement needs more than a dozen searches beside its rows.
		if most := int64(60 + 8*rows); pages > most {
			t.Errorf("%s reads %d pages for %d rows, at most %d are expected", name, pages, rows, most)
		}
	}
	for name, q := range map[string]query{
		"a scan of all jobs": {`SELECT seq FROM jobs WHERE attempt = 7`, nil},
		// One search by its plan, but it begins with the first job of that model.
		"a comparison of pairs": {`SELECT seq FROM jobs WHERE ` + isClaimable + ` AND sheep = '' AND (model_name, model_version) > (?, '1')
			ORDER BY model_name, model_version, priority DESC, seq LIMIT 1`, []any{long}},
	} {
		if _, pages := read(q.text, q.args...); pages < 100 {
			t.Errorf("%s reads %d pages: this test cannot tell", name, pages)
		}
	}
}
