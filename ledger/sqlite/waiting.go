package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/iterait/shepherd/ledger"
)

// queryOldest finds when the oldest waiting job of a kind was submitted.
const queryOldest = `SELECT min(enqueued_at) FROM (
	SELECT * FROM (SELECT enqueued_at FROM jobs
		WHERE state = 'queued' AND token = 0 AND sheep = ?1 AND put_back = 0 AND priority = ?2 ORDER BY seq LIMIT 1)
	UNION ALL SELECT * FROM (SELECT enqueued_at FROM jobs
		WHERE state = 'queued' AND token = 0 AND sheep = ?1 AND put_back = 1 AND priority = ?2 ORDER BY seq LIMIT 1))`

// Waiting implements ledger.Ledger. How many jobs wait is known without looking;
// the oldest of each kind is looked up by an index.
func (l *Ledger) Waiting(ctx context.Context, most int) ([]ledger.Waiting, error) {
	var list []ledger.Waiting
	err := l.look("look at the waiting jobs", func() error {
		var rest int
		list, rest = l.tally.kinds(most)
		for i := range list {
			var at sql.NullInt64
			err := l.read.oldest.QueryRowContext(ctx, list[i].Sheep, list[i].Priority).Scan(&at)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			list[i].Oldest = toTime(at.Int64)
		}
		// Those that were claimed since they were counted.
		list = slices.DeleteFunc(list, func(w ledger.Waiting) bool { return w.Oldest.IsZero() })
		if rest > 0 {
			list = append(list, ledger.Waiting{Jobs: rest, Rest: true})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// kinds are the first kinds of waiting jobs, and how many jobs are of none of
// them.
func (t *tally) kinds(most int) (list []ledger.Waiting, rest int) {
	t.mu.Lock()
	list = make([]ledger.Waiting, 0, len(t.waiting))
	for k, n := range t.waiting {
		list = append(list, ledger.Waiting{Sheep: k.sheep, Priority: k.priority, Jobs: n})
	}
	t.mu.Unlock()
	slices.SortFunc(list, func(a, b ledger.Waiting) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Sheep, b.Sheep))
	})
	if len(list) <= most {
		return list, 0
	}
	// What is left is one kind more.
	most = max(most-1, 0)
	for _, w := range list[most:] {
		rest += w.Jobs
	}
	return list[:most], rest
}

// countWaiting reads how many jobs of each kind wait.
func (t *tally) countWaiting(ctx context.Context, conn *sql.Conn) error {
	rows, err := conn.QueryContext(ctx, `SELECT sheep, priority, count(*) FROM jobs
		WHERE state = 'queued' AND token = 0 GROUP BY sheep, put_back, priority`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var k kind
		var n int
		if err := rows.Scan(&k.sheep, &k.priority, &n); err != nil {
			return err
		}
		t.waiting[k] += n
	}
	return rows.Err()
}
